"""Verifier's side of a TPM's enrolment: whether the endorsement key is accepted and the attestation key lives beside it.

Steps of ``make_challenge``: ``tpm-offer`` the offer is well formed · ``tpm-ek`` an endorsement key by its attributes, and the one in its
certificate · ``tpm-ek-basis`` its certificate leads to a given root, or its digest was approved · ``tpm-ak`` a restricted signing key that
its TPM made. Step of ``accept_answer``: ``tpm-answer`` the secret was opened, which only that TPM does, and only with that key in it.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.canonical import sha256_digest
from attestation.enrolment import Answer, Challenge, Offer, Pending, proof_of
from attestation.errors import AttestationError, VerificationError
from attestation.signing import b64decode, b64encode
from attestation.steps import Steps
from attestation.verify.certificates import load_chain, name_of, verified_path
from attestation.verify.statuses import NO_STATUS, StatusFiles, check_statuses
from attestation.verify.tpm_public import PublicArea, make_credential, parse_public

SECRET_BYTES = 32
_EK_PURPOSE = "2.23.133.8.1"  # tcg-kp-EKCertificate


@dataclass(frozen=True)
class Enrolled:
    """An attestation key that is proven to live in an accepted TPM: what goes below ``tpm.keys`` of a trust file."""

    node: str
    ak: str
    basis: str


def ek_digest(ek: PublicArea) -> str:
    """Return ``sha256:…`` over the DER of an endorsement key: what an operator compares and approves."""
    return sha256_digest(ek.der)


def make_challenge(
    raw: bytes,
    *,
    at: datetime,
    roots: Sequence[x509.Certificate] = (),
    intermediates: Sequence[x509.Certificate] = (),
    approved: Collection[str] = (),
    statuses: StatusFiles = NO_STATUS,
    status_max_age: timedelta | None = None,
) -> tuple[Challenge, Pending, Steps]:
    """Return the challenge to an offer, what to keep for the answer, and the steps. Raises ``VerificationError``.

    The EK is accepted if its digest is among ``approved``, or its certificate leads over ``intermediates`` to one of ``roots`` at ``at``.
    ``statuses`` are the makers' revocation lists; with ``status_max_age`` each certificate must be covered by one no older than that.
    """
    steps = Steps("the TPM's offer")
    try:
        offer = Offer.from_payload(raw)
        ek, ak = parse_public(b64decode(offer.ek)), parse_public(b64decode(offer.ak))
        certificate = load_chain(b64decode(offer.ek_certificate))[0] if offer.ek_certificate else None
    except AttestationError as error:
        steps.fail("tpm-offer", error)
    steps.check("tpm-offer", ok=True, seen=offer.node, wanted="a TPM's offer")
    _check_ek(ek, certificate, steps)
    basis, path = _basis(ek, certificate, at=at, roots=roots, intermediates=intermediates, approved=approved, steps=steps)
    if path:
        _check_revocation(path, statuses, at=at, max_age=status_max_age, steps=steps)
    steps.need(
        "tpm-ak",
        ok=ak.is_attestation_key,
        seen=f"attributes {ak.attributes:08x}, scheme {ak.scheme:04x}",
        wanted="made in the TPM, fixed to it, restricted, for signing only",
        fix="make the key with 'sealrig node attest offer'",
    )
    secret, digest = os.urandom(SECRET_BYTES), sha256_digest(raw)
    challenge = Challenge(node=offer.node, offer=digest, credential=b64encode(make_credential(ek, ak.name, secret)))
    pending = Pending(node=offer.node, offer=digest, ak=b64encode(ak.der), secret=b64encode(secret), basis=basis)
    return challenge, pending, steps


def accept_answer(raw: bytes, pending: Pending) -> Enrolled:
    """Return the key once the answer proves it. Raises ``VerificationError``."""
    steps = Steps("the TPM's answer")
    try:
        answer = Answer.from_payload(raw)
    except AttestationError as error:
        steps.fail("tpm-answer", error)
    proof = proof_of(b64decode(pending.secret), pending.node, pending.offer)
    same = (answer.node, answer.offer) == (pending.node, pending.offer) and hmac.compare_digest(answer.proof, proof)
    steps.need(
        "tpm-answer",
        ok=same,
        seen=f"{answer.node}, {answer.offer}",
        wanted=f"{pending.node}, {pending.offer}, with proof of the opened secret",
        fix="answer the latest challenge to this very offer, on the machine that made it",
    )
    return Enrolled(pending.node, pending.ak, pending.basis)


def _check_ek(ek: PublicArea, certificate: x509.Certificate | None, steps: Steps) -> None:
    certified = certificate is None or certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == ek.der
    steps.need(
        "tpm-ek",
        ok=ek.is_storage_key and certified,
        seen=f"attributes {ek.attributes:08x}, {ek_digest(ek)}" + ("" if certified else "; its certificate is for another key"),
        wanted="a restricted decryption key that the TPM made, the one in its certificate",
        fix="make the offer with 'sealrig node attest offer'",
    )


def _basis(
    ek: PublicArea,
    certificate: x509.Certificate | None,
    *,
    at: datetime,
    roots: Sequence[x509.Certificate],
    intermediates: Sequence[x509.Certificate],
    approved: Collection[str],
    steps: Steps,
) -> tuple[str, Sequence[x509.Certificate]]:
    """Take the step ``tpm-ek-basis``; return why the EK is accepted, and the certificates that say so, if any."""
    digest = ek_digest(ek)
    if digest in approved:
        steps.check("tpm-ek-basis", ok=True, seen=digest, wanted="an approved endorsement key")
        return f"approved endorsement key {digest}", ()
    fix = f"compare {digest} with what the machine itself shows, then approve it with --ek; or give its maker's roots with --ek-roots"
    try:
        path = verified_path(_path(certificate, intermediates, roots), roots, at)
    except VerificationError as error:
        error.details["fix"] = fix
        steps.fail("tpm-ek-basis", error)
    steps.check("tpm-ek-basis", ok=True, seen=name_of(path[-1]), wanted="a certificate under a given root")
    return f"endorsement key {digest} certified under {name_of(path[-1])}", path


def _check_revocation(
    path: Sequence[x509.Certificate], statuses: StatusFiles, *, at: datetime, max_age: timedelta | None, steps: Steps
) -> None:
    fix = "give the maker's current revocation list with --ek-crl; the certificates name its place (CRL distribution points)"
    try:
        seen = check_statuses([path], statuses, at=at, max_age=max_age, fix=fix)
    except AttestationError as error:
        error.details.setdefault("fix", fix)
        steps.fail("tpm-ek-revocation", error)
    steps.check("tpm-ek-revocation", ok=True, seen=seen, wanted="no revoked certificate")


def _path(leaf: x509.Certificate | None, pool: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Return the certificate and its issuers from ``pool``, up to the one that a root issued. Signatures are checked afterwards."""
    if leaf is None or not roots:
        raise VerificationError(
            "nothing vouches for the endorsement key",
            seen="no certificate" if leaf is None else "no roots",
            wanted="an approved key, or a certificate under a given root",
        )
    purposes = [extension.value for extension in leaf.extensions if isinstance(extension.value, x509.ExtendedKeyUsage)]
    if purposes and _EK_PURPOSE not in {purpose.dotted_string for purpose in purposes[0]}:
        raise VerificationError("the certificate is not an endorsement key's", seen="another purpose", wanted=_EK_PURPOSE)
    tops = {root.subject for root in roots}
    chain, left = [leaf], list(pool)
    while chain[-1].issuer not in tops:
        issuer = next((item for item in left if item.subject == chain[-1].issuer), None)
        if issuer is None:
            break
        left.remove(issuer)
        chain.append(issuer)
    return chain
