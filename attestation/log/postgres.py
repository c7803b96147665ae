"""The log's private state in PostgreSQL: entries and lock in two sets of tables, in one database or, better, in two.

One session a store. It holds an advisory lock, so that a second writer is told at once, wherever it runs; if the server loses the
session, the lock ends with it, and epochs fence off whoever believes to hold it still. A commit is durable when it returns:
``synchronous_commit`` is on for these sessions, and a server that runs with ``fsync`` or ``full_page_writes`` off is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from attestation.log.errors import LogLockedError, LogStoreError
from attestation.log.store import Head, TreeState, fenced, io_error, require_count, require_epoch, require_unchanged

CONNECT_SECONDS = 5
# Waiting for another session's lock is bounded; a peer that is gone is noticed within half a minute.
_SESSION = (
    "-c lock_timeout=2000 -c statement_timeout=60000 -c synchronous_commit=on"
    " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
)
_SPACE = 0x5EA1  # sets this program's advisory locks apart from others in the database
_ENTRIES = """
CREATE TABLE IF NOT EXISTS audit_state (
  one boolean PRIMARY KEY CHECK (one), origin text NOT NULL, epoch bigint NOT NULL, size bigint NOT NULL, root bytea NOT NULL,
  base_size bigint NOT NULL, base_root bytea NOT NULL, base_upper bytea NOT NULL);
