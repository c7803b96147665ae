"""The one place where a lease changes its state: compare-and-swap in SQL, with its history and its audit event in the same transaction."""

from __future__ import annotations

from datetime import datetime
from typing import cast

from sqlalchemy import CursorResult, select, update
from sqlalchemy.orm import Session

from attestation.canonical import sha256_digest
from attestation.chain import POLICY_FIELD
from attestation.log.leaf import DocumentRef
from sandbox.control.core import Control
from sandbox.control.database.models import DocumentRow, LeaseRow, ReportRow, TenantRow, TransitionRow
from sandbox.errors import StateError
from sandbox.lifecycle import LeaseState, check_transition
from sandbox.wire import DocumentKind

DSSE = "application/vnd.dsse.envelope.v1+json"
POLICY_MEDIA = "application/yaml"
PLAN_MEDIA = "application/json"


def advance(
    control: Control,
    session: Session,
    lease: LeaseRow,
    wanted: LeaseState,
    *,
    actor: str,
    evidence: DocumentRef,
    history_detail: str = "",
    occurred_at: datetime | None = None,
    **changes: object,
) -> None:
    """Take ``lease`` from the state in ``lease.state`` to ``wanted``, together with ``changes`` to its other columns.

    ``occurred_at``: when it happened, where that is not now.
    Raises ``StateError`` when that step does not exist, or when somebody else has moved the lease since the row was read: exactly one
    of two racing callers wins.
    """
    seen = LeaseState(lease.state)
    check_transition(lease.id, seen, wanted)
    at = control.now()
    values = {"state": wanted.value, "updated_at": at, **changes}
    result = session.execute(
        update(LeaseRow)
        .where(LeaseRow.id == lease.id, LeaseRow.state == seen.value)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    if cast("CursorResult[object]", result).rowcount != 1:
        raise StateError(
            f"lease {lease.id} has moved on", rule="lease-race", seen=f"no longer {seen}", wanted=str(seen), fix="read the lease again"
        )
    session.refresh(lease)
    note(control, session, lease, actor=actor, evidence=evidence, detail=history_detail, occurred_at=occurred_at)


def note(
    control: Control, session: Session, lease: LeaseRow, *, actor: str, evidence: DocumentRef, detail: str = "",
    occurred_at: datetime | None = None,
) -> None:  # fmt: skip
    """Write the history row and the audit event of the state that ``lease`` has just reached."""
    private = {"job-name": lease.name, "tenant": lease.tenant} if lease.state == LeaseState.SUBMITTED.value else {}
    # Signed documents have a digest that nobody can guess. A policy has not: many are the profiles that everybody has.
    hidden = evidence.media_type == POLICY_MEDIA
    if hidden:
        private[POLICY_FIELD] = evidence.digest
    event = control.journal.record(
        session, f"lease.{lease.state}", actor=actor, tenant_ref=tenant_ref(session, lease.tenant), resource=lease.id,
        at=lease.updated_at, outcome=lease.outcome or "done", evidence=None if hidden else evidence, private=private,
        occurred_at=occurred_at,
    )  # fmt: skip
    session.add(TransitionRow(lease=lease.id, state=lease.state, at=lease.updated_at, detail=detail[:2000], event=event))
    session.flush()
    control.metrics.transitions.labels(lease.state).inc()


def tenant_ref(session: Session, tenant: str) -> str:
    """Return a tenant's name in the public log."""
    return session.scalars(select(TenantRow.ref).where(TenantRow.name == tenant)).one()


def keep(session: Session, lease: str, kind: DocumentKind, data: bytes, media_type: str = DSSE) -> DocumentRef:
    """Store a document's exact bytes; return how the log refers to it."""
    digest = sha256_digest(data)
    session.add(DocumentRow(lease=lease, kind=kind, digest=digest, data=data))
    return DocumentRef(digest, media_type)


def keep_report(session: Session, lease: str, state: LeaseState, data: bytes) -> DocumentRef:
    """Store a node's signed report; return how the log refers to it."""
    digest = sha256_digest(data)
    session.add(ReportRow(lease=lease, state=state.value, digest=digest, data=data))
    return DocumentRef(digest, DSSE)


def document(session: Session, lease: str, kind: DocumentKind) -> bytes | None:
    """Return a document's exact bytes, or None while there is none."""
    return session.scalars(select(DocumentRow.data).where(DocumentRow.lease == lease, DocumentRow.kind == kind)).one_or_none()


def document_ref(session: Session, lease: str, kind: DocumentKind) -> DocumentRef:
    """Return how the log refers to a document that is there."""
    media = {"policy": POLICY_MEDIA, "plan": PLAN_MEDIA}.get(kind, DSSE)
    return DocumentRef(session.scalars(select(DocumentRow.digest).where(DocumentRow.lease == lease, DocumentRow.kind == kind)).one(), media)
