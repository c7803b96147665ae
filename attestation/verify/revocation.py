"""Certificate revocation lists from files: signed by the issuer, current, not older than allowed, and not naming a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestation.document import time_text
from attestation.errors import FormatError, LimitError, VerificationError
from attestation.verify.certificates import LOAD_ERRORS, warnings_as_errors

MAX_CRL_BYTES = 4 * 1024 * 1024
_PEM = b"-----BEGIN"


def load_crl(raw: bytes) -> x509.CertificateRevocationList:
    """Load a list in DER or PEM. Raises ``FormatError`` or ``LimitError``."""
    if len(raw) > MAX_CRL_BYTES:
        raise LimitError("a revocation list is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_CRL_BYTES} bytes")
    try:
        with warnings_as_errors():
            found = x509.load_pem_x509_crl(raw) if raw.lstrip().startswith(_PEM) else x509.load_der_x509_crl(raw)
            # Parsed lazily: damage is to be found here and not in the middle of a decision.
            _ = (found.issuer.rfc4514_string(), found.last_update_utc, found.next_update_utc, found.signature_hash_algorithm)
    except LOAD_ERRORS as error:
        raise FormatError("not a revocation list", seen=str(error)[:200], wanted="a CRL in DER or PEM") from error
    return found


def check_revocation(
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    certificates: Sequence[x509.Certificate],
    *,
    at: datetime,
    max_age: timedelta | None = None,
) -> str:
    """Return what the list covers once none of ``certificates`` that ``issuer`` issued is on it.

    Raises ``VerificationError`` for a list that is another's, forged, not valid at ``at`` or older than ``max_age``, or names one of them.
    """
    key = issuer.public_key()
    try:
        signed = isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) and crl.is_signature_valid(key)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        signed = False
    if not signed or crl.issuer != issuer.subject:
        raise VerificationError(
            "the revocation list is not the issuer's",
            seen=crl.issuer.rfc4514_string()[:200],
            wanted=f"a list signed by {issuer.subject.rfc4514_string()[:200]}",
        )
    begin, end = crl.last_update_utc, crl.next_update_utc
    if max_age is not None:
        end = min(end, begin + max_age) if end is not None else begin + max_age
    if end is None or not begin <= at <= end:
        raise VerificationError(
            "the revocation list is not current",
            seen=time_text(at),
            wanted=f"{time_text(begin)} to {time_text(end) if end is not None else 'a stated end'}",
            fix="fetch the issuer's current list",
        )
    for certificate in certificates:
        if certificate.issuer == issuer.subject and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise VerificationError(
                "a certificate was revoked",
                seen=f"{certificate.subject.rfc4514_string()[:200]}, serial number {certificate.serial_number:x}",
                wanted="a certificate that its issuer has not revoked",
            )
    return f"{len(crl)} revoked, list of {time_text(begin)}"
