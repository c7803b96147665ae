"""What Intel says of its platforms, from a file: TCB info, the quoting enclave's identity, revocation lists; each signed, with its end.

The file is JSON with the members of Intel's ``sgx_ql_qve_collateral_t``: ``tcb_info``, ``qe_identity`` (the exact JSON texts that were
signed), their ``…_signature`` (hex of r and s) and ``…_issuer_chain`` (PEM), ``root_ca_crl`` and ``pck_crl`` (hex of DER). Source: Intel
SGX and TDX Provisioning Certification Service API, version 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from attestation.canonical import parse_json
from attestation.document import time_text
from attestation.errors import FormatError, SignatureError, VerificationError
from attestation.shape import place_of
from attestation.verify.certificates import load_chain, verify_chain
from attestation.verify.revocation import check_revocation, load_crl

MAX_COLLATERAL_BYTES = 4 * 1024 * 1024
Hex = Annotated[str, Field(pattern=r"^(?:[0-9A-Fa-f]{2})*$", max_length=4 * 1024 * 1024)]
Svn = Annotated[int, Field(ge=0, le=0xFFFF)]


M = TypeVar("M", bound=BaseModel)


class _Model(BaseModel):
    # Intel adds members over time; what is judged here is named here.
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True)


class _Component(_Model):
    svn: Annotated[int, Field(ge=0, le=255)]


class _Tcb(_Model):
    sgxtcbcomponents: Annotated[tuple[_Component, ...], Field(min_length=16, max_length=16)]
    tdxtcbcomponents: Annotated[tuple[_Component, ...], Field(min_length=16, max_length=16)]
    pcesvn: Svn


class TcbLevel(_Model):
    """One row of the platform's table, the highest first."""

    tcb: _Tcb
    tcb_status: str


class _Isv(_Model):
    isvsvn: Svn


class IsvLevel(_Model):
    """One row of the table of an enclave or TDX module."""

    tcb: _Isv
    tcb_status: str


class ModuleIdentity(_Model):
    """A TDX module, by its major version (``TDX_01``)."""

    id: str
    mrsigner: Hex
    attributes: Hex
    attributes_mask: Hex
    tcb_levels: tuple[IsvLevel, ...]


class _Module(_Model):
    mrsigner: Hex
    attributes: Hex
    attributes_mask: Hex


class _Dated(_Model):
    issue_date: AwareDatetime
    next_update: AwareDatetime


class TcbInfo(_Dated):
    """What is known of one family of platforms."""

    id: Literal["TDX"]
    version: Literal[3]
    fmspc: Hex
    pce_id: Hex
    tdx_module: _Module
    tdx_module_identities: tuple[ModuleIdentity, ...] = ()
    tcb_levels: tuple[TcbLevel, ...]


class QeIdentity(_Dated):
    """Intel's TD quoting enclave."""

    id: Literal["TD_QE"]
    version: Literal[2]
    miscselect: Hex
    miscselect_mask: Hex
    attributes: Hex
    attributes_mask: Hex
    mrsigner: Hex
    isvprodid: Svn
    tcb_levels: tuple[IsvLevel, ...]


class _File(_Model):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    tcb_info: str
    tcb_info_signature: Hex
    tcb_info_issuer_chain: str
    qe_identity: str
    qe_identity_signature: Hex
    qe_identity_issuer_chain: str
    root_ca_crl: Hex
    pck_crl: Hex


@dataclass(frozen=True)
class Collateral:
    """Verified collateral. ``until`` is the first of its signed ends: until then it may be kept and used again."""

    tcb: TcbInfo
    enclave: QeIdentity
    until: datetime
    revocation: str


@dataclass(frozen=True)
class Tables:
    """Intel's tables for one family of platforms, signed and current; the lists are not yet compared with a platform's certificates."""

    tcb: TcbInfo
    enclave: QeIdentity
    since: datetime
    until: datetime
    signers: tuple[x509.Certificate, ...]
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList


def open_tables(raw: bytes, roots: Sequence[x509.Certificate], at: datetime) -> Tables:
    """Return the tables once they are signed under ``roots`` and valid at ``at``, their signers not revoked by the root's list.

    Raises ``FormatError``, ``LimitError`` or ``VerificationError``.
    """
    file, tcb, enclave, lists, since, until = _read(raw)
    signers = []
    for text, signature, chain in (
        (file.tcb_info, file.tcb_info_signature, file.tcb_info_issuer_chain),
        (file.qe_identity, file.qe_identity_signature, file.qe_identity_issuer_chain),
    ):
        certificates = load_chain(chain.encode())
        verify_chain(certificates, roots, at)
        if not signed_by(certificates[0], bytes.fromhex(signature), text.encode()):
            raise SignatureError("the collateral is not signed by Intel", seen="another key, or another text", wanted="Intel's signature")
        signers += certificates
    for what, dated in (("TCB info", tcb), ("QE identity", enclave)):
        if not dated.issue_date <= at <= dated.next_update:
            raise VerificationError(
                f"Intel's {what} is not current",
                seen=time_text(at),
                wanted=f"{time_text(dated.issue_date)} to {time_text(dated.next_update)}",
                fix=collateral_fix(tcb.fmspc),
            )
    root = next((item for item in roots if item.subject == lists[0].issuer), None)
    if root is None:
        raise VerificationError(
            "the revocation list is another root's", seen=lists[0].issuer.rfc4514_string()[:200], wanted="the pinned root's"
        )
    check_revocation(lists[0], root, signers, at=at)
    return Tables(tcb, enclave, since, until, tuple(signers), *lists)


