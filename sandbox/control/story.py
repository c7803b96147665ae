"""The story of a lease on the server: one function for each step that a customer, an agent or the clock takes.

::

    submit     customer    → submitted → admitted | denied     (admission.py: the policy, with every reason)
    place      node polls  → placed                            (placement/: who has room)
    set_nonce  agent       the nonce that evidence must answer
    attested … node        → attested, running, … closed       (reports.py: what a node may say, and how it is checked)
    unlock     agent       → unlocked                          (grants.py: the keys, wrapped to the attested lease key)
    refuse     agent       asks for the end: denied
    cancel     customer    → cancelled, or asks the node for the end
    expire     clock       → expired, or asks the node for the end

Before a node was touched an end is a state; afterwards it is a wish (``ending``) that the node hears at its next poll, wipes,
and reports. Nothing here runs in the background of a request: an answer means that the step is in database and audit log.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from attestation.canonical import parse_json, sha256_digest
from attestation.signing import Envelope
from sandbox.control.access import SERVER, Caller
from sandbox.control.admission import Admission, admit
from sandbox.control.core import Control
from sandbox.control.customers import customer_key
from sandbox.control.database.models import BundleOwnerRow, LeaseInputRow, LeaseRow, PolicyRow, TenantRow
from sandbox.control.transitions import POLICY_MEDIA, advance, document_ref, keep, note, tenant_ref
from sandbox.errors import DeniedError, JobError, LimitError, NotFoundError, StateError
from sandbox.job import JOB_PAYLOAD_TYPE, JobStatement, parse_statement
from sandbox.lifecycle import BEFORE_NODE, KEY_MAY_BE_OUT, TERMINAL, LeaseState, Outcome
from sandbox.wire import Denial

S = LeaseState


def submit(control: Control, caller: Caller, envelope: Envelope) -> tuple[str, bool]:
    """Take in a signed job and decide on it. Returns the lease's id and whether it is new.

    The same signed job again is the same lease, with the same answer. Raises ``SignatureError`` for a job that an enrolled identity of the
    tenant did not sign, ``JobError`` for one that is not acceptable, ``StateError`` when the policy changed or the id is taken,
    ``DeniedError`` with every reason when the policy says no (the lease then exists, as ``denied``).
    """
    statement, key = _verified(control, caller, envelope)
    raw = envelope.to_bytes()
    with control.database.write() as session:
        known = session.get(LeaseRow, statement.lease)
        if known is None:
            admission = _admit_new(control, session, caller, statement, raw=raw, key=key)
            new = True
        else:
            if known.tenant != caller.tenant or known.job_digest != sha256_digest(raw):
                raise StateError(
                    "this lease id is taken",
                    rule="lease-id",
                    seen=statement.lease,
                    wanted="a fresh id for each signed job",
                    fix="submit the job again, signed anew",
                )
            admission = Admission(not known.denials, tuple(Denial.model_validate(item) for item in known.denials))
            new = False
    control.acknowledge("queue", statement.lease)
    if not admission.allowed:
        raise DeniedError(
            "the policy does not allow this job",
            rule="policy",
            lease=statement.lease,
            reasons=[each.model_dump() for each in admission.reasons],
        )
    return statement.lease, new


def _verified(control: Control, caller: Caller, envelope: Envelope) -> tuple[JobStatement, str]:
    """Verify, then parse. The claimed identity is only used to look up the enrolled key that must have signed."""
    tree = parse_json(envelope.payload)
    claimed = tree.get("customer") if isinstance(tree, dict) else None
    key = customer_key(control, caller.tenant, claimed)
    statement = parse_statement(envelope.verify(JOB_PAYLOAD_TYPE, [key]))
    if statement.tenant != caller.tenant:
        raise JobError(
            "this job was signed for another tenant",
            rule="job-tenant",
            seen=statement.tenant,
            wanted=caller.tenant,
            fix="use the token of the tenant that the job is for",
        )
    return statement, key.text


def _admit_new(control: Control, session: Session, caller: Caller, statement: JobStatement, *, raw: bytes, key: str) -> Admission:
    tenant = session.get_one(TenantRow, caller.tenant)
    policy = session.get_one(PolicyRow, tenant.policy)
    if statement.policy_digest != policy.digest:
        raise StateError(
            "the policy is not the one this job was signed under",
            rule="policy-digest",
            seen=statement.policy_digest,
            wanted=policy.digest,
            fix="look at the policy that applies now ('sealrig policy show'), then submit again",
        )
    _require_room(control, session, caller.tenant)
    inputs = tuple(dict.fromkeys(item.bundle for item in statement.job.spec.inputs))
    _require_bundles(session, caller.tenant, inputs)
    spec, at = statement.job.spec, control.now()
    lease = LeaseRow(
        id=statement.lease,
        tenant=caller.tenant,
        name=statement.job.metadata.name,
        state=S.SUBMITTED.value,
        state_before_wipe=None,
        ending=None,
        outcome=None,
        exit_code=None,
        detail="",
        denials=[],
        image=spec.image,
        job_digest=sha256_digest(raw),
        policy_digest=policy.digest,
        customer_key=key,
        node=None,
        nonce=None,
        level=None,
        result=None,
        cpus=spec.resources.cpus,
        memory=spec.resources.memory,
        scratch=spec.resources.scratch,
        gpus=spec.resources.gpus,
        gpu_memory=spec.resources.gpu_memory,
        isolation=spec.isolation,
        output_max=spec.output.max_size,
        deadline=at + timedelta(seconds=control.settings.limits.queue_seconds),
        created_at=at,
        updated_at=at,
    )
    session.add(lease)
    session.flush()
    session.add_all(LeaseInputRow(lease=lease.id, digest=digest) for digest in inputs)
    job = keep(session, lease.id, "job", raw)
    policy_ref = keep(session, lease.id, "policy", policy.raw, POLICY_MEDIA)
    note(control, session, lease, actor=caller.token, evidence=job)
    admission = admit(policy.raw, statement, caller.tenant, None)
    if admission.allowed:
        advance(control, session, lease, S.ADMITTED, actor=SERVER, evidence=policy_ref)
    else:
        advance(
            control,
            session,
            lease,
            S.DENIED,
            actor=SERVER,
            evidence=policy_ref,
            history_detail=admission.reasons[0].rule,
            **_denied(admission),
        )
    return admission


def _denied(admission: Admission) -> dict[str, Any]:
    return {"denials": [each.model_dump() for each in admission.reasons], "outcome": Outcome.DENIED.value, "deadline": None}


def _require_room(control: Control, session: Session, tenant: str) -> None:
    most = control.settings.limits.leases_per_tenant
    live = session.scalar(
        select(func.count())
        .select_from(LeaseRow)
        .where(LeaseRow.tenant == tenant, LeaseRow.state.not_in([state.value for state in TERMINAL]))
    )
    if (live or 0) >= most:
        raise LimitError(
            "too many leases at once",
            rule="leases-per-tenant",
            seen=f"{live} leases",
            wanted=f"fewer than {most}",
            fix="wait for some to end, or cancel some",
        )


def _require_bundles(session: Session, tenant: str, inputs: tuple[str, ...]) -> None:
    found = set(session.scalars(select(BundleOwnerRow.digest).where(BundleOwnerRow.tenant == tenant, BundleOwnerRow.digest.in_(inputs))))
    for digest in inputs:
        if digest not in found:
            raise JobError(
                f"bundle {digest} is not on this server",
                rule="job-inputs",
                seen=digest,
                wanted="a bundle that was pushed",
                fix="push it: 'sealrig push FILE'",
            )


def set_nonce(control: Control, caller: Caller, lease_id: str, nonce: str) -> None:
    """Take the release agent's nonce for a placed lease. The first one stays: evidence may be in the making already.

    Raises ``NotFoundError`` or ``StateError``.
    """
    with control.database.write() as session:
        lease = own_lease(session, caller, lease_id)
        if lease.nonce is not None and lease.nonce != nonce:
            raise StateError(
                "this lease has a nonce already",
                rule="nonce",
                seen="another nonce",
                wanted="one nonce a lease",
                fix="let the agent that set it go on, or cancel the lease",
            )
        if lease.nonce is None:
            require_state(lease, S.PLACED)
            lease.nonce = nonce
            lease.updated_at = control.now()
    control.acknowledge(lease_id, f"node:{lease.node}", "waiting")


def refuse(control: Control, caller: Caller, lease_id: str, reasons: tuple[Denial, ...]) -> None:
    """Take the release agent's no: the node is asked to wipe and the lease ends ``denied``."""
    with control.database.write() as session:
        lease = own_lease(session, caller, lease_id)
        if lease.ending != Outcome.DENIED.value:
            require_state(lease, S.PLACED, S.ATTESTED)
            lease.denials = [each.model_dump() for each in reasons]
            ask_end(control, session, lease, Outcome.DENIED, actor=caller.token)
    control.acknowledge(lease_id, f"node:{lease.node}", "waiting")


