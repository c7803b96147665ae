"""The customer's keys on their way to the node. The server checks that a grant is for exactly this lease; it cannot open one.

1. the signature is by the identity that signed the job; only then is the payload parsed
2. lease, evidence and lease key are the ones that were attested; it has not expired
3. it carries a key for every input, and for nothing else
4. the policy, which was asked again with the facts of the node when its evidence came, still says yes
5. the lease is ``attested``, and no end was asked for: compare-and-swap, so that a second grant is refused
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from attestation.appraisal import Level
from attestation.canonical import sha256_digest
from attestation.evidence import Evidence
from attestation.grant import GRANT_PAYLOAD_TYPE, Grant
from attestation.signing import Envelope, VerifyKey, b64decode
from sandbox.control.access import SERVER, Caller
from sandbox.control.admission import Admission, admit_again
from sandbox.control.core import Control
from sandbox.control.database.models import LeaseInputRow, LeaseRow
from sandbox.control.story import ask_end, own_lease, require_state
from sandbox.control.transitions import advance, document, keep
from sandbox.errors import DeniedError, InputError, StateError
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.wire import Denial


def unlock(control: Control, caller: Caller, lease_id: str, envelope: Envelope) -> None:
    """Take the grant for an attested lease; the same grant again is the same as once.

    Raises ``SignatureError``, ``InputError`` (not for this lease), ``StateError`` (not attested, or another grant is there),
    or ``DeniedError`` when the policy refuses this node: the lease is then on its way to ``denied``.
    """
    raw = envelope.to_bytes()
    with control.database.write() as session:
        lease = own_lease(session, caller, lease_id)
        grant = Grant.from_payload(envelope.verify(GRANT_PAYLOAD_TYPE, [VerifyKey.from_text(lease.customer_key)]))
        if document(session, lease_id, "grant") == raw:
            admission = Admission(allowed=True, reasons=())
        elif lease.ending == Outcome.DENIED.value and lease.denials:
            admission = Admission(allowed=False, reasons=tuple(Denial.model_validate(each) for each in lease.denials))
        else:
            require_state(lease, LeaseState.ATTESTED)
            evidence = _evidence(session, lease_id)
            _check(control, session, grant, lease, evidence)
            admission = admit_again(session, lease, evidence[1], Level.from_label(str(lease.level)))
            if admission.allowed:
                ref = keep(session, lease_id, "grant", raw)
                advance(control, session, lease, LeaseState.UNLOCKED, actor=caller.token, evidence=ref, deadline=None)
            else:
                lease.denials = [each.model_dump() for each in admission.reasons]
                ask_end(control, session, lease, Outcome.DENIED, actor=SERVER)
    control.acknowledge(lease_id, f"node:{lease.node}", "waiting")
    if not admission.allowed:
        raise DeniedError(
            "the policy does not allow this job on this node",
            rule="policy",
            lease=lease_id,
            reasons=[each.model_dump() for each in admission.reasons],
        )


def _evidence(session: Session, lease: str) -> tuple[str, Evidence]:
    raw = document(session, lease, "evidence")
    if raw is None:
        raise StateError("there is no evidence yet", rule="lease-state", seen="none", wanted="an attested lease", fix="wait for 'attested'")
    return sha256_digest(raw), Evidence.from_payload(Envelope.from_bytes(raw).payload)


def _check(control: Control, session: Session, grant: Grant, lease: LeaseRow, attested: tuple[str, Evidence]) -> None:
    digest, evidence = attested
    inputs = sorted(session.scalars(select(LeaseInputRow.digest).where(LeaseInputRow.lease == lease.id)))
    named = sorted(key.bundle for key in grant.keys)
    key_digest = sha256_digest(b64decode(evidence.lease_public_key))
    for rule, seen, wanted in (
        ("grant-lease", grant.lease, lease.id),
        ("grant-evidence", grant.evidence_digest, digest),
        ("grant-lease-key", grant.lease_public_key_digest, key_digest),
        ("grant-bundles", ", ".join(named)[:500], ", ".join(inputs)[:500]),
    ):
        if seen != wanted:
            raise InputError(
                "this grant is not for this lease",
                rule=rule,
                seen=seen,
                wanted=wanted,
                fix="grant what the evidence of this very lease asks for",
            )
    if grant.expires_at <= control.now():
        raise InputError(
            "this grant has expired",
            rule="grant-expiry",
            seen=grant.expires_at.isoformat(),
            wanted="a time to come",
            fix="make a new grant",
        )
