"""NVIDIA's reference measurements (RIM): TCG RIM SWID tags with an XML signature.

The signature is checked by signxml, with every algorithm pinned; the certificates inside the file count only if they lead to
NVIDIA's pinned root. Only the element that signxml returns as signed is read.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from lxml import etree  # type: ignore[import-untyped]  # lxml ships no types
from signxml.algorithms import DigestAlgorithm, SignatureMethod
from signxml.exceptions import SignXMLException
from signxml.verifier import SignatureConfiguration, XMLVerifier

from attestation.errors import FormatError, LimitError, SignatureError
from attestation.shape import shape
from attestation.verify.certificates import MAX_CHAIN, load_chain, name_of, packaged_roots, verified_path

MAX_RIM_BYTES = 4 * 1024 * 1024
MAX_ALTERNATIVES = 64
_SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_SHA384 = "{http://www.w3.org/2001/04/xmlenc#sha384}"
_DSIG = "{http://www.w3.org/2000/09/xmldsig#}"
_CONFIG = SignatureConfiguration(
    require_x509=True,
    location="./",
    expect_references=1,
    signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
    digest_algorithms=frozenset({DigestAlgorithm.SHA384}),
)


@dataclass(frozen=True)
class Rim:
    """A verified RIM: what it is for, and the accepted values by measurement index (from 0), for the active ones.

    ``chain`` leads from its signer up to a pinned root, which is the last of it.
    """

    product: str
    version: str
    golden: Mapping[int, frozenset[bytes]]
    signer: str
    chain: tuple[x509.Certificate, ...]


def verify_rim(raw: bytes, at: datetime, roots: Sequence[x509.Certificate] = ()) -> Rim:
    """Return a RIM once its signature leads to the pinned root at ``at``.

    Raises ``FormatError``, ``LimitError``, ``SignatureError``, or ``VerificationError`` for its certificates.
    """
    tree = _parse(raw)
    chain = _certificates(tree)
    path = verified_path(chain, list(roots) or packaged_roots("nvidia_rim.pem"), at)
    try:
        result = XMLVerifier().verify(tree, x509_cert=chain[0], expect_config=replace(_CONFIG, verification_time=at))
    except (SignXMLException, etree.LxmlError, ValueError, TypeError, KeyError) as error:
        raise SignatureError(
            "the RIM's signature does not verify", seen=f"{type(error).__name__}: {error}"[:200], wanted="a signature by its signer"
        ) from error
    signed = (result[0] if isinstance(result, list) else result).signed_xml
    if signed is None or signed.tag != f"{_SWID}SoftwareIdentity":
        raise SignatureError(
            "the RIM's signature covers something else", seen=str(None if signed is None else signed.tag), wanted="the SoftwareIdentity"
        )
    return _read(signed, path)


def rim_signers(raw: bytes) -> list[x509.Certificate]:
    """Return the certificates inside a RIM file, unproven. Raises ``FormatError`` or ``LimitError``."""
    return _certificates(_parse(raw))


def _parse(raw: bytes) -> etree._Element:
    if len(raw) > MAX_RIM_BYTES:
        raise LimitError("a RIM file is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_RIM_BYTES} bytes")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_blank_text=False)
    try:
        tree = etree.fromstring(raw, parser)
    except (etree.LxmlError, ValueError) as error:
        raise FormatError("not XML", seen=str(error)[:200], wanted="a RIM file") from error
    if tree.getroottree().docinfo.doctype or tree.tag != f"{_SWID}SoftwareIdentity":
        raise FormatError("not a RIM file", seen="another root", wanted="a SoftwareIdentity without a document type")
    return tree


def _certificates(tree: etree._Element) -> list[x509.Certificate]:
    nodes = tree.findall(f"{_DSIG}Signature/{_DSIG}KeyInfo/{_DSIG}X509Data/{_DSIG}X509Certificate")
    if not 1 <= len(nodes) <= MAX_CHAIN:
        raise FormatError("not the certificates of a RIM", seen=f"{len(nodes)} certificates", wanted=f"1 to {MAX_CHAIN}")
    try:
        return [load_chain(base64.b64decode("".join((node.text or "").split()), validate=True))[0] for node in nodes]
    except ValueError as error:
        raise FormatError("a certificate of the RIM is not base64", seen=str(error)[:100], wanted="base64") from error


def _read(signed: etree._Element, chain: Sequence[x509.Certificate]) -> Rim:
    meta, payload = signed.find(f"{_SWID}Meta"), signed.find(f"{_SWID}Payload")
    if meta is None or payload is None:
        raise FormatError("a RIM without Meta or Payload", seen="SoftwareIdentity", wanted="Meta and Payload")
    golden: dict[int, frozenset[bytes]] = {}
    for resource in payload.findall(f"{_SWID}Resource"):
        if resource.get("type") != "Measurement" or resource.get("active") != "True":
            continue
        index, count = resource.get("index", ""), resource.get("alternatives", "")
        if not index.isdecimal() or not count.isdecimal() or not 1 <= int(count) <= MAX_ALTERNATIVES or int(index) in golden:
            raise FormatError(
                "a measurement of the RIM is malformed", seen=f"index {index[:20]}, alternatives {count[:20]}", wanted="each index once"
            )
        golden[int(index)] = frozenset(_hash(resource.get(f"{_SHA384}Hash{number}")) for number in range(int(count)))
    return Rim(meta.get("product", ""), meta.get("colloquialVersion", ""), golden, name_of(chain[-1]), tuple(chain))


def _hash(text: str | None) -> bytes:
    try:
        return bytes.fromhex(text or "-")
    except ValueError as error:
        raise FormatError("a hash of the RIM is not hex", seen=shape(text), wanted="hex digits") from error
