"""TPM 2.0 quotes, in pure Python (TPM 2.0 Library Part 2: Structures, sections 10.12 and 11.2; TCG revision 1.59).

Steps: ``tpm-key`` the attestation key is one that is trusted · ``tpm-signature`` it signed the quote · ``tpm-quote`` the signed
structure is a quote made by a TPM · ``tpm-nonce`` it answers · ``tpm-pcr-digest`` the shown PCR values are the quoted ones ·
then what they must show (``tpm_rules``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation.appraisal import APPROVED_BOOT, APPROVED_RUNTIME, GENUINE, NO_CLAIM, Submod
from attestation.errors import AttestationError, FormatError, SignatureError
from attestation.steps import Steps
from attestation.verify.binary import BinaryReader
from attestation.verify.tpm_rules import TpmRules, check_rules

MAGIC = 0xFF544347  # TPM_GENERATED_VALUE: a restricted key signs it only over structures that the TPM made itself
TAG_QUOTE = 0x8018  # TPM_ST_ATTEST_QUOTE
ALG_SHA256 = 0x000B
ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA = 0x0014, 0x0016, 0x0018
HASHES: Mapping[int, tuple[str, hashes.HashAlgorithm]] = {
    ALG_SHA256: ("sha256", hashes.SHA256()),
    0x000C: ("sha384", hashes.SHA384()),
    0x000D: ("sha512", hashes.SHA512()),
}
MAX_FIELD = 1024
MAX_SELECTIONS = 16
PCRS = 24
MIN_RSA_BITS = 2048


@dataclass(frozen=True)
class Quote:
    """A parsed TPMS_ATTEST of type quote. ``pcrs`` are the selected SHA-256 PCRs, rising; ``digest`` is over their values."""

    nonce: bytes
    reset_count: int
    restart_count: int
    safe: bool
    firmware: int
    pcrs: tuple[int, ...]
    digest: bytes


@dataclass(frozen=True)
class TpmEvidence:
    """A quote, its TPMT_SIGNATURE, the PCR values shown with it (by index), the key that is said to have signed (DER), and logs."""

    message: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    key: bytes
    event_log: bytes | None = None
    ima_log: bytes | None = None


def parse_quote(raw: bytes) -> Quote:
    """Parse a TPMS_ATTEST. Raises ``FormatError`` for anything but one quote over the SHA-256 bank."""
    reader = BinaryReader(raw, "the quote", "big")
    magic, tag = reader.number(4), reader.number(2)
    if magic != MAGIC or tag != TAG_QUOTE:
        raise FormatError("not a quote made by a TPM", seen=f"{magic:08x} {tag:04x}", wanted=f"{MAGIC:08x} {TAG_QUOTE:04x}")
    reader.sized(limit=MAX_FIELD)  # qualifiedSigner: a name of the key, which is checked by its signature
    nonce = reader.sized(limit=MAX_FIELD)
    reader.number(8)  # clock
    reset, restart, safe = reader.number(4), reader.number(4), reader.number(1)
    firmware = reader.number(8)
    pcrs = _selection(reader)
    digest = reader.sized(limit=64)
    reader.end()
    return Quote(nonce, reset, restart, safe == 1, firmware, pcrs, digest)


def _selection(reader: BinaryReader) -> tuple[int, ...]:
    """Parse TPML_PCR_SELECTION; exactly one bank, SHA-256, may have bits set."""
    count = reader.number(4)
    if count > MAX_SELECTIONS:
        raise FormatError("too many PCR banks", seen=str(count), wanted=f"≤ {MAX_SELECTIONS}")
    chosen: tuple[int, ...] = ()
    for _ in range(count):
        bank, bitmap = reader.number(2), reader.sized(limit=PCRS // 8, size=1)
        bits = tuple(index for index in range(len(bitmap) * 8) if bitmap[index // 8] >> index % 8 & 1)
        if not bits:
            continue
        if bank != ALG_SHA256 or chosen:
            raise FormatError("PCRs of another bank", seen=f"bank {bank:04x}", wanted=f"bank {ALG_SHA256:04x} once")
        chosen = bits
    return chosen


def verify_signature(key: bytes, signature: bytes, message: bytes) -> str:
    """Return the name of the hash once ``key`` (DER SubjectPublicKeyInfo) is proven to have signed ``message``.

    ``signature`` is a TPMT_SIGNATURE. Raises ``FormatError`` or ``SignatureError``.
    """
    reader = BinaryReader(signature, "the signature", "big")
    scheme, bank = reader.number(2), reader.number(2)
    if bank not in HASHES:
        raise FormatError("an unknown hash", seen=f"{bank:04x}", wanted="SHA-256, SHA-384 or SHA-512")
    name, algorithm = HASHES[bank]
    public = _load(key)
    try:
        if isinstance(public, rsa.RSAPublicKey) and scheme in {ALG_RSASSA, ALG_RSAPSS}:
            blob = reader.sized(limit=MAX_FIELD)
            reader.end()
            pad = padding.PKCS1v15() if scheme == ALG_RSASSA else padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            public.verify(blob, message, pad, algorithm)
        elif isinstance(public, ec.EllipticCurvePublicKey) and scheme == ALG_ECDSA:
            r, s = (int.from_bytes(reader.sized(limit=128), "big") for _ in range(2))
            reader.end()
            public.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm))
        else:
            raise FormatError(
                "the scheme does not fit the key", seen=f"{scheme:04x} with {type(public).__name__}", wanted="RSASSA, RSAPSS or ECDSA"
            )
    except InvalidSignature as error:
        raise SignatureError(
            "the quote is not signed by this key", seen="another key, or other bytes", wanted="a signature by the attestation key"
        ) from error
    return name


def _load(key: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    try:
        public = load_der_public_key(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError("not a public key", seen=str(error)[:100], wanted="DER SubjectPublicKeyInfo") from error
    if isinstance(public, ec.EllipticCurvePublicKey) or (isinstance(public, rsa.RSAPublicKey) and public.key_size >= MIN_RSA_BITS):
        return public
    raise FormatError(
        "a weak or unknown kind of key", seen=type(public).__name__, wanted=f"RSA of {MIN_RSA_BITS} bits or more, or an elliptic curve"
    )


def verify_tpm(evidence: TpmEvidence, *, nonce: bytes | None, keys: Collection[bytes] | None, rules: TpmRules, steps: Steps) -> Submod:
    """Record the steps and return the claims. Raises ``VerificationError`` where later steps would have no basis.

    ``nonce`` of None and ``keys`` of None (stand-alone inspection) compare nothing and then claim nothing. With no rule for the boot's PCRs
    it is not judged, and nothing is claimed of it.
    """
    listed = keys is None or evidence.key in keys
    identity = hashlib.sha256(evidence.key).hexdigest()
    steps.need(
        "tpm-key",
        ok=listed,
        seen=f"sha256:{identity}",
        wanted="not compared: no trusted key was given" if keys is None else "a trusted attestation key",
        fix="enrol the node's TPM and add its attestation key to the trust file",
    )
    try:
        hash_name = verify_signature(evidence.key, evidence.signature, evidence.message)
    except AttestationError as error:
        steps.fail("tpm-signature", error)
    steps.check("tpm-signature", ok=True, seen=f"proven, {hash_name}", wanted="a signature by the attestation key")
    try:
        quote = parse_quote(evidence.message)
    except AttestationError as error:
        steps.fail("tpm-quote", error)
    steps.check(
        "tpm-quote",
        ok=True,
        seen=f"reset {quote.reset_count}, restart {quote.restart_count}, firmware {quote.firmware:016x}",
        wanted="a quote made by a TPM",
    )
    steps.check(
        "tpm-nonce",
        ok=nonce is None or quote.nonce == nonce,
        seen=quote.nonce.hex() or "none",
        wanted="not compared: no nonce was given" if nonce is None else nonce.hex(),
        fix="ask for a new quote over the right nonce",
    )
    quoted = _quoted(evidence, quote, hash_name, steps)
    boot, runner = check_rules(quoted, rules, event_log=evidence.event_log, ima_log=evidence.ima_log, steps=steps)
    known = keys is not None and nonce is not None
    approved = APPROVED_RUNTIME if runner else APPROVED_BOOT if boot else NO_CLAIM
    claims = {"hardware": GENUINE if known else NO_CLAIM, "executables": approved if known else NO_CLAIM}
    return Submod(claims, {"tpm_key": f"sha256:{identity}", "tpm_reset_count": quote.reset_count, "tpm_restart_count": quote.restart_count})


def _quoted(evidence: TpmEvidence, quote: Quote, hash_name: str, steps: Steps) -> Mapping[int, bytes]:
    """Return the PCR values that the quote proves."""
    missing = [index for index in quote.pcrs if len(evidence.pcrs.get(index, b"")) != hashlib.sha256().digest_size]
    digest = hashlib.new(hash_name, b"".join(evidence.pcrs.get(index, b"") for index in quote.pcrs)).digest()
    steps.need(
        "tpm-pcr-digest",
        ok=bool(quote.pcrs) and not missing and digest == quote.digest,
        seen=digest.hex(),
        wanted=f"{quote.digest.hex()} over PCRs {', '.join(map(str, quote.pcrs)) or 'none'}",
        fix="send the values of the quoted PCRs, read together with the quote",
    )
    return {index: evidence.pcrs[index] for index in quote.pcrs}
