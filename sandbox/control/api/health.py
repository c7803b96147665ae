"""Is it alive, is it ready, and its numbers. No token needed, so nothing here names a tenant, a lease or a path."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import func, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from sandbox.control.api.auth import ControlDep
from sandbox.control.database.models import EventRow, LeaseRow, NodeRow

router = APIRouter(tags=["health"])
UNPUBLISHED_SECONDS = 10.0
"""From when on entries that wait for witnesses are told of."""


@router.get("/healthz", response_class=PlainTextResponse)
def healthz() -> Response:
    """Say that the process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz", response_class=PlainTextResponse)
def readyz(control: ControlDep) -> Response:
    """Say that database, store and log take writes. Further lines tell of what is wrong without keeping the server from its work."""
    with control.database.read() as session:
        session.execute(text("SELECT 1"))
    control.store.check()
    control.journal.settle()
    log = control.log.health()
    if log.committed > log.published and log.waiting_seconds > UNPUBLISHED_SECONDS:
        missing = [name for name, answer in (control.quorum.answers if control.quorum else {}).items() if answer.problem]
        return PlainTextResponse(
            f"ok\nlog: {log.committed - log.published} entries wait for their witnesses since {log.waiting_seconds:.0f} s"
            f" (no cosignature of {', '.join(missing) or 'any'})\n"
        )
    return PlainTextResponse("ok\n")


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(control: ControlDep) -> Response:
    """Send totals in the text format of Prometheus."""
    with control.database.read() as session:
        leases = _counts(session, LeaseRow.state)
        nodes = _counts(session, NodeRow.state)
        nodes["stale"] = session.scalar(select(func.count()).select_from(NodeRow).where(NodeRow.stale)) or 0
        pending = session.scalar(select(func.count()).select_from(EventRow).where(EventRow.log_index.is_(None))) or 0
        last = session.scalar(select(func.max(EventRow.log_index)))
    log = control.log.health()
    control.metrics.note_log(log.published, log.waiting_seconds, control.quorum.answers if control.quorum else {})
    return PlainTextResponse(control.metrics.render(leases, nodes, pending, 0 if last is None else last + 1))


def _counts(session: Session, column: InstrumentedAttribute[str]) -> dict[str, int]:
    return {row[0]: row[1] for row in session.execute(select(column, func.count()).group_by(column))}
