"""Which chip an NVIDIA certificate chain speaks for, and which firmware its key is bound to. Pure parsing of a verified chain.

Certificate 0 belongs to the firmware that signs reports, certificate 1 to the chip's boot ROM; its subject begins with the chip's name.
Switches have certificates under the same root, so that the name decides whether this is a GPU at all. The firmware's id (FWID, a SHA-384)
stands in an extension of certificate 0, in the older layout of TCG's DICE (Hopper) or as a DiceTcbInfo (Blackwell; TCG DICE
Attestation Architecture 1.1, section 6.1.1).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import FormatError
from attestation.verify.der import OCTETS, SEQUENCE, members, value

HOPPER, BLACKWELL = "Hopper", "Blackwell"
SHA384_BYTES = 48
_CHIP = re.compile(r"(G([HB])\d{3}) ")
_ARCHITECTURES = {"H": HOPPER, "B": BLACKWELL}
_TCB_INFO = {HOPPER: "2.23.133.5.4.1", BLACKWELL: "2.23.133.5.4.1.1"}
_FWIDS = 0xA6
"""``fwids [6] IMPLICIT`` of a DiceTcbInfo."""


@dataclass(frozen=True)
class GpuIdentity:
    """A GPU by its chain. ``device`` is the SHA-256 of the chip's own public key, which no other chip has; ``fwid`` has 48 bytes."""

    chip: str
    architecture: str
    fwid: bytes
    device: bytes


def gpu_identity(chain: Sequence[x509.Certificate]) -> GpuIdentity:
    """Return what a chain of at least two certificates says. Raises ``FormatError`` for other devices than GPUs of known layout."""
    names = chain[1].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    name = str(names[0].value) if names else ""
    match = _CHIP.match(name)
    if match is None:
        raise FormatError(
            "the certificates are not a GPU's", seen=name[:60] or "no name", wanted="a GPU of the Hopper or Blackwell architecture"
        )
    architecture = _ARCHITECTURES[match[2]]
    key = chain[1].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return GpuIdentity(match[1], architecture, _fwid(chain[0], architecture), hashlib.sha256(key).digest())


def _fwid(leaf: x509.Certificate, architecture: str) -> bytes:
    oid = _TCB_INFO[architecture]
    raw = next(
        (
            extension.value.value
            for extension in leaf.extensions
            if isinstance(extension.value, x509.UnrecognizedExtension) and extension.oid.dotted_string == oid
        ),
        None,
    )
    if raw is None:
        raise FormatError(f"the certificate names no firmware as {architecture} does", seen=f"no extension {oid}", wanted="a firmware id")
    outer = members(value(raw, SEQUENCE))
    if architecture == BLACKWELL:
        # One for each layer; the first is the firmware that signs reports.
        listed = next((members(data) for tag, data in outer if tag == _FWIDS), [])
        inner = listed[0][1] if listed else b""
    else:
        inner = outer[-1][1] if outer else b""
    found = [data for tag, data in members(inner) if tag == OCTETS]
    if len(found) != 1 or len(found[0]) != SHA384_BYTES:
        raise FormatError(
            "the firmware's id is not a SHA-384", seen=f"{[len(item) for item in found]} bytes", wanted=f"{SHA384_BYTES} bytes"
        )
    return found[0]