CREATE TABLE IF NOT EXISTS audit_entry (idx bigint PRIMARY KEY, leaf bytea NOT NULL);
CREATE TABLE IF NOT EXISTS audit_seen (id bytea PRIMARY KEY, idx bigint NOT NULL);
"""
_LOCK = """
CREATE TABLE IF NOT EXISTS audit_head (one boolean PRIMARY KEY CHECK (one), epoch bigint NOT NULL, note text NOT NULL, vkey text NOT NULL);
CREATE TABLE IF NOT EXISTS audit_rotation (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL);
"""


def is_postgres(url: str) -> bool:
    """Say whether a URL names a PostgreSQL database."""
    return url.startswith(("postgresql://", "postgres://", "postgresql+psycopg://"))


class _Session:
    """One connection, held for as long as the store is open."""

    def __init__(self, url: str, schema: str, table: str) -> None:
        parts = urlsplit(url)
        if parts.password:
            raise LogStoreError(
                "a database's password does not belong into its URL",
                rule="store-url",
                seen=f"a password for {parts.hostname}",
                wanted="a URL without a password",
                fix="put it into a file of mode 0600 that PGPASSFILE names, or into ~/.pgpass",
            )
        with _errors():
            self.base = psycopg.connect(
                url.replace("postgresql+psycopg://", "postgresql://", 1),
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                options=_SESSION,
                application_name="sealrig-log",
            )
        try:
            self._prepare(schema, table)
        except BaseException:
            self.base.close()
            raise

    def close(self) -> None:
        self.base.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[psycopg.Cursor]:
        with _errors(), self.base.transaction(), self.base.cursor() as cursor:
            yield cursor

    def _prepare(self, schema: str, table: str) -> None:
        with _errors():
            for setting in ("fsync", "full_page_writes"):
                row = self.base.execute(sql.SQL("SHOW {}").format(sql.Identifier(setting))).fetchone()
                if row is None or row[0] != "on":
                    raise LogStoreError(
                        "the database does not keep what it acknowledges",
                        rule="store-not-durable",
                        seen=f"{setting} = {row[0] if row else None}",
                        wanted=f"{setting} = on",
                        fix=f"set {setting} = on in postgresql.conf",
                    )
            if self.base.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
                self.base.execute(schema)
            row = self.base.execute(
                "SELECT pg_try_advisory_lock((%s::bigint << 32) | to_regclass(%s)::oid::bigint)", (_SPACE, table)
            ).fetchone()
        if row != (True,):
            raise LogLockedError(
                "another process writes this log",
                rule="log-locked",
                seen=f"a session that holds {table}",
                wanted="one writer",
                fix="stop the other process (pg_stat_activity: application_name sealrig-log), or use the running server's address",
            )


class PostgresEntries:
    """The ``EntryStore`` in a database."""

    def __init__(self, url: str) -> None:
        self._session = _Session(url, _ENTRIES, "audit_state")

    def close(self) -> None:
        """See ``EntryStore``."""
        self._session.close()

    def state(self) -> TreeState | None:
        """See ``EntryStore``."""
        with _errors():
            row = self._session.base.execute(
                "SELECT origin, epoch, size, root, base_size, base_root, base_upper FROM audit_state"
            ).fetchone()
        return TreeState(*row) if row else None

    def start(self, state: TreeState) -> None:
        """See ``EntryStore``."""
        with self._session.transaction() as cursor:
            cursor.execute(
                "INSERT INTO audit_state VALUES (true, %s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch WHERE audit_state.epoch < excluded.epoch",
                (state.origin, state.epoch, state.size, state.root, state.base_size, state.base_root, state.base_upper),
            )
            require_unchanged(self.state(), state)

    def find(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """See ``EntryStore``."""
        with _errors():
            return dict(self._session.base.execute("SELECT id, idx FROM audit_seen WHERE id = ANY(%b)", (list(ids),)).fetchall())

    def leaves(self, start: int, end: int) -> list[bytes]:
        """See ``EntryStore``."""
        with _errors():
            found = self._session.base.execute(
                "SELECT leaf FROM audit_entry WHERE idx >= %s AND idx < %s ORDER BY idx", (start, end)
            ).fetchall()
        require_count(len(found), start, end)
        return [leaf for (leaf,) in found]

    def commit(self, state: TreeState, leaves: Iterable[tuple[int, bytes]], ids: Iterable[tuple[bytes, int]], *, forget_below: int) -> None:
        """See ``EntryStore``."""
        with self._session.transaction() as cursor:
            row = cursor.execute("SELECT epoch FROM audit_state FOR UPDATE").fetchone()
            require_epoch(row[0] if row else None, state.epoch)
            cursor.execute("DELETE FROM audit_entry WHERE idx < %s", (forget_below,))
            _copy(cursor, "COPY audit_entry FROM STDIN (FORMAT BINARY)", ("int8", "bytea"), leaves)
            _copy(cursor, "COPY audit_seen FROM STDIN (FORMAT BINARY)", ("bytea", "int8"), ids)
            cursor.execute(
                "UPDATE audit_state SET size = %s, root = %s, base_size = %s, base_root = %s, base_upper = %s",
                (state.size, state.root, state.base_size, state.base_root, state.base_upper),
            )


class PostgresLock:
    """The ``LockStore`` in a database."""

    def __init__(self, url: str) -> None:
        self._session = _Session(url, _LOCK, "audit_head")

    def close(self) -> None:
        """See ``LockStore``."""
        self._session.close()

    def head(self) -> Head | None:
        """See ``LockStore``."""
        with _errors():
            row = self._session.base.execute("SELECT epoch, note, vkey FROM audit_head").fetchone()
        return Head(*row) if row else None

    def create(self, head: Head) -> None:
        """See ``LockStore``."""
        with self._session.transaction() as cursor:
            cursor.execute("INSERT INTO audit_head VALUES (true, %s, %s, %s)", (head.epoch, head.note, head.vkey))

    def rotations(self) -> list[str]:
        """See ``LockStore``."""
        with _errors():
            return [note for (note,) in self._session.base.execute("SELECT note FROM audit_rotation ORDER BY number")]

    def swap(self, old: Head, new: Head, *, rotation: str | None = None) -> None:
        """See ``LockStore``."""
        with self._session.transaction() as cursor:
            row = cursor.execute(
                "UPDATE audit_head SET epoch = %s, note = %s, vkey = %s WHERE epoch = %s AND note = %s AND vkey = %s RETURNING one",
                (new.epoch, new.note, new.vkey, old.epoch, old.note, old.vkey),
            ).fetchone()
            if row is None:
                current = self.head()
                raise fenced(f"epoch {current.epoch if current else None}", f"epoch {old.epoch} and its checkpoint")
            if rotation is not None:
                cursor.execute("INSERT INTO audit_rotation (note) VALUES (%s)", (rotation,))

    def while_owner(self, epoch: int, publish: Callable[[], None]) -> None:
        """See ``LockStore``."""
        with self._session.transaction() as cursor:
            row = cursor.execute("SELECT epoch FROM audit_head FOR UPDATE").fetchone()
            require_epoch(row[0] if row else None, epoch)
            publish()


def _copy(cursor: psycopg.Cursor, statement: str, types: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with cursor.copy(statement.encode()) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise io_error(error) from error