def cancel(control: Control, caller: Caller, lease_id: str) -> None:
    """End a lease at the customer's (or operator's) wish. Cancelling twice is the same as once. Raises ``StateError`` once it has ended."""
    _stop(control, caller, lease_id, Outcome.CANCELLED)


def revoke(control: Control, caller: Caller, lease_id: str) -> None:
    """Take the keys back: the node stops and wipes. Before any key was out it is a cancellation."""
    _stop(control, caller, lease_id, Outcome.REVOKED)


def _stop(control: Control, caller: Caller, lease_id: str, outcome: Outcome) -> None:
    with control.database.write() as session:
        lease = own_lease(session, caller, lease_id)
        state = LeaseState(lease.state)
        if state in BEFORE_NODE:
            advance(control, session, lease, S.CANCELLED, actor=caller.token, evidence=document_ref(session, lease.id, "job"),
                    outcome=Outcome.CANCELLED.value, deadline=None)  # fmt: skip
        elif state is S.CANCELLED or (lease.ending and state not in TERMINAL):
            pass
        elif state in TERMINAL or state is S.WIPING:
            raise StateError(
                f"lease {lease_id} is ending or has ended",
                rule="lease-state",
                seen=lease.state,
                wanted="a lease that is under way",
                fix="nothing to do",
            )
        else:
            ask_end(control, session, lease, outcome if state in KEY_MAY_BE_OUT else Outcome.CANCELLED, actor=caller.token)
    control.acknowledge(lease_id, f"node:{lease.node}", "waiting")


