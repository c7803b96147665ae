"""X.509 chains up to pinned roots: signatures, authority to sign, path length, validity at a given time. No network, no system store."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib.resources import files

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from attestation.document import time_text
from attestation.errors import FormatError, LimitError, VerificationError

MAX_CHAIN = 8
MAX_CHAIN_BYTES = 64 * 1024
_WARNINGS = threading.Lock()
LOAD_ERRORS = (
    ValueError,
    TypeError,
    UserWarning,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What loading damaged DER raises, inside ``warnings_as_errors``."""
_PEM = b"-----BEGIN CERTIFICATE-----"


def load_chain(raw: bytes) -> list[x509.Certificate]:
    """Load one DER certificate or some PEM ones, in their order. Raises ``FormatError`` or ``LimitError``."""
    if len(raw) > MAX_CHAIN_BYTES:
        raise LimitError("a certificate chain is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_CHAIN_BYTES} bytes")
    try:
        with warnings_as_errors():
            found = x509.load_pem_x509_certificates(raw) if _PEM in raw else [x509.load_der_x509_certificate(raw)]
            for certificate in found:
                _parse_whole(certificate)
    except LOAD_ERRORS as error:
        raise FormatError("not X.509 certificates", seen=str(error)[:200], wanted="PEM or DER certificates") from error
    if len(found) > MAX_CHAIN:
        raise LimitError("too many certificates", seen=str(len(found)), wanted=f"≤ {MAX_CHAIN}")
    return found


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    """Raise what the loader would only warn of, such as names of impossible length, so that it is refused.

    AMD's VCEK certificates carry the serial number 0, which it warns of too, and which does no harm.
    """
    # Filters are the process's, not the thread's.
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


def _parse_whole(certificate: x509.Certificate) -> None:
    """Touch what is parsed lazily, so that damage is found while loading and not in the middle of a decision."""
    certificate.public_key()
    for extension in certificate.extensions:
        if extension.value is None:
            raise ValueError(extension.oid.dotted_string)
    for name in (certificate.subject, certificate.issuer):
        name.rfc4514_string()
    if certificate.not_valid_before_utc > certificate.not_valid_after_utc:
        raise ValueError(certificate.not_valid_before_utc.isoformat())


@cache
def packaged_roots(name: str) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a file among the packaged roots."""
    return tuple(load_chain(files("attestation.verify").joinpath("roots", name).read_bytes()))


def same(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Say whether two certificates are the same bytes."""
    return one.public_bytes(Encoding.DER) == other.public_bytes(Encoding.DER)


def verify_chain(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime) -> str:
    """Return the root's name once ``chain`` leads to one of ``roots`` at ``at``. Raises as ``verified_path`` does."""
    return name_of(verified_path(chain, roots, at)[-1])


def verified_path(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime) -> list[x509.Certificate]:
    """Return ``chain`` up to its root once it (leaf first; the root itself may stand at its end) leads to one of ``roots`` at ``at``.

    Raises ``VerificationError`` naming the certificate that does not fit.
    """
    if not chain or not roots:
        raise VerificationError("no certificate chain", seen=f"{len(chain)} certificates, {len(roots)} roots", wanted="a chain and a root")
    path = list(chain)
    if not any(same(path[-1], root) for root in roots):
        path.append(_issuer(path[-1], roots))
    for place, certificate in enumerate(path):
        _check_validity(certificate, at)
        if place:
            _check_authority(certificate, below=place - 1)
            _check_issued(path[place - 1], certificate)
    return path


def _issuer(last: x509.Certificate, roots: Sequence[x509.Certificate]) -> x509.Certificate:
    for root in roots:
        try:
            _check_issued(last, root)
        except VerificationError:
            continue
        return root
    raise VerificationError("the chain ends at an unknown root", seen=name_of(last), wanted=" or ".join(name_of(root) for root in roots))


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise VerificationError(
            f"{name_of(certificate)} was not issued by {name_of(issuer)}",
            seen=str(error)[:200] or "a wrong signature",
            wanted=f"a signature by {name_of(issuer)}",
        ) from error


def _check_authority(certificate: x509.Certificate, *, below: int) -> None:
    """Require a CA that may sign certificates and allows this many issuers below it."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        basic = x509.BasicConstraints(ca=False, path_length=None)
    try:
        may_sign = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        may_sign = True
    if not basic.ca or not may_sign or (basic.path_length is not None and below > basic.path_length):
        raise VerificationError(
            f"{name_of(certificate)} may not issue this certificate",
            seen=f"CA {basic.ca}, path length {basic.path_length}",
            wanted=f"a CA with {below} below it",
        )


def _check_validity(certificate: x509.Certificate, at: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= at <= end:
        raise VerificationError(
            f"{name_of(certificate)} is not valid at that time", seen=time_text(at), wanted=f"{time_text(begin)} to {time_text(end)}"
        )


def name_of(certificate: x509.Certificate) -> str:
    """Return the name by which people know a certificate."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value)[:100] if names else certificate.subject.rfc4514_string()[:100]
