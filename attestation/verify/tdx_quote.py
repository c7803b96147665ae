"""The layout of an Intel TDX quote, versions 4 and 5. Pure parsing.

Source: Intel TDX DCAP Quoting Library API, appendix A (quote and signature data), Intel TDX Module ABI (TDREPORT); little endian.
"""

from __future__ import annotations

from dataclasses import dataclass

from attestation.errors import FormatError
from attestation.verify.binary import BinaryReader

MAX_QUOTE_BYTES = 64 * 1024
TEE_TDX = 0x81
ECDSA_P256 = 2
BODY_BYTES = {2: 584, 3: 648}
"""Size of the TD report body by its type in version 5: TDX 1.0, and 1.5 with a migration service."""
_CERTIFIED_BY_QE, _PCK_CHAIN = 6, 5
_MAX_SIGNATURE_BYTES = 32 * 1024


@dataclass(frozen=True)
class EnclaveReport:
    """The quoting enclave's report (SGX, 384 bytes): who it is, and the 64 bytes it speaks for."""

    raw: bytes
    misc_select: int
    attributes: bytes
    signer: bytes
    product: int
    svn: int
    data: bytes


@dataclass(frozen=True)
class TdxQuote:
    """The fields that are judged. ``signature`` and ``enclave_signature`` are r and s, 32 bytes each; ``key`` is a P-256 point."""

    version: int
    tcb_svn: bytes
    seam: bytes
    seam_signer: bytes
    seam_attributes: bytes
    attributes: bytes
    measurement: bytes
    config_id: bytes
    owner: bytes
    owner_config: bytes
    rtmrs: tuple[bytes, ...]
    report_data: bytes
    signed: bytes
    signature: bytes
    key: bytes
    enclave: EnclaveReport
    enclave_signature: bytes
    authentication: bytes
    chain: bytes


def parse_tdx_quote(raw: bytes) -> TdxQuote:
    """Parse a quote; zeros may follow it, as drivers hand out whole pages. Raises ``FormatError`` or ``LimitError``."""
    if len(raw) > MAX_QUOTE_BYTES:
        raise FormatError("not a TDX quote", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_QUOTE_BYTES} bytes")
    reader = BinaryReader(raw, "the quote", "little")
    version, algorithm, tee = reader.number(2), reader.number(2), reader.number(4)
    if version not in {4, 5} or algorithm != ECDSA_P256 or tee != TEE_TDX:
        raise FormatError(
            "not a TDX quote",
            seen=f"version {version}, key type {algorithm}, TEE {tee:x}",
            wanted=f"version 4 or 5, {ECDSA_P256} (ECDSA P-256), {TEE_TDX:x}",
        )
    reader.take(40)
    size = BODY_BYTES[2]
    if version == 5:
        kind, size = reader.number(2), reader.number(4)
        if BODY_BYTES.get(kind) != size:
            raise FormatError("an unknown TD report", seen=f"type {kind}, {size} bytes", wanted="type 2 or 3 of its size")
    start = len(raw) - reader.left
    body = BinaryReader(reader.take(size), "the TD report", "little")
    signature = BinaryReader(reader.sized(limit=_MAX_SIGNATURE_BYTES, size=4), "the signature data", "little")
    if any(reader.take(reader.left)):
        raise FormatError("the quote has bytes after its end", seen="bytes that are not zero", wanted="zeros or none")
    tcb_svn, seam, signer, seam_attributes, attributes = body.take(16), body.take(48), body.take(48), body.take(8), body.take(8)
    body.take(8)  # XFAM
    measurement = body.take(48)
    config_id, owner, owner_config = body.take(48), body.take(48), body.take(48)
    rtmrs = tuple(body.take(48) for _ in range(4))
    report_data = body.take(64)
    own, key = signature.take(64), signature.take(64)
    certified = _typed(signature, _CERTIFIED_BY_QE)
    signature.end()
    enclave, enclave_signature = _enclave(certified.take(384)), certified.take(64)
    authentication = certified.sized(limit=1024)
    chain = _typed(certified, _PCK_CHAIN)
    certified.end()
    return TdxQuote(
        version=version,
        tcb_svn=tcb_svn,
        seam=seam,
        seam_signer=signer,
        seam_attributes=seam_attributes,
        attributes=attributes,
        measurement=measurement,
        config_id=config_id,
        owner=owner,
        owner_config=owner_config,
        rtmrs=rtmrs,
        report_data=report_data,
        signed=raw[: start + size],
        signature=own,
        key=key,
        enclave=enclave,
        enclave_signature=enclave_signature,
        authentication=authentication,
        chain=chain.take(chain.left).rstrip(b"\0"),
    )


def _typed(reader: BinaryReader, wanted: int) -> BinaryReader:
    kind = reader.number(2)
    data = reader.sized(limit=_MAX_SIGNATURE_BYTES, size=4)
    if kind != wanted:
        raise FormatError("other certification data", seen=f"type {kind}", wanted=f"type {wanted}")
    return BinaryReader(data, "the certification data", "little")


def _enclave(raw: bytes) -> EnclaveReport:
    number = int.from_bytes
    return EnclaveReport(
        raw,
        number(raw[16:20], "little"),
        raw[48:64],
        raw[128:160],
        number(raw[256:258], "little"),
        number(raw[258:260], "little"),
        raw[320:],
    )