def stated_window(raw: bytes) -> tuple[datetime, datetime]:
    """Return from when to when collateral says that it is valid; nothing is proven. Raises ``FormatError`` or ``LimitError``."""
    *_, since, until = _read(raw)
    return since, until


class _Read(NamedTuple):
    file: _File
    tcb: TcbInfo
    enclave: QeIdentity
    lists: tuple[x509.CertificateRevocationList, x509.CertificateRevocationList]
    since: datetime
    until: datetime


def _read(raw: bytes) -> _Read:
    file = _parse(_File, parse_json(raw, max_bytes=MAX_COLLATERAL_BYTES))
    lists = (load_crl(bytes.fromhex(file.root_ca_crl)), load_crl(bytes.fromhex(file.pck_crl)))
    tcb, enclave = _parse(TcbInfo, parse_json(file.tcb_info.encode())), _parse(QeIdentity, parse_json(file.qe_identity.encode()))
    since = max(tcb.issue_date, enclave.issue_date, *(crl.last_update_utc for crl in lists))
    until = min(tcb.next_update, enclave.next_update, *(crl.next_update_utc for crl in lists if crl.next_update_utc is not None))
    return _Read(file, tcb, enclave, lists, since, until)


def open_collateral(raw: bytes, pck: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime) -> Collateral:
    """Return the collateral once all of it is signed under ``roots`` and valid at ``at``, and nothing in ``pck`` (leaf first) is revoked.

    Raises ``FormatError``, ``LimitError`` or ``VerificationError``.
    """
    tables = open_tables(raw, roots, at)
    root = next(item for item in roots if item.subject == tables.root_crl.issuer)
    if len(pck) < 2:
        raise VerificationError("the platform's certificate comes without its issuer", seen="one certificate", wanted="a chain")
    seen = [
        check_revocation(tables.root_crl, root, [*pck, *tables.signers], at=at),
        check_revocation(tables.pck_crl, pck[1], pck, at=at),
    ]
    return Collateral(tables.tcb, tables.enclave, tables.until, "; ".join(seen))


def collateral_fix(fmspc: str) -> str:
    """Say where Intel publishes the collateral of a family of platforms (Provisioning Certification Service, version 4)."""
    service = "https://api.trustedservices.intel.com"
    return (
        f"fetch {service}/tdx/certification/v4/tcb?fmspc={fmspc.upper()}, …/tdx/certification/v4/qe/identity and "
        "…/sgx/certification/v4/pckcrl?ca=platform&encoding=der, and Intel's root list (IntelSGXRootCA.der); "
        "then 'sealrig evidence collateral import FILE'"
    )


def signed_by(certified: x509.Certificate | ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Say whether an elliptic-curve key made ``signature`` (r and s, 32 bytes each) over ``data`` with SHA-256."""
    key = certified.public_key() if isinstance(certified, x509.Certificate) else certified
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(signature) != 64:
        return False
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _parse(model: type[M], tree: Any) -> M:  # noqa: ANN401  (parsed JSON)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = place_of(model, first["loc"]) or "the document"
        raise FormatError(f"not TDX collateral: {place}", seen=first["type"], wanted=first["msg"][:200]) from None


def level_status(levels: Sequence[IsvLevel], svn: int) -> str:
    """Return the status of a security version: that of the highest row it reaches."""
    return next((level.tcb_status for level in levels if svn >= level.tcb.isvsvn), "below all levels")


def platform_status(info: TcbInfo, components: Sequence[int], pcesvn: int, tee: Sequence[int]) -> str:
    """Return the status of a platform: PCK's SGX components and PCE version, and the quote's TDX components."""
    # From module 1.5 on the first two TDX components name the module, which has a table of its own.
    skipped = 2 if tee[1] else 0
    for level in info.tcb_levels:
        sgx, tdx = level.tcb.sgxtcbcomponents, level.tcb.tdxtcbcomponents
        if (
            all(have >= want.svn for have, want in zip(components, sgx, strict=True))
            and pcesvn >= level.tcb.pcesvn
            and all(have >= want.svn for have, want in zip(tee[skipped:], tdx[skipped:], strict=True))
        ):
            return level.tcb_status
    return "below all levels"


def module_of(info: TcbInfo, tee: Sequence[int]) -> tuple[Mapping[str, str], str]:
    """Return the identity of the TDX module that the quote names, and the status of its version."""
    if not tee[1]:
        return info.tdx_module.model_dump(), "UpToDate"
    for identity in info.tdx_module_identities:
        if identity.id.upper() == f"TDX_{tee[1]:02X}":
            return identity.model_dump(include={"mrsigner", "attributes", "attributes_mask"}), level_status(identity.tcb_levels, tee[0])
    return {"mrsigner": "", "attributes": "", "attributes_mask": ""}, f"unknown module TDX_{tee[1]:02X}"
