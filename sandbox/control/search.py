"""Finds entries of the audit log in the event index: the filters of ``attestation.log.query``, in the log's order, in bounded time.

A page is found by walking over ranges of the log, each four times as long as the one before, and stops when it is full or its time is
over; ``Page.left`` is where to go on. So a filter that fits everything and one that fits three entries of a million both answer at once.
Each range is looked up through the index of a filtered column; only free text is searched for in the leaves themselves.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session

from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import EventRow

PAGE_SECONDS = 0.1
_FIRST_RANGE = 8192
_GROWTH = 4
# These stand in a leaf as one whole field, each of which has a column with an index: no text needs to be searched for them.
_WHOLE = re.compile(r"[a-z]{1,16}-[0-9a-f]{32}|(?:sha256|blake3):[0-9a-f]{64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Filters:
    """What to look for; None or empty means anything. ``node``, ``lease``: what they did as well as what was done to them.

    ``type`` may end in ``*``. ``text`` is searched for in the entry's bytes. Times have their zone.
    """

    type: str | None = None
    actor: str | None = None
    tenant: str | None = None
    node: str | None = None
    lease: str | None = None
    resource: str | None = None
    outcome: str | None = None
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Page:
    """Entries in the order asked for, and the log index to go on from (see ``search``); None: there is nothing beyond."""

    rows: tuple[EventRow, ...]
    left: int | None


def search(control: Control, caller: Caller, filters: Filters, *, limit: int, start: int | None = None, oldest_first: bool = False) -> Page:
    """Return a page of what the caller may see.

    Newest first, entries below index ``start`` are looked at; oldest first, entries from ``start`` on.
    """
    with control.database.read() as session:
        query = _query(control, caller, filters)
        first, end = _bounds(session, filters)
        if start is not None:
            first, end = (max(first, start), end) if oldest_first else (first, min(end, start))
        return _walk(session, query, (first, end), limit, oldest_first=oldest_first)


def _walk(session: Session, query: Select[EventRow], span: tuple[int, int], limit: int, *, oldest_first: bool) -> Page:
    (first, end), width, used = span, _FIRST_RANGE, 0.0
    found: list[EventRow] = []
    order = EventRow.log_index if oldest_first else EventRow.log_index.desc()
    while first < end:
        low, high = (first, min(end, first + width)) if oldest_first else (max(first, end - width), end)
        began = time.perf_counter()
        part = query.where(EventRow.log_index >= low, EventRow.log_index < high).order_by(order).limit(limit - len(found))
        found += session.scalars(part)
        if len(found) >= limit:
            last = found[-1].log_index or 0
            low, high = (low, last + 1) if oldest_first else (last, high)
        first, end = (high, end) if oldest_first else (first, low)
        taken = time.perf_counter() - began
        used += taken
        if len(found) >= limit or used + taken > PAGE_SECONDS:
            break
        if used + taken * _GROWTH < PAGE_SECONDS:
            width *= _GROWTH
    left = None if first >= end else first if oldest_first else end
    return Page(tuple(found), left)


def _bounds(session: Session, filters: Filters) -> tuple[int, int]:
    """Return the range of the log that holds every entry of the wanted time; clocks may have been set back, so it is no more than that."""
    timed = _times(filters)
    if not timed:
        last = session.scalar(select(func.max(EventRow.log_index)))
        return 0, 0 if last is None else last + 1
    least, most = session.execute(
        select(func.min(EventRow.log_index), func.max(EventRow.log_index)).where(EventRow.log_index.is_not(None), *timed)
    ).one()
    return (0, 0) if least is None or most is None else (least, most + 1)


def _times(filters: Filters) -> list[ColumnElement[bool]]:
    since = [] if filters.since is None else [EventRow.occurred_at >= filters.since]
    return since if filters.until is None else [*since, EventRow.occurred_at < filters.until]


def _query(control: Control, caller: Caller, filters: Filters) -> Select[EventRow]:
    query = select(EventRow).where(*_times(filters))
    if not caller.sees_all:
        query = query.where(EventRow.tenant_ref == caller.tenant_ref)
    exact = {
        EventRow.actor: filters.actor,
        EventRow.tenant_ref: filters.tenant,
        EventRow.resource: filters.resource,
        EventRow.outcome: filters.outcome,
    }
    query = query.where(*(column == wanted for column, wanted in exact.items() if wanted))
    for thing in filter(None, (filters.node, filters.lease)):
        query = query.where(or_(EventRow.actor == thing, EventRow.resource == thing))
    if filters.type:
        query = query.where(_type(filters.type))
    return query.where(_text(control, filters.text)) if filters.text else query


def _type(wanted: str) -> ColumnElement[bool]:
    if not wanted.endswith("*"):
        return EventRow.type == wanted
    return func.substr(EventRow.type, 1, len(wanted) - 1) == wanted[:-1]


def _text(control: Control, wanted: str) -> ColumnElement[bool]:
    if _WHOLE.fullmatch(wanted):
        columns = (EventRow.leaf_id, EventRow.actor, EventRow.tenant_ref, EventRow.resource, EventRow.evidence)
        return or_(*(column == wanted for column in columns))
    needle = wanted.encode()
    if control.database.is_sqlite:
        return func.instr(EventRow.leaf, needle) > 0
    return func.pg_catalog.position(EventRow.leaf, needle) > 0


def entry_types(control: Control) -> list[str]:
    """Return the kinds of entries there are. One step through the index a kind, however many entries there are."""
    found: list[str] = []
    with control.database.read() as session:
        step = select(func.min(EventRow.type)).where(EventRow.log_index.is_not(None))
        while (kind := session.scalar(step.where(EventRow.type > found[-1]) if found else step)) is not None:
            found.append(kind)
    return found
