"""The event index and the log must tell the same history: compared at every start, before anybody is served.

The log is written first and the index follows it, so after ``Journal.settle`` each entry of the log has its row. Only an exchange of the
log's key is appended while no server runs: its row is added here. Any other entry without a row means that an old copy of the database
was restored, and a row without an entry that an old copy of the log was: leases would go back, entries would vanish from what is shown.
Both are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from attestation.log.errors import LogStoreError
from attestation.log.keychain import LEAF_TYPE
from attestation.log.leaf import Leaf
from attestation.log.note import Checkpoint, Note
from attestation.log.reader import LogReader
from attestation.log.tiles import TILE_WIDTH
from attestation.merkle import leaf_hash, verify_inclusion
from sandbox.control.database.engine import Database
from sandbox.control.database.models import EventRow
from sandbox.control.journal import event_row

_ROWS_AT_ONCE = 10_000


def follow_log(database: Database, reader: LogReader, signed: str) -> None:
    """Bring the index up to the log whose newest checkpoint is ``signed``; every outbox row must have its index.

    Raises ``LogStoreError`` where one of the two is an old copy, ``TileError`` or ``LogFetchError`` where the log cannot be read.
    """
    head = Checkpoint.parse(Note.parse(signed).text)
    with database.write() as session:
        count, last = session.execute(select(func.count(EventRow.log_index), func.max(EventRow.log_index))).one()
        if last is not None and last >= head.size:
            raise LogStoreError(
                "the audit log is behind the database",
                rule="log-behind",
                seen=f"{head.size} entries",
                wanted=f"≥ {last + 1} entries, as the database knows",
                fix="an old copy of the log was restored: restore the newest log, log-state and log-lock",
            )
        if count == head.size:
            return
        session.add_all([event_row(_exchange(reader, index, head), index) for index in _missing(session, head.size)])


def _missing(session: Session, size: int) -> Iterator[int]:
    """Yield the indexes below ``size`` that no row has."""
    wanted = 0
    known = select(EventRow.log_index).where(EventRow.log_index.is_not(None)).order_by(EventRow.log_index)
    for index in session.scalars(known.execution_options(yield_per=_ROWS_AT_ONCE)):
        if index is not None:
            yield from range(wanted, index)
            wanted = index + 1
    yield from range(wanted, size)


def _exchange(reader: LogReader, index: int, head: Checkpoint) -> Leaf:
    """Return a proven entry that tells of an exchange of the log's key. Raises ``LogStoreError`` for any other."""
    raw = reader.bundle(index // TILE_WIDTH, head.size)[index % TILE_WIDTH]
    verify_inclusion(index, head.size, leaf_hash(raw), reader.inclusion(index, head.size), head.root)
    leaf = Leaf.from_bytes(raw)
    if leaf.type != LEAF_TYPE:
        raise LogStoreError(
            "the database is behind the audit log",
            rule="database-behind",
            seen=f"entry {index} ({leaf.type}) is not in the database",
            wanted=f"all {head.size} entries",
            fix="an old copy of the database was restored: restore the newest one",
        )
    return leaf
