"""The log's private state: entries and tree in one SQLite file, the last signed checkpoint in another.

The two are separate on purpose: a checkpoint is signed only for entries that are already durable, and is handed out only
after the lock store took it in exchange for the one before. Whoever restores an old copy of one of them is found out by the other.
Every write names the epoch of its writer; a writer that was overtaken writes nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from attestation.log.errors import LogFencedError, LogStoreError
from attestation.merkle import EMPTY_ROOT

BUSY_MS = 2000

_ENTRIES = """
CREATE TABLE IF NOT EXISTS entry (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS seen (id BLOB PRIMARY KEY, idx INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
  one INTEGER PRIMARY KEY CHECK (one = 1), origin TEXT NOT NULL, epoch INTEGER NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL,
  base_size INTEGER NOT NULL, base_root BLOB NOT NULL, base_upper BLOB NOT NULL);
"""
_LOCK = """
CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, note TEXT NOT NULL, vkey TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rotation (number INTEGER PRIMARY KEY, note TEXT NOT NULL);
"""


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    # One thread at a time uses a connection (the writer's), but not always the one that opened it.
    base = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
    try:
        base.execute("PRAGMA auto_vacuum=INCREMENTAL")
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("PRAGMA synchronous=FULL")
        base.executescript(schema)
        # Moves what an earlier writer committed from the write-ahead file into the database and syncs it, so that nothing
        # is built on bytes whose own sync may have failed.
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error:
        base.close()
        raise
    return base


@dataclass(frozen=True)
class TreeState:
    """How far the tree is, and how far it was before the last commit (``base_*``: what a replay starts from)."""

    origin: str
    epoch: int
    size: int = 0
    root: bytes = EMPTY_ROOT
    base_size: int = 0
    base_root: bytes = EMPTY_ROOT
    base_upper: bytes = b""


class EntryStore:
    """Entries not yet in a durable full bundle, the ids of all, and the state of the tree."""

    def __init__(self, path: Path) -> None:
        self._base = _connect(path, _ENTRIES)

    def close(self) -> None:
        """Give back the room of entries that stand in full bundles by now, and close the file."""
        # Only room is at stake here, so a disk that fails now must not hide why the store is closed.
        with contextlib.suppress(sqlite3.Error):
            self._base.execute("PRAGMA incremental_vacuum").fetchall()
        self._base.close()

    def state(self) -> TreeState | None:
        """Return the state, or None for a new store."""
        row = self._base.execute("SELECT origin, epoch, size, root, base_size, base_root, base_upper FROM state").fetchone()
        return TreeState(*row) if row else None

    def start(self, state: TreeState) -> None:
        """Take over as the writer named by ``state.epoch``; creates the state of a new log. Raises ``LogFencedError``."""
        with _transaction(self._base):
            self._base.execute(
                "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch WHERE epoch < excluded.epoch",
                (state.origin, state.epoch, state.size, state.root, state.base_size, state.base_root, state.base_upper),
            )
            self._own(state.epoch)

    def find(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Return the indexes of those ids that are in the log."""
        found: dict[bytes, int] = {}
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            marks = ",".join("?" * len(part))
            found.update(self._base.execute(f"SELECT id, idx FROM seen WHERE id IN ({marks})", part))  # noqa: S608  (question marks only)
        return found

    def leaves(self, start: int, end: int) -> list[bytes]:
        """Return the stored entries ``start`` up to ``end``. Raises ``LogStoreError`` if one is missing."""
        rows = [leaf for (leaf,) in self._base.execute("SELECT leaf FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx", (start, end))]
        if len(rows) != end - start:
            raise LogStoreError(
                "the entry store has lost entries",
                rule="store-entries",
                seen=f"{len(rows)} of {start} to {end}",
                wanted=str(end - start),
                fix="restore the newest copy of the entry store",
            )
        return rows

    def commit(self, state: TreeState, leaves: Iterable[tuple[int, bytes]], ids: Iterable[tuple[bytes, int]], *, forget_below: int) -> None:
        """Make entries and the new state durable in one transaction. Raises ``LogFencedError`` if another writer took over.

        Entries below ``forget_below`` stand in durable full bundles and are dropped here.
        """
        with _transaction(self._base):
            self._own(state.epoch)
            self._base.execute("DELETE FROM entry WHERE idx < ?", (forget_below,))
            self._base.executemany("INSERT INTO entry VALUES (?, ?)", leaves)
            self._base.executemany("INSERT INTO seen VALUES (?, ?)", ids)
            self._base.execute(
                "UPDATE state SET size = ?, root = ?, base_size = ?, base_root = ?, base_upper = ?",
                (state.size, state.root, state.base_size, state.base_root, state.base_upper),
            )

    def _own(self, epoch: int) -> None:
        (seen,) = self._base.execute("SELECT epoch FROM state").fetchone()
        _fence(seen, epoch)


@dataclass(frozen=True)
class Head:
    """The last signed checkpoint, the key that signed it, and the epoch of the writer."""

    epoch: int
    note: str
    vkey: str


class LockStore:
    """One row, changed only by compare-and-swap: which checkpoint was signed last, and who may sign the next."""

    def __init__(self, path: Path) -> None:
        self._base = _connect(path, _LOCK)

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def head(self) -> Head | None:
        """Return the row, or None for a new store."""
        row = self._base.execute("SELECT epoch, note, vkey FROM head").fetchone()
        return Head(*row) if row else None

    def create(self, head: Head) -> None:
        """Store the first checkpoint of a new log."""
        with _transaction(self._base):
            self._base.execute("INSERT INTO head VALUES (1, ?, ?, ?)", (head.epoch, head.note, head.vkey))

    def rotations(self) -> list[str]:
        """Return the notes by which this log's keys were exchanged, oldest first."""
        return [note for (note,) in self._base.execute("SELECT note FROM rotation ORDER BY number")]

    def swap(self, old: Head, new: Head, *, rotation: str | None = None) -> None:
        """Exchange ``old`` for ``new``, durably, with the note that hands over to another key.

        Raises ``LogFencedError`` if the store holds anything else.
        """
        with _transaction(self._base):
            row = self._base.execute(
                "UPDATE head SET epoch = ?, note = ?, vkey = ? WHERE epoch = ? AND note = ? AND vkey = ? RETURNING one",
                (new.epoch, new.note, new.vkey, old.epoch, old.note, old.vkey),
            ).fetchone()
            if row is None:
                current = self.head()
                raise LogFencedError(
                    "another writer signed since",
                    rule="log-fenced",
                    seen=f"epoch {current.epoch if current else None}",
                    wanted=f"epoch {old.epoch}",
                    fix="stop this process; the other one is the log's writer now",
                )
            if rotation is not None:
                self._base.execute("INSERT INTO rotation (note) VALUES (?)", (rotation,))

    def while_owner(self, epoch: int, publish: Callable[[], None]) -> None:
        """Run ``publish`` while this writer is the owner and nobody can take over. Raises ``LogFencedError``."""
        with _transaction(self._base):
            current = self.head()
            _fence(current.epoch if current else 0, epoch)
            publish()


def _fence(seen: int, epoch: int) -> None:
    if seen != epoch:
        raise LogFencedError(
            "another writer has taken over",
            rule="log-fenced",
            seen=f"epoch {seen}",
            wanted=f"epoch {epoch}",
            fix="stop this process; the other one is the log's writer now",
        )


class _transaction:  # noqa: N801  (used as a function)
    """A write transaction: the write lock is taken at once, so that what is read inside stays true until the commit."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base

    def __enter__(self) -> Self:
        self._base.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is None:
            self._base.execute("COMMIT")
        elif self._base.in_transaction:
            self._base.execute("ROLLBACK")
