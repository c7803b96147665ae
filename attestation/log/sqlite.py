"""The log's private state in two SQLite files, each commit synced to the disk."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from attestation.log.store import Head, TreeState, fenced, io_error, require_count, require_epoch, require_unchanged

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


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise io_error(error) from error


@contextlib.contextmanager
def _transaction(base: sqlite3.Connection) -> Iterator[None]:
    """Run a write transaction: the write lock is taken at once, so that what is read inside stays true until the commit."""
    with _errors():
        base.execute("BEGIN IMMEDIATE")
        try:
            yield
            base.execute("COMMIT")
        except BaseException:
            if base.in_transaction:
                base.execute("ROLLBACK")
            raise


class SqliteEntries:
    """The ``EntryStore`` in a file."""

    def __init__(self, path: Path) -> None:
        with _errors():
            self._base = _connect(path, _ENTRIES)

    def close(self) -> None:
        """Give back the room of entries that stand in full bundles by now, and close the file."""
        # Only room is at stake here, so a disk that fails now must not hide why the store is closed.
        with contextlib.suppress(sqlite3.Error):
            self._base.executescript("PRAGMA incremental_vacuum")  # ``execute`` would give back a single page
        with _errors():
            self._base.close()

    def state(self) -> TreeState | None:
        """See ``EntryStore``."""
        with _errors():
            row = self._base.execute("SELECT origin, epoch, size, root, base_size, base_root, base_upper FROM state").fetchone()
        return TreeState(*row) if row else None

    def start(self, state: TreeState) -> None:
        """See ``EntryStore``."""
        with _transaction(self._base):
            self._base.execute(
                "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch WHERE epoch < excluded.epoch",
                (state.origin, state.epoch, state.size, state.root, state.base_size, state.base_root, state.base_upper),
            )
            require_unchanged(self.state(), state)

    def find(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """See ``EntryStore``."""
        found: dict[bytes, int] = {}
        with _errors():
            for start in range(0, len(ids), 500):
                part = [_short(id_) for id_ in ids[start : start + 500]]
                marks = ",".join("?" * len(part))
                found.update(self._base.execute(f"SELECT id, idx FROM seen WHERE id IN ({marks})", part))  # noqa: S608  (question marks only)
        return {id_: found[_short(id_)] for id_ in ids if _short(id_) in found}

    def leaves(self, start: int, end: int) -> list[bytes]:
        """See ``EntryStore``."""
        with _errors():
            rows = [leaf for (leaf,) in self._base.execute("SELECT leaf FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx", (start, end))]
        require_count(len(rows), start, end)
        return rows

    def commit(self, state: TreeState, leaves: Iterable[tuple[int, bytes]], ids: Iterable[tuple[bytes, int]], *, forget_below: int) -> None:
        """See ``EntryStore``."""
        with _transaction(self._base):
            require_epoch(self._base.execute("SELECT epoch FROM state").fetchone()[0], state.epoch)
            self._base.execute("DELETE FROM entry WHERE idx < ?", (forget_below,))
            self._base.executemany("INSERT INTO entry VALUES (?, ?)", leaves)
            self._base.executemany("INSERT INTO seen VALUES (?, ?)", ((_short(id_), index) for id_, index in ids))
            self._base.execute(
                "UPDATE state SET size = ?, root = ?, base_size = ?, base_root = ?, base_upper = ?",
                (state.size, state.root, state.base_size, state.base_root, state.base_upper),
            )


def _short(id_: bytes) -> bytes:
    """Return what an id is found by: the time of a UUIDv7 and 48 of its random bits, 4 bytes an entry less than all of it.

    Should two ids ever agree in these, the second is refused as one that was used for other bytes: the writer compares the leaves.
    """
    return id_[:6] + id_[10:]


class SqliteLock:
    """The ``LockStore`` in a file."""

    def __init__(self, path: Path) -> None:
        with _errors():
            self._base = _connect(path, _LOCK)

    def close(self) -> None:
        """See ``LockStore``."""
        with _errors():
            self._base.close()

    def head(self) -> Head | None:
        """See ``LockStore``."""
        with _errors():
            row = self._base.execute("SELECT epoch, note, vkey FROM head").fetchone()
        return Head(*row) if row else None

    def create(self, head: Head) -> None:
        """See ``LockStore``."""
        with _transaction(self._base):
            self._base.execute("INSERT INTO head VALUES (1, ?, ?, ?)", (head.epoch, head.note, head.vkey))

    def rotations(self) -> list[str]:
        """See ``LockStore``."""
        with _errors():
            return [note for (note,) in self._base.execute("SELECT note FROM rotation ORDER BY number")]

    def swap(self, old: Head, new: Head, *, rotation: str | None = None) -> None:
        """See ``LockStore``."""
        with _transaction(self._base):
            row = self._base.execute(
                "UPDATE head SET epoch = ?, note = ?, vkey = ? WHERE epoch = ? AND note = ? AND vkey = ? RETURNING one",
                (new.epoch, new.note, new.vkey, old.epoch, old.note, old.vkey),
            ).fetchone()
            if row is None:
                current = self.head()
                raise fenced(f"epoch {current.epoch if current else None}", f"epoch {old.epoch} and its checkpoint")
            if rotation is not None:
                self._base.execute("INSERT INTO rotation (note) VALUES (?)", (rotation,))

    def while_owner(self, epoch: int, publish: Callable[[], None]) -> None:
        """See ``LockStore``."""
        with _transaction(self._base):
            current = self.head()
            require_epoch(current.epoch if current else None, epoch)
            publish()
