"""Leases as their tenant, operators and auditors read them. Reads only."""

from __future__ import annotations

import math

from sqlalchemy import select
from sqlalchemy.orm import Session

from attestation.canonical import canonical_json, sha256_digest
from attestation.chain import POLICY_FIELD
from attestation.log.keychain import read_handovers
from attestation.log.leaf import Leaf
from attestation.log.reader import LogReader
from attestation.receipt import MAX_HANDOVERS, build_receipt
from attestation.run import RunRecord
from attestation.signing import Envelope, b64encode
from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import DocumentRow, EventRow, LeaseRow, LogChunkRow, TransitionRow
from sandbox.control.entries import require_published
from sandbox.control.erasure import openings_of
from sandbox.control.story import no_lease
from sandbox.control.transitions import document
from sandbox.errors import NotFoundError, StateError
from sandbox.lifecycle import TERMINAL, LeaseState, Outcome
from sandbox.wire import MAX_PAGE, Denial, EvidenceInfo, LeaseInfo, LogChunk, LogPage, Transition, WaitingLeases

LOG_PAGE_BYTES = 4 * 2**20


def visible_lease(session: Session, caller: Caller, lease_id: str) -> LeaseRow:
    """Return a lease that the caller may read: its own tenant's, its own node's, or any for operators and auditors."""
    lease = session.get(LeaseRow, lease_id)
    allowed = lease is not None and (
        caller.sees_all or (lease.node == caller.node if caller.role == "node" else lease.tenant == caller.tenant)
    )
    if lease is None or not allowed:
        raise no_lease(lease_id)
    return lease


def show_lease(control: Control, caller: Caller, lease_id: str) -> LeaseInfo:
    """Return one lease with its history. Raises ``NotFoundError``."""
    with control.database.read() as session:
        return _info(session, visible_lease(session, caller, lease_id))


def list_leases(control: Control, caller: Caller, state: LeaseState | None, limit: int, before: str | None) -> list[LeaseInfo]:
    """Return leases, newest first; ``before`` is the last id of the page before. Raises ``NotFoundError`` for a foreign one."""
    with control.database.read() as session:
        query = select(LeaseRow).order_by(LeaseRow.created_at.desc(), LeaseRow.id.desc()).limit(limit)
        if not caller.sees_all:
            query = query.where(LeaseRow.tenant == caller.tenant)
        if state is not None:
            query = query.where(LeaseRow.state == state.value)
        if before is not None:
            last = visible_lease(session, caller, before)
            query = query.where(
                (LeaseRow.created_at < last.created_at) | ((LeaseRow.created_at == last.created_at) & (LeaseRow.id < last.id))
            )
        return [_info(session, row) for row in session.scalars(query)]


def waiting_leases(control: Control, caller: Caller) -> WaitingLeases:
    """Return the tenant's leases that wait for its release agent, oldest first."""
    with control.database.read() as session:
        query = (
            select(LeaseRow)
            .where(
                LeaseRow.tenant == caller.tenant,
                LeaseRow.state.in_([LeaseState.PLACED.value, LeaseState.ATTESTED.value]),
                LeaseRow.ending.is_(None),
            )
            .order_by(LeaseRow.created_at, LeaseRow.id)
            .limit(MAX_PAGE)
        )
        leases = tuple(_info(session, row) for row in session.scalars(query))
    mark = sha256_digest(canonical_json([[lease.id, lease.state.value] for lease in leases]))
    return WaitingLeases(mark=mark, leases=leases)


def _info(session: Session, row: LeaseRow) -> LeaseInfo:
    steps = session.execute(
        select(TransitionRow, EventRow.log_index)
        .join(EventRow, EventRow.id == TransitionRow.event)
        .where(TransitionRow.lease == row.id)
        .order_by(TransitionRow.id)
    )
    history = tuple(Transition(state=LeaseState(step.state), at=step.at, detail=step.detail, log_index=index) for step, index in steps)
    return LeaseInfo(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        state=LeaseState(row.state),
        outcome=Outcome(row.outcome) if row.outcome else None,
        exit_code=row.exit_code,
        detail=row.detail,
        image=row.image,
        node=row.node,
        job_digest=row.job_digest,
        policy_digest=row.policy_digest,
        level=row.level,
        created_at=row.created_at,
        updated_at=row.updated_at,
        nonce=row.nonce,
        result=row.result,
        denials=tuple(Denial.model_validate(item) for item in row.denials),
        history=history,
    )


