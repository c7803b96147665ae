"""A PostgreSQL server of its own for tests: its data in RAM, on a unix socket in a folder of its own, never as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg import sql

from tests.patience import LONG

START_SECONDS = LONG


def find_binaries() -> Path | None:
    """Return the folder of the newest server's programs, or None."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    tool = shutil.which("postgres")
    return Path(tool).resolve().parent if tool else None


class PostgresServer:
    """One server. ``user``: whom it runs as where the tests run as root, which it refuses."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._user = _unprivileged()
        # A path of a unix socket has 107 bytes at most, so pytest's own folders are too deep.
        ram = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="sealrig-pg-", dir=ram if os.access(ram, os.W_OK) else None))
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "sealrig", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = ("listen_addresses=", f"unix_socket_directories={self.folder}", "max_connections=200", "log_min_messages=fatal",
                    "shared_buffers=32MB", "max_wal_size=256MB")  # fmt: skip
        words = [word for each in settings for word in ("-c", each)]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data, *words],
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self.folder,
        )
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                assert time.monotonic() < until, "postgres does not start"
                assert self._process.poll() is None, "postgres ended"
                time.sleep(0.05)
            else:
                return

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it as a power cut would: the server and all of its sessions at once."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGQUIT)  # "immediate shutdown": nothing is finished, the next start recovers from the journal
        self._process.wait(LONG)

    def stop(self) -> None:
        """End it and remove its data."""
        self.kill()
        shutil.rmtree(self.folder)

    def url(self, database: str) -> str:
        """Return a database's URL."""
        return f"postgresql://sealrig@/{database}?host={self.folder}"

    def create(self, template: str = "template0") -> str:
        """Make a database of a fresh name; return the name. ``template``: a database to copy as it is."""
        name = f"t{os.urandom(6).hex()}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as base:
            base.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def set(self, name: str, value: str) -> None:
        """Change a setting of the running server for all new sessions."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as base:
            base.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            base.execute("SELECT pg_reload_conf()")
        until = time.monotonic() + START_SECONDS
        while True:  # a reload is a signal: it takes a moment
            with psycopg.connect(self.url("postgres"), autocommit=True) as base:
                if base.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone() == (value,):
                    return
            assert time.monotonic() < until, f"{name} stays as it was"
            time.sleep(0.02)

    def drop_sessions(self, database: str) -> None:
        """Cut every connection to a database."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as base:
            base.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,))

    def _run(self, tool: str, *words: str) -> None:
        subprocess.run(
            [self._binaries / tool, *words],
            user=self._user,
            group=pwd.getpwnam(self._user).pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            cwd=self.folder,
        )


def _unprivileged() -> str | None:
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    return None
