"""From a state change to the audit log: an outbox row in the same transaction, then the log, and only then the acknowledgement.

``record`` writes the finished leaf next to the change that it tells of, so that both commit or neither. The log is public for ever: names,
and digests that somebody could guess, stand in it only as salted commitments; what opens them is sealed under the tenant's key.
``settle`` appends every row that has no index yet, in order, and is called before any answer that acknowledges a change. A crash between
the two leaves rows that the next ``settle``, at the latest the one at start, appends; appending is idempotent by the leaf's id.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from attestation.log.commitments import SubjectKeys
from attestation.log.leaf import DocumentRef, Leaf, new_leaf_id
from sandbox.control.database.engine import Database
from sandbox.control.database.models import CommittedRow, EventRow

BATCH = 512


class Log(Protocol):
    """The log as the journal needs it: ``append`` returns indexes once the leaves are durable and their checkpoint is published."""

    def append(self, leaves: Sequence[bytes]) -> list[int]:
        """Append, idempotently by leaf id."""
        ...


class Journal:
    """Records events and brings them into the log. Thread-safe."""

    def __init__(self, database: Database, log: Log, keys: SubjectKeys) -> None:
        self._database, self._log, self._keys = database, log, keys
        self._pump = threading.Lock()

    def record(
        self, session: Session, kind: str, *, actor: str, tenant_ref: str | None, resource: str, at: datetime, outcome: str = "done",
        evidence: DocumentRef | None = None, private: Mapping[str, str] | None = None, occurred_at: datetime | None = None,
    ) -> int:  # fmt: skip
        """Add an event to the running transaction; return its row id. ``kind`` is such as ``lease.running``.

        ``at`` is when the server heard of it; ``occurred_at``, where somebody else tells of it, when it happened. ``private`` values, by
        field, are committed to and not told; they need a tenant that they are about.
        """
        id_ = new_leaf_id()
        made = self._keys.commit(id_, tenant_ref, private) if tenant_ref and private else ()
        leaf = Leaf(
            type=kind, occurred_at=occurred_at or at, recorded_at=at, actor_ref=actor, resource_ref=resource,
            action=kind.partition(".")[2] or kind, outcome=outcome, tenant_ref=tenant_ref, evidence=evidence,
            commitments=tuple(each.commitment for each in made), id=id_,
        )  # fmt: skip
        row = event_row(leaf)
        session.add(row)
        session.flush()
        session.add_all(CommittedRow(leaf_id=id_, field=each.commitment.field, subject=tenant_ref, sealed=each.sealed) for each in made)
        return row.id

    def settle(self) -> None:
        """Return once every committed event is in the log. Raises ``LogError`` when the log refuses; the rows stay for later.

        One thread appends for all who wait: whoever gets the lock next finds its rows done. Rows go in order of their ids.
        """
        with self._pump:
            while rows := self._pending():
                indexes = self._log.append([leaf for _, leaf in rows])
                with self._database.write() as session:
                    session.execute(
                        update(EventRow), [{"id": row_id, "log_index": index} for (row_id, _), index in zip(rows, indexes, strict=True)]
                    )

    def _pending(self) -> list[tuple[int, bytes]]:
        with self._database.read() as session:
            found = session.execute(
                select(EventRow.id, EventRow.leaf).where(EventRow.log_index.is_(None)).order_by(EventRow.id).limit(BATCH)
            )
            return [(row.id, row.leaf) for row in found]


def event_row(leaf: Leaf, log_index: int | None = None) -> EventRow:
    """Return the row by which an event is found."""
    return EventRow(
        leaf_id=leaf.id,
        type=leaf.type,
        actor=leaf.actor_ref,
        tenant_ref=leaf.tenant_ref or "",
        resource=leaf.resource_ref,
        outcome=leaf.outcome,
        evidence=leaf.evidence.digest if leaf.evidence is not None else None,
        occurred_at=leaf.occurred_at,
        leaf=leaf.to_bytes(),
        log_index=log_index,
    )
