"""One entry of the audit log as those who may see it do: from the log's own files, with its proof, and what it commits to."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from attestation.log.leaf import Leaf
from attestation.log.reader import LoggedEntry, LogReader
from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import EventRow
from sandbox.control.erasure import Committed, committed
from sandbox.errors import NotFoundError, StateError


@dataclass(frozen=True)
class ShownEntry:
    """An entry with its proof, and what it commits to."""

    logged: LoggedEntry
    committed: list[Committed]


def require_published(control: Control, index: int) -> None:
    """Raise ``StateError`` where an entry is durable but not yet in public: nobody can prove it before its witnesses have cosigned."""
    published = control.log.health().published
    if index >= published:
        raise StateError(
            f"entry {index} waits for the log's witnesses",
            rule="log-published",
            seen=f"{published} entries published",
            wanted=f"≥ {index + 1}",
            fix="ask again; the operator sees at /readyz which witness is missing",
        )


def entry(control: Control, caller: Caller, index: int) -> ShownEntry:
    """Return an entry, from the log's own files.

    Raises ``NotFoundError`` outside the log or the caller's tenant, ``StateError`` for an entry that is not published yet.
    """
    with control.database.read() as session:
        row = session.scalars(select(EventRow).where(EventRow.log_index == index)).one_or_none()
        if row is None or not (caller.sees_all or row.tenant_ref == caller.tenant_ref):
            raise NotFoundError(
                "no such entry", rule="audit-entry", seen=str(index), wanted="an entry of this log", fix="see the audit log's pages"
            )
        require_published(control, index)
        logged = LogReader(control.log_files).extract([index]).entries[0]
        return ShownEntry(logged, committed(control, session, Leaf.from_bytes(logged.leaf)))
