"""Binding a policy to a tenant: the text is kept once, the change becomes a document, and the audit log names it with who did it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from attestation.canonical import sha256_digest
from attestation.log.leaf import DocumentRef
from attestation.policy_change import POLICY_APPLIED, POLICY_CHANGE_MEDIA, describe_change
from policies.loader import LoadedPolicy
from sandbox.control.database.models import PolicyChangeRow, PolicyRow, TenantRow
from sandbox.control.journal import Journal


def keep_policy(session: Session, policy: LoadedPolicy, at: datetime) -> None:
    """Keep a policy's exact bytes."""
    if session.get(PolicyRow, policy.digest) is None:
        session.add(PolicyRow(digest=policy.digest, name=policy.name, raw=policy.raw, created_at=at))
        session.flush()


def record_change(
    journal: Journal, session: Session, tenant: TenantRow, before: bytes | None, after: LoadedPolicy, *, actor: str, at: datetime
) -> None:
    """Write down, in the running transaction, that ``after`` holds for a tenant from now on; ``before`` is None for its first policy."""
    raw = describe_change(tenant.ref, before, after.raw).to_payload()
    digest = sha256_digest(raw)
    event = journal.record(
        session, POLICY_APPLIED, actor=actor, tenant_ref=tenant.ref, resource=tenant.ref, at=at,
        evidence=DocumentRef(digest, POLICY_CHANGE_MEDIA), private={"tenant": tenant.name},
    )  # fmt: skip
    old = None if before is None else sha256_digest(before)
    session.add(PolicyChangeRow(tenant=tenant.name, event=event, before=old, after=after.digest, digest=digest, data=raw))