def ask_end(control: Control, session: Session, lease: LeaseRow, outcome: Outcome, *, actor: str) -> None:
    """Write the wish that the node end this lease with ``outcome``; the first wish stays."""
    if lease.ending is None:
        lease.ending = outcome.value
        lease.updated_at = control.now()
        control.journal.record(
            session, "lease.ending", actor=actor, tenant_ref=tenant_ref(session, lease.tenant), resource=lease.id, at=lease.updated_at,
            outcome=outcome.value, evidence=document_ref(session, lease.id, "job"),
        )  # fmt: skip


def expire(control: Control, lease_id: str) -> None:
    """End a lease whose waiting time is over: at once while no node was touched, else through the node's wipe.

    A lease for which a key may be out is left alone: its own time limit ends it, on the node.
    """
    with control.database.write() as session:
        lease = session.get_one(LeaseRow, lease_id)
        if lease.deadline is None or lease.deadline > control.now():
            return
        state = LeaseState(lease.state)
        if state in BEFORE_NODE:
            advance(control, session, lease, S.EXPIRED, actor=SERVER, evidence=document_ref(session, lease.id, "job"),
                    history_detail="no node took it in time", outcome=Outcome.EXPIRED.value, deadline=None)  # fmt: skip
        elif state in {S.PLACED, S.ATTESTED}:
            ask_end(control, session, lease, Outcome.EXPIRED, actor=SERVER)
            lease.deadline = None
    control.acknowledge(lease_id, f"node:{lease.node}", "waiting")


def own_lease(session: Session, caller: Caller, lease_id: str) -> LeaseRow:
    """Return a lease that the caller may act on. Raises ``NotFoundError``, the same for one of another tenant as for none."""
    lease = session.get(LeaseRow, lease_id, with_for_update=True)
    if lease is None or not (caller.sees_all or lease.tenant == caller.tenant):
        raise no_lease(lease_id)
    return lease


def no_lease(lease_id: str) -> NotFoundError:
    """Return the answer for a lease that does not exist, or not for this caller."""
    return NotFoundError("no such lease", rule="lease", seen=lease_id[:80], wanted="a lease of your tenant", fix="see 'sealrig lease list'")


def require_state(lease: LeaseRow, *wanted: LeaseState) -> None:
    """Raise ``StateError`` unless the lease is in one of these states and no end was asked for."""
    if lease.state not in {state.value for state in wanted} or lease.ending is not None:
        seen = f"{lease.state}, ending as {lease.ending}" if lease.ending else lease.state
        raise StateError(
            f"lease {lease.id} is not in a state that allows this",
            rule="lease-state",
            seen=seen,
            wanted=" or ".join(wanted),
            fix="read the lease again",
        )
