"""Which policy applies to which tenant. The operator binds them; a change is in the audit log, with its author, before it counts.

A lease that a node has touched keeps the policy it was admitted under. A lease that still waits keeps it too, unless the new policy
would deny it: then it is denied with the new policy's reasons. A dry run says beforehand which ones.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from attestation.policy_change import unified_diff
from attestation.signing import Envelope, b64encode
from policies.loader import LoadedPolicy, load_policy
from sandbox.control.access import SERVER, Caller, ensure_tenant
from sandbox.control.admission import admit
from sandbox.control.core import Control
from sandbox.control.database.models import EventRow, LeaseRow, PolicyChangeRow, PolicyRow, TenantRow
from sandbox.control.policy_changes import keep_policy, record_change
from sandbox.control.transitions import advance, document, document_ref
from sandbox.errors import InputError, NotFoundError
from sandbox.job import parse_statement
from sandbox.lifecycle import BEFORE_NODE, LeaseState, Outcome
from sandbox.wire import LoggedPolicyChange, PolicyChange, PolicyInfo, QueueEffect


def show_policy(control: Control, tenant: str) -> PolicyInfo:
    """Return a tenant's policy. Raises ``NotFoundError``."""
    with control.database.read() as session:
        row = session.get(TenantRow, tenant)
        if row is None:
            raise NotFoundError(
                "no such tenant", rule="tenant", seen=tenant[:80], wanted="a tenant with a token", fix="see 'sealrig token list'"
            )
        return _info(session, row)


def list_policies(control: Control) -> list[PolicyInfo]:
    """Return every tenant's policy, by tenant."""
    with control.database.read() as session:
        return [
            _info(session, row) for row in session.scalars(select(TenantRow).where(TenantRow.erased_at.is_(None)).order_by(TenantRow.name))
        ]


def _info(session: Session, tenant: TenantRow) -> PolicyInfo:
    policy = session.get_one(PolicyRow, tenant.policy)
    return PolicyInfo(tenant=tenant.name, name=policy.name, digest=policy.digest, raw=b64encode(policy.raw))


