"""Whether certificates of a verified chain were revoked, from files: revocation lists and OCSP responses, whichever the issuer offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography import x509

from attestation.document import time_text
from attestation.errors import LimitError, VerificationError
from attestation.verify.certificates import name_of
from attestation.verify.ocsp import check_ocsp, load_ocsp
from attestation.verify.revocation import check_revocation, load_crl

MAX_STATUS_FILES = 64


@dataclass(frozen=True)
class StatusFiles:
    """Revocation lists and OCSP responses as they came, in DER (lists also in PEM)."""

    crls: Sequence[bytes] = ()
    ocsp: Sequence[bytes] = ()


NO_STATUS = StatusFiles()


def check_statuses(
    paths: Sequence[Sequence[x509.Certificate]], files: StatusFiles, *, at: datetime, max_age: timedelta | None, fix: str
) -> str:
    """Return what is known once nothing known speaks against a certificate of ``paths`` (each leaf first, verified up to its root).

    With ``max_age`` every certificate below the roots must be covered by a list or response no older than that; without, what there is
    must be current and good. Raises ``VerificationError``, ``FormatError`` or ``LimitError``; ``fix`` says where statuses are had.
    """
    if len(files.crls) + len(files.ocsp) > MAX_STATUS_FILES:
        raise LimitError("too many revocation files", seen=str(len(files.crls) + len(files.ocsp)), wanted=f"≤ {MAX_STATUS_FILES}")
    lists, responses = [load_crl(raw) for raw in files.crls], [load_ocsp(raw) for raw in files.ocsp]
    covered, uncovered, dates = 0, [], []
    for path in paths:
        for certificate, issuer in pairwise(path):
            date = check_ocsp(responses, certificate, issuer, at=at, max_age=max_age)
            for crl in lists:
                if crl.issuer == issuer.subject:
                    check_revocation(crl, issuer, [certificate], at=at, max_age=max_age)
                    date = crl.last_update_utc if date is None else max(date, crl.last_update_utc)
            if date is None:
                uncovered.append(name_of(certificate))
            else:
                covered += 1
                dates.append(date)
    if max_age is not None and uncovered:
        raise VerificationError(
            "the revocation status of a certificate is not known",
            seen=f"nothing about {', '.join(dict.fromkeys(uncovered))}"[:400],
            wanted=f"a revocation list or OCSP response for each of {covered + len(uncovered)} certificates",
            fix=fix,
        )
    if not dates:
        return "not compared: no list or response was given"
    return f"{covered} of {covered + len(uncovered)} certificates good, as of {time_text(min(dates))}"
