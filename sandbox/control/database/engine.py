"""Sessions on SQLite or PostgreSQL, and bringing the database to the present shape."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from sandbox.control.errors import storage_error
from sandbox.errors import UsageError

BUSY_SECONDS = 15
_WRITER = 0x5EA1C0DE  # names the write lock among other programs' advisory locks in the database
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Reading and writing sessions.

    A commit is durable when it returns: SQLite runs in WAL mode with ``synchronous=FULL``, PostgreSQL sessions with
    ``synchronous_commit`` on. A writing session takes the one write lock when it begins, on both: so it never fails half-way because
    another writer came first, what it read stays true, and events are committed in the order of their ids, which is that of the log.
    """

    def __init__(self, url: str) -> None:
        """Open the database at an SQLAlchemy URL. Raises ``UsageError`` for a URL or driver that does not work."""
        self.url = _parse(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        try:
            if self.is_sqlite:
                self.engine = create_engine(
                    self.url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, pool_size=24, max_overflow=24
                )
                event.listen(self.engine, "connect", _prepare_sqlite)
                event.listen(self.engine, "begin", _begin_sqlite)
            else:
                self.engine = create_engine(
                    self.url, connect_args={"options": "-c synchronous_commit=on"}, pool_size=16, max_overflow=16, pool_pre_ping=True
                )
                event.listen(self.engine, "begin", _begin_postgres)
        except (ModuleNotFoundError, ArgumentError) as error:
            raise UsageError("the database cannot be used", rule="database", seen=self.url.drivername, wanted="sqlite or postgresql",
                             fix="install the driver, or correct --database") from error  # fmt: skip
        self._writer: Engine = self.engine.execution_options(sealrig_write=True)
        # SQLite has one writer at a time and lets the others poll for their turn; here they queue instead, and on PostgreSQL take no
        # connection while they do.
        self._turn = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session that sees one consistent state and writes nothing."""
        with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            try:
                yield session
            except OperationalError as error:
                raise storage_error(error, "the database") from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session that commits, durably, when its block ends, or changes nothing when the block raises."""
        try:
            with self._turn, Session(self._writer, expire_on_commit=False) as session, session.begin():
                yield session
        except OperationalError as error:
            raise storage_error(error, "the database") from error

    def migrate(self) -> None:
        """Bring an empty or older database to the shape this version needs. Raises ``UsageError`` for one from a newer version."""
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        try:
            with self._writer.connect() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise UsageError("the database is from another version of Sealrig", rule="database-version", seen=str(error),
                             wanted="a version this program knows", fix="run the newer Sealrig") from error  # fmt: skip
        except OperationalError as error:
            raise UsageError("the database does not open", rule="database", seen=str(error.orig), wanted="a reachable database",
                             fix="check --data and --database") from error  # fmt: skip

    def scrub(self) -> None:
        """Cut what deleted rows left beside the tables: SQLite zeroes them in place and here truncates its journal.

        PostgreSQL keeps dead rows until its own vacuum.
        """
        if self.is_sqlite:
            with self._turn, self.engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UsageError(
            "--database is not a database URL",
            rule="database",
            seen=url.rsplit("@", maxsplit=1)[-1][:200],
            wanted="sqlite:///… or postgresql+psycopg://…",
            fix="correct --database",
        ) from error
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise UsageError(
            "this database is not supported",
            rule="database",
            seen=parsed.drivername,
            wanted="sqlite or postgresql",
            fix="correct --database",
        )
    if parsed.password:
        raise UsageError(
            "a database's password does not belong into its URL",
            rule="database-password",
            seen=f"a password for {parsed.host}",
            wanted="a URL without a password: others see the command line",
            fix="put it into a file of mode 0600 that PGPASSFILE names, or into ~/.pgpass",
        )
    return parsed


def _prepare_sqlite(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:  # noqa: ARG001  (SQLAlchemy's signature)
    if isinstance(connection, sqlite3.Connection):
        connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where the driver guesses
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")


def _begin_postgres(connection: Connection) -> None:
    if connection.get_execution_options().get("sealrig_write", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get("sealrig_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
