"""What the console shows of the audit log: filtered pages from the event index, entries and proofs from the log itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Select, func, select

from attestation.log.reader import LoggedEntry, LogReader
from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import EventRow
from sandbox.errors import InputError, NotFoundError

PAGE = 100
MAX_FILTER_CHARS = 100


@dataclass(frozen=True)
class AuditFilters:
    """What a person asked to see; empty text means any. Times are UTC, as ``datetime-local`` fields write them."""

    type: str = ""
    resource: str = ""
    actor: str = ""
    since: str = ""
    until: str = ""
    before: str = ""

    def apply(self, query: Select[EventRow]) -> Select[EventRow]:
        """Narrow a query over events. Raises ``InputError`` for a time or number that is none."""
        for column, text in ((EventRow.type, self.type), (EventRow.resource, self.resource), (EventRow.actor, self.actor)):
            if text.strip():
                query = query.where(column == text.strip()[:MAX_FILTER_CHARS])
        if self.since:
            query = query.where(EventRow.occurred_at >= _time(self.since))
        if self.until:
            query = query.where(EventRow.occurred_at < _time(self.until))
        if self.before:
            query = query.where(EventRow.log_index < _index(self.before))
        return query


@dataclass(frozen=True)
class AuditRow:
    """One entry as a line of a table."""

    index: int
    at: datetime
    type: str
    resource: str
    actor: str


def audit_page(control: Control, caller: Caller, filters: AuditFilters) -> list[AuditRow]:
    """Return the newest entries that fit, ``PAGE`` at most. Customers see their own tenant's."""
    query = select(EventRow).where(EventRow.log_index.is_not(None)).order_by(EventRow.log_index.desc()).limit(PAGE)
    if not caller.sees_all:
        query = query.where(EventRow.tenant_ref == caller.tenant_ref)
    with control.database.read() as session:
        return [
            AuditRow(row.log_index, row.occurred_at, row.type, row.resource, row.actor)
            for row in session.scalars(filters.apply(query))
            if row.log_index is not None
        ]


def entry_types(control: Control) -> list[str]:
    """Return the kinds of entries there are, for the filter's suggestions."""
    with control.database.read() as session:
        return list(session.scalars(select(EventRow.type).distinct().order_by(EventRow.type)))


def log_size(control: Control) -> int:
    """Return how many entries have their place in the log."""
    with control.database.read() as session:
        return 1 + (session.scalar(select(func.max(EventRow.log_index))) or 0)


def entry(control: Control, caller: Caller, index: int) -> LoggedEntry:
    """Return an entry with its proof, from the log's own files. Raises ``NotFoundError`` outside the log or the caller's tenant."""
    with control.database.read() as session:
        row = session.scalars(select(EventRow).where(EventRow.log_index == index)).one_or_none()
    if row is None or not (caller.sees_all or row.tenant_ref == caller.tenant_ref):
        raise NotFoundError(
            "no such entry", rule="audit-entry", seen=str(index), wanted="an entry of this log", fix="see the audit log's pages"
        )
    return LogReader(control.log_files).extract([index]).entries[0]


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as error:
        raise InputError("not a time", rule="audit-filter", seen=text[:40], wanted="2026-01-31T12:00", fix="correct the filter") from error


def _index(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InputError(
            "not an entry's number", rule="audit-filter", seen=text[:40], wanted="a whole number", fix="go back to the first page"
        )
    return int(text)
