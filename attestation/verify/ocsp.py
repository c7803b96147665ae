"""Answers of OCSP responders, kept in files: signed by the issuer or its delegate, current, and ``good`` for a certificate (RFC 6960).

An answer from a file cannot carry a nonce of ours; its age is what bounds how long a revocation may stay unseen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestation.document import time_text
from attestation.errors import FormatError, LimitError, VerificationError
from attestation.verify.certificates import LOAD_ERRORS, load_chain, warnings_as_errors

MAX_OCSP_BYTES = 64 * 1024
MAX_ANSWERS = 16
"""How many answers one file may hold."""


def load_ocsp(raw: bytes) -> ocsp.OCSPResponse:
    """Load a responder's answer (DER). Raises ``FormatError`` or ``LimitError``; also for an answer that is only an error."""
    if len(raw) > MAX_OCSP_BYTES:
        raise LimitError("an OCSP response is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_OCSP_BYTES} bytes")
    try:
        with warnings_as_errors():
            found = ocsp.load_der_ocsp_response(raw)
            if found.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
                raise FormatError("the OCSP responder gave no answer", seen=found.response_status.name.lower(), wanted="successful")
            singles = list(found.responses)
            for single in singles:
                # Parsed lazily: damage is to be found here and not in the middle of a decision.
                _ = (single.certificate_status, single.revocation_reason, single.this_update_utc, single.next_update_utc)
                _ = (single.issuer_key_hash, single.issuer_name_hash, single.hash_algorithm, single.serial_number)
            _ = (found.signature, found.tbs_response_bytes, found.signature_hash_algorithm, found.certificates)
    except LOAD_ERRORS as error:
        raise FormatError("not an OCSP response", seen=str(error)[:200], wanted="a response in DER") from error
    if len(singles) > MAX_ANSWERS:
        raise LimitError("an OCSP response has too many answers", seen=str(len(singles)), wanted=f"≤ {MAX_ANSWERS}")
    return found


def check_ocsp(
    responses: Sequence[ocsp.OCSPResponse],
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    *,
    at: datetime,
    max_age: timedelta | None = None,
) -> datetime | None:
    """Return the date of the newest answer about ``certificate``, once it is good; None where no response is about it.

    Raises ``VerificationError`` where an answer is not the issuer's, is not current at ``at``, or says anything but good.
    """
    newest: datetime | None = None
    for response in responses:
        for single in response.responses:
            if not _is_about(single, certificate, issuer):
                continue
            _check_signed(response, issuer, at)
            begin, end = single.this_update_utc, single.next_update_utc
            if max_age is not None:
                end = begin + max_age if end is None else min(end, begin + max_age)
            if end is None or not begin <= at <= end:
                raise VerificationError(
                    "the OCSP response is not current",
                    seen=time_text(at),
                    wanted=f"{time_text(begin)} to {time_text(end) if end is not None else 'a stated end'}",
                    fix="ask the issuer's responder again",
                )
            if single.certificate_status is not ocsp.OCSPCertStatus.GOOD:
                reason = "" if single.revocation_reason is None else f", {single.revocation_reason.name}"
                raise VerificationError(
                    "a certificate was revoked",
                    seen=f"{certificate.subject.rfc4514_string()[:200]}: {single.certificate_status.name.lower()}{reason}",
                    wanted="good",
                )
            newest = begin if newest is None else max(newest, begin)
    return newest


def _is_about(single: ocsp.OCSPSingleResponse, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if single.serial_number != certificate.serial_number or certificate.issuer != issuer.subject:
        return False
    name, key = hashes.Hash(single.hash_algorithm), hashes.Hash(single.hash_algorithm)
    name.update(issuer.subject.public_bytes())
    key.update(_key_bits(issuer))
    return single.issuer_name_hash == name.finalize() and single.issuer_key_hash == key.finalize()


def _key_bits(certificate: x509.Certificate) -> bytes:
    """Return what RFC 6960 hashes of a key: the value of its BIT STRING."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if isinstance(key, rsa.RSAPublicKey):
        return key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    raise FormatError("an issuer with an unknown kind of key", seen=type(key).__name__, wanted="RSA or an elliptic curve")


def _check_signed(response: ocsp.OCSPResponse, issuer: x509.Certificate, at: datetime) -> None:
    """Require the issuer's own signature, or that of a responder to which the issuer itself gave this one task."""
    if _signed_by(response, issuer):
        return
    for raw in response.certificates[:MAX_ANSWERS]:
        delegate = load_chain(raw.public_bytes(Encoding.DER))[0]
        if _may_answer(delegate, issuer, at) and _signed_by(response, delegate):
            return
    raise VerificationError(
        "the OCSP response is not the issuer's",
        seen="another signer",
        wanted=f"a signature by {issuer.subject.rfc4514_string()[:200]} or its responder",
    )


def _may_answer(delegate: x509.Certificate, issuer: x509.Certificate, at: datetime) -> bool:
    if not delegate.not_valid_before_utc <= at <= delegate.not_valid_after_utc:
        return False
    purposes: list[x509.ObjectIdentifier] = []
    with contextlib.suppress(x509.ExtensionNotFound):
        purposes = list(delegate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    try:
        delegate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in purposes


def _signed_by(response: ocsp.OCSPResponse, certificate: x509.Certificate) -> bool:
    key, algorithm = certificate.public_key(), response.signature_hash_algorithm
    if algorithm is None:
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), algorithm)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