def list_changes(control: Control, tenant: str, *, limit: int, before: int | None = None) -> list[LoggedPolicyChange]:
    """Return the changes of a tenant's policy, newest first; ``before`` is the log index to go on from."""
    query = (
        select(PolicyChangeRow, EventRow)
        .join(EventRow, PolicyChangeRow.event == EventRow.id)
        .where(PolicyChangeRow.tenant == tenant, EventRow.log_index.is_not(None))
        .order_by(PolicyChangeRow.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(EventRow.log_index < before)
    with control.database.read() as session:
        return [
            LoggedPolicyChange(
                tenant=tenant,
                log_index=event.log_index or 0,
                at=event.occurred_at,
                actor=event.actor,
                before=change.before,
                after=change.after,
                document=b64encode(change.data),
            )
            for change, event in session.execute(query)
        ]


def policy_text(control: Control, caller: Caller, digest: str) -> bytes:
    """Return a policy's exact bytes; a customer sees those that hold or held for its tenant. Raises ``NotFoundError``."""
    with control.database.read() as session:
        row = session.get(PolicyRow, digest)
        holds = select(TenantRow.name).where(TenantRow.name == caller.tenant, TenantRow.policy == digest)
        held = select(PolicyChangeRow.tenant).where(PolicyChangeRow.tenant == caller.tenant, PolicyChangeRow.after == digest)
        if row is not None and (caller.sees_all or session.scalars(holds.union_all(held).limit(1)).first() is not None):
            return row.raw
    raise NotFoundError(
        "no such policy", rule="policy-digest", seen=digest[:80], wanted="a policy that holds or held for a tenant of yours",
        fix="see 'sealrig policy history'",
    )  # fmt: skip


def change_document(control: Control, caller: Caller, digest: str) -> bytes:
    """Return the document of a change in its exact bytes; a customer sees those of its tenant. Raises ``NotFoundError``."""
    query = select(PolicyChangeRow.data).where(PolicyChangeRow.digest == digest).limit(1)
    if not caller.sees_all:
        query = query.where(PolicyChangeRow.tenant == caller.tenant)
    with control.database.read() as session:
        raw = session.scalar(query)
    if raw is None:
        raise NotFoundError(
            "no such change of a policy", rule="policy-change", seen=digest[:80], wanted="the evidence of a policy.applied entry",
            fix="see 'sealrig policy history'",
        )  # fmt: skip
    return raw


def apply_policy(control: Control, caller: Caller, tenant: str, raw: bytes, *, dry_run: bool) -> PolicyChange:
    """Bind a policy to a tenant, or only say what that would do. Raises ``PolicyError`` for bytes that are no policy."""
    loaded = load_policy(raw)
    require_safe(control, loaded)
    with control.database.write() as session:
        row = session.get(TenantRow, tenant, with_for_update=True)
        if row is not None or not dry_run:
            row = ensure_tenant(control, session, tenant, actor=caller.token)
        before = control.settings.policy if row is None else session.get_one(PolicyRow, row.policy)
        leases = list(
            session.scalars(
                select(LeaseRow)
                .where(LeaseRow.tenant == tenant, LeaseRow.state.in_([state.value for state in BEFORE_NODE]))
                .order_by(LeaseRow.created_at)
            )
        )
        effects = [(lease, _effect(session, lease, loaded)) for lease in leases]
        if row is not None and not dry_run:
            _bind(control, session, row, loaded, actor=caller.token)
            for lease, effect in effects:
                if not effect.allowed:
                    # The new policy is in the log as its own entry; a lease's entries name the documents of the lease.
                    advance(
                        control,
                        session,
                        lease,
                        LeaseState.DENIED,
                        actor=caller.token,
                        evidence=document_ref(session, lease.id, "policy"),
                        history_detail="denied by the policy that was applied",
                        outcome=Outcome.DENIED.value,
                        deadline=None,
                        denials=[each.model_dump() for each in effect.reasons],
                    )
    control.acknowledge(*(lease.id for lease, _ in effects))
    return PolicyChange(
        tenant=tenant,
        name=loaded.name,
        digest=loaded.digest,
        raw=b64encode(raw),
        applied=not dry_run,
        before=before.digest,
        diff=unified_diff(before.raw, loaded.raw, before.digest, loaded.digest),
        queued=tuple(effect for _, effect in effects),
    )


def _bind(control: Control, session: Session, row: TenantRow, loaded: LoadedPolicy, *, actor: str, pinned: bool = True) -> None:
    at, before = control.now(), session.get_one(PolicyRow, row.policy).raw
    keep_policy(session, loaded, at)
    row.policy, row.policy_pinned = loaded.digest, pinned
    record_change(control.journal, session, row, before, loaded, actor=actor, at=at)


def _effect(session: Session, lease: LeaseRow, loaded: LoadedPolicy) -> QueueEffect:
    job = document(session, lease.id, "job") or b""
    admission = admit(loaded.raw, parse_statement(Envelope.from_bytes(job).payload), lease.tenant, None)
    return QueueEffect(lease=lease.id, name=lease.name, allowed=admission.allowed, reasons=admission.reasons)


def require_safe(control: Control, policy: LoadedPolicy) -> None:
    """Raise ``InputError`` for a policy that says it is unsafe, whatever its name, on a server that was not started for it."""
    if policy.policy.spec.unsafe_development and not control.settings.unsafe_development:
        raise InputError(
            "this policy is for development and protects nobody",
            rule="policy-unsafe",
            seen=policy.name,
            wanted="strict, standard or your own",
            fix="start the server with --unsafe-development, on a machine where nothing matters",
        )


def follow_default(control: Control) -> None:
    """Bind the server's default policy to the tenants that follow it, where it has changed since the last start."""
    default = control.settings.policy
    with control.database.write() as session:
        for row in session.scalars(
            select(TenantRow).where(TenantRow.policy_pinned.is_(False), TenantRow.erased_at.is_(None), TenantRow.policy != default.digest)
        ):
            _bind(control, session, row, default, actor=SERVER, pinned=False)
    control.acknowledge()
