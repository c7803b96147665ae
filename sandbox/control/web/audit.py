"""What the console shows of the audit log: filtered pages from the event index, entries and proofs from the log itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select

from sandbox.control.core import Control
from sandbox.control.database.models import EventRow
from sandbox.control.search import Filters
from sandbox.errors import InputError

PAGE = 100
MAX_FILTER_CHARS = 100
WORDS = ("type", "lease", "node", "tenant", "actor", "outcome", "text")


@dataclass(frozen=True)
class AuditForm:
    """The filters as a person filled them in; empty text means any. Times are UTC, as ``datetime-local`` fields write them."""

    type: str = ""
    lease: str = ""
    node: str = ""
    tenant: str = ""
    actor: str = ""
    outcome: str = ""
    text: str = ""
    since: str = ""
    until: str = ""
    before: str = ""

    def filters(self) -> Filters:
        """Return what to look for. Raises ``InputError`` for a time that is none."""
        words = {
            name: getattr(self, name).strip()[:MAX_FILTER_CHARS] for name in ("type", "lease", "node", "tenant", "actor", "outcome", "text")
        }
        return Filters(**words, since=_time(self.since), until=_time(self.until))

    @property
    def start(self) -> int | None:
        """The index that the page ends below. Raises ``InputError`` for a number that is none."""
        return _index(self.before) if self.before else None

    @property
    def chosen(self) -> dict[str, str]:
        """The filters that are set, without the place in the list."""
        return {name: value for name, value in vars(self).items() if value and name != "before"}


def log_size(control: Control) -> int:
    """Return how many entries have their place in the log."""
    with control.database.read() as session:
        last = session.scalar(select(func.max(EventRow.log_index)))
    return 0 if last is None else last + 1


def _time(text: str) -> datetime | None:
    if not text:
        return None
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
