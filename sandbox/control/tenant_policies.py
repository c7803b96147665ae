"""Which policy applies to which tenant. Policies are bound by the operator; a change is in the audit log before it counts.

A lease that a node has touched keeps the policy it was admitted under. A lease that still waits keeps it too, unless the new policy
would deny it: then it is denied with the new policy's reasons. A dry run says beforehand which ones.
"""

from __future__ import annotations

import difflib

from sqlalchemy import select
from sqlalchemy.orm import Session

from attestation.log.leaf import DocumentRef
from attestation.signing import Envelope, b64encode
from policies.loader import LoadedPolicy, load_policy
from sandbox.control.access import SERVER, Caller, ensure_policy, ensure_tenant
from sandbox.control.admission import admit
from sandbox.control.core import Control
from sandbox.control.database.models import LeaseRow, PolicyRow, TenantRow
from sandbox.control.transitions import POLICY_MEDIA, advance, document, document_ref
from sandbox.errors import InputError, NotFoundError
from sandbox.job import parse_statement
from sandbox.lifecycle import BEFORE_NODE, LeaseState, Outcome
from sandbox.wire import PolicyChange, PolicyInfo, QueueEffect

MAX_DIFF_LINES = 400


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
        return [_info(session, row) for row in session.scalars(select(TenantRow).order_by(TenantRow.name))]


def _info(session: Session, tenant: TenantRow) -> PolicyInfo:
    policy = session.get_one(PolicyRow, tenant.policy)
    return PolicyInfo(tenant=tenant.name, name=policy.name, digest=policy.digest, raw=b64encode(policy.raw))


def apply_policy(control: Control, caller: Caller, tenant: str, raw: bytes, *, dry_run: bool) -> PolicyChange:
    """Bind a policy to a tenant, or only say what that would do. Raises ``PolicyError`` for bytes that are no policy."""
    loaded = load_policy(raw)
    require_safe(control, loaded)
    with control.database.write() as session:
        row = session.get(TenantRow, tenant, with_for_update=True)
        if row is None and dry_run:
            raise NotFoundError(
                "no such tenant", rule="tenant", seen=tenant[:80], wanted="a tenant with a token", fix="see 'sealrig token list'"
            )
        row = row or ensure_tenant(control, session, tenant)
        before = session.get_one(PolicyRow, row.policy)
        leases = list(
            session.scalars(
                select(LeaseRow)
                .where(LeaseRow.tenant == tenant, LeaseRow.state.in_([state.value for state in BEFORE_NODE]))
                .order_by(LeaseRow.created_at)
            )
        )
        effects = [(lease, _effect(session, lease, loaded)) for lease in leases]
        if not dry_run:
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
        diff=_diff(before, loaded),
        queued=tuple(effect for _, effect in effects),
    )


def _bind(control: Control, session: Session, row: TenantRow, loaded: LoadedPolicy, *, actor: str, pinned: bool = True) -> None:
    at = control.now()
    ensure_policy(session, loaded.digest, loaded.name, loaded.raw, at)
    row.policy, row.policy_pinned = loaded.digest, pinned
    control.journal.record(
        session,
        "policy.applied",
        actor=actor,
        tenant_ref=row.ref,
        resource=loaded.digest,
        at=at,
        evidence=DocumentRef(loaded.digest, POLICY_MEDIA),
    )


def _effect(session: Session, lease: LeaseRow, loaded: LoadedPolicy) -> QueueEffect:
    job = document(session, lease.id, "job") or b""
    admission = admit(loaded.raw, parse_statement(Envelope.from_bytes(job).payload), lease.tenant, None)
    return QueueEffect(lease=lease.id, name=lease.name, allowed=admission.allowed, reasons=admission.reasons)


def _diff(before: PolicyRow, after: LoadedPolicy) -> str:
    lines = difflib.unified_diff(
        before.raw.decode(errors="replace").splitlines(),
        after.raw.decode(errors="replace").splitlines(),
        before.digest,
        after.digest,
        lineterm="",
    )
    return "\n".join(list(lines)[:MAX_DIFF_LINES])


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
        for row in session.scalars(select(TenantRow).where(TenantRow.policy_pinned.is_(False), TenantRow.policy != default.digest)):
            _bind(control, session, row, default, actor=SERVER, pinned=False)
    control.acknowledge()
