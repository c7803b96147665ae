"""Where a log's parts are: SQLite files and a folder below the data folder, or a database and a bucket instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.log.errors import LogStoreError
from attestation.log.files import PublicFolder, sync_folder
from attestation.log.source import FolderSource, Source
from attestation.log.sqlite import SqliteEntries, SqliteLock
from attestation.log.store import EntryStore, LockStore, PublicStore

if TYPE_CHECKING:
    from attestation.log.bucket import Bucket


@dataclass(frozen=True)
class LogPlaces:
    """``data`` holds what nothing else is said of: ``log/`` (public), ``log-state/`` and ``log-lock/`` (private).

    ``state`` and ``lock``: PostgreSQL URLs for the entry store and the lock store; best not the same database, so that no one backup
    holds both. ``lock`` may also be a folder, best on another disk. ``bucket``: where the public files go instead of ``log/``.
    """

    data: Path
    state: str = ""
    lock: str = ""
    bucket: Bucket | None = None

    @property
    def held(self) -> Path:
        """The folder whose file lock keeps a second writer of this machine away."""
        return self.data / "log-state"

    def open_entries(self) -> EntryStore:
        """Open or create the entry store. Raises ``LogStoreError``."""
        if not self.state:
            return SqliteEntries(_private(self.data / "log-state") / "entries.db")
        from attestation.log.postgres import PostgresEntries

        _require_postgres(self.state)
        return PostgresEntries(self.state)

    def open_lock(self) -> LockStore:
        """Open or create the lock store. Raises ``LogStoreError``."""
        if "://" not in self.lock:
            return SqliteLock(_private(Path(self.lock) if self.lock else self.data / "log-lock") / "lock.db")
        from attestation.log.postgres import PostgresLock

        _require_postgres(self.lock)
        return PostgresLock(self.lock)

    def open_public(self) -> PublicStore:
        """Open or create the place of the public files."""
        if self.bucket is None:
            return PublicFolder(self.data / "log")
        from attestation.log.bucket import PublicBucket

        return PublicBucket(self.bucket)

    def source(self) -> Source:
        """Return what reads the public files; any number of threads may use it beside the writer."""
        if self.bucket is None:
            return FolderSource(self.data / "log")
        from attestation.log.bucket import BucketSource

        return BucketSource(self.bucket)


def _private(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    sync_folder(folder.parent)
    return folder


def _require_postgres(url: str) -> None:
    from attestation.log.postgres import is_postgres

    if not is_postgres(url):
        raise LogStoreError(
            "a log cannot keep its state there",
            rule="store-url",
            seen=url.partition("://")[0][:40],
            wanted="postgresql://…",
            fix="correct the URL",
        )