def show_evidence(control: Control, caller: Caller, lease_id: str) -> EvidenceInfo:
    """Return what the release agent needs to decide. Raises ``StateError`` before there is evidence."""
    with control.database.read() as session:
        lease = visible_lease(session, caller, lease_id)
        evidence, plan, policy = (document(session, lease_id, kind) for kind in ("evidence", "plan", "policy"))
        if evidence is None or plan is None or policy is None or lease.nonce is None:
            raise StateError("there is no evidence yet", rule="lease-state", seen=lease.state, wanted="attested", fix="wait for 'attested'")
        return EvidenceInfo(
            lease=lease_id,
            nonce=lease.nonce,
            evidence=Envelope.from_bytes(evidence).to_json(),
            plan=b64encode(plan),
            policy=b64encode(policy),
        )


def show_logs(control: Control, caller: Caller, lease_id: str, after: int) -> LogPage:
    """Return sealed chunks from number ``after`` on, as far as they follow one another, ``LOG_PAGE_BYTES`` at most."""
    with control.database.read() as session:
        lease = visible_lease(session, caller, lease_id)
        chunks: list[LogChunk] = []
        size = 0
        rows = session.scalars(
            select(LogChunkRow).where(LogChunkRow.lease == lease_id, LogChunkRow.seq >= after).order_by(LogChunkRow.seq).limit(1024)
        )
        more = False
        for row in rows:
            if row.seq != after + len(chunks) or size + len(row.data) > LOG_PAGE_BYTES:
                more = True
                break
            chunks.append(LogChunk(seq=row.seq, data=b64encode(row.data)))
            size += len(row.data)
        more = more or len(chunks) == 1024
        final = not more and (LeaseState(lease.state) in TERMINAL or after + len(chunks) >= _chunks_in_all(session, lease_id))
        return LogPage(chunks=tuple(chunks), final=final)


def _chunks_in_all(session: Session, lease: str) -> float:
    """Return how many chunks the node's run record counts; until there is one, no number is enough."""
    run = document(session, lease, "run")
    return math.inf if run is None else RunRecord.from_payload(Envelope.from_bytes(run).payload).log_chunks


def make_receipt(control: Control, caller: Caller, lease_id: str) -> bytes:
    """Return the receipt of a lease that has ended: its documents, and its entries in the audit log with their proofs.

    Raises ``StateError`` for a lease that goes on, and for entries that are not published yet.
    """
    control.journal.settle()
    with control.database.read() as session:
        lease = visible_lease(session, caller, lease_id)
        if LeaseState(lease.state) not in TERMINAL:
            raise StateError(
                "a receipt is made when the lease has ended",
                rule="lease-state",
                seen=lease.state,
                wanted="an ended lease",
                fix="wait: 'sealrig lease watch'",
            )
        documents = {row.kind: row.data for row in session.scalars(select(DocumentRow).where(DocumentRow.lease == lease_id))}
        if not documents:
            raise NotFoundError(
                "the documents of this lease were erased", rule="erased", seen=lease_id, wanted="a lease whose tenant was not erased",
                fix="receipts that were made before the erasure still verify",
            )  # fmt: skip
        steps = select(EventRow).join(TransitionRow, TransitionRow.event == EventRow.id).where(TransitionRow.lease == lease_id)
        events = [row for row in session.scalars(steps.order_by(TransitionRow.id)) if row.log_index is not None]
        opened = {row.log_index: openings_of(control, session, Leaf.from_bytes(row.leaf), POLICY_FIELD) for row in events}
    indexes = [row.log_index for row in events if row.log_index is not None]
    require_published(control, max(indexes, default=-1))
    reader = LogReader(control.log_files)
    openings = {index: found for index, found in opened.items() if index is not None}
    return build_receipt(lease_id, documents, reader.extract(indexes), openings, tuple(read_handovers(reader))[-MAX_HANDOVERS:])
