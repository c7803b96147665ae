"""Is it alive, is it ready, and its numbers. No token needed, so nothing here names a tenant, a lease or a path."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import func, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from sandbox.control.api.auth import ControlDep
from sandbox.control.database.models import EventRow, LeaseRow, NodeRow

router = APIRouter(tags=["health"])


@router.get("/healthz", response_class=PlainTextResponse)
def healthz() -> Response:
    """Say that the process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz", response_class=PlainTextResponse)
def readyz(control: ControlDep) -> Response:
    """Say that database, store and log take writes."""
    with control.database.read() as session:
        session.execute(text("SELECT 1"))
    control.store.check()
    control.journal.settle()
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
    return PlainTextResponse(control.metrics.render(leases, nodes, pending, 0 if last is None else last + 1))


def _counts(session: Session, column: InstrumentedAttribute[str]) -> dict[str, int]:
    return {row[0]: row[1] for row in session.execute(select(column, func.count()).group_by(column))}
