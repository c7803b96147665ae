"""What every request works with: settings, database, store, log, journal and bell, opened once and closed once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from attestation.log.commitments import SubjectKeys
from attestation.log.note import MAX_NOTE_BYTES, Checkpoint, Note, NoteVerifier
from attestation.log.quorum import Quorum
from attestation.log.reader import CHECKPOINT, LogReader
from attestation.log.source import Source
from attestation.log.writer import LogWriter
from attestation.signing import SigningKey
from sandbox.control.bell import Bell
from sandbox.control.database.engine import Database
from sandbox.control.event_index import follow_log
from sandbox.control.journal import Journal
from sandbox.control.log_places import log_places
from sandbox.control.metrics import Metrics
from sandbox.control.settings import ControlSettings
from sandbox.control.store import BundleStore
from sandbox.control.store.url import open_store
from sandbox.control.uploading import Uploading
from sandbox.errors import UsageError
from sandbox.wire import PollAnswer

Clock = Callable[[], datetime]
logger = structlog.get_logger("sealrig.control")


@dataclass(frozen=True)
class Control:
    """The control plane's working parts."""

    settings: ControlSettings
    database: Database
    store: BundleStore
    journal: Journal
    keys: SubjectKeys
    bell: Bell
    metrics: Metrics
    log: LogWriter
    log_files: Source
    """The log's public files, as anybody may read them."""
    quorum: Quorum | None
    vkey: str
    now: Clock
    told: dict[str, PollAnswer] = field(default_factory=dict)
    """What each node was told last, in RAM only: one that is missed is told at once."""
    uploading: Uploading = field(default_factory=Uploading)

    def acknowledge(self, *topics: str) -> None:
        """Return once all committed changes are in the audit log, then wake those who wait for ``topics``."""
        self.journal.settle()
        self.bell.ring(*topics)


def utc_now() -> datetime:
    """Return the time with its zone."""
    return datetime.now(UTC)


@contextlib.contextmanager
def open_control(settings: ControlSettings, *, now: Clock = utc_now) -> Iterator[Control]:
    """Open the data folder for one process, bring database and log to the present, and pump what a crash left.

    Raises ``UsageError`` when another process serves the same folder or the database is from a newer version, ``LogStoreError`` when an
    old copy of the database or of a part of the log was restored.
    """
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.uploads_folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(settings))
        database = Database(settings.database_url)
        stack.callback(database.close)
        database.migrate()
        store = open_store(settings)
        key = _log_key(settings)
        places = log_places(settings.data, settings.log_state, settings.log_lock, settings.log_tiles)
        origin = _origin(settings, places.source(), key)
        quorum = None
        if settings.witnesses.witnesses:
            quorum = Quorum(LogReader(places.source()), settings.witnesses)
            stack.callback(quorum.close)
        log = stack.enter_context(LogWriter.open(places, origin=origin, key=key, cosign=quorum))
        keys = SubjectKeys(settings.data / "log-private")
        journal = Journal(database, log, keys)
        journal.settle()
        follow_log(database, LogReader(places.source()), log.signed())
        vkey = NoteVerifier(origin, key.public).text
        yield Control(settings, database, store, journal, keys, Bell(), Metrics(), log, places.source(), quorum, vkey, now)


def _log_key(settings: ControlSettings) -> SigningKey:
    path = settings.data / "log.key"
    if not path.exists():
        if (settings.data / "log-state").exists():
            raise UsageError("the audit log's key is missing", rule="log-key", seen=f"no {path}", wanted="the key that signed this log",
                             fix="restore log.key from a backup; another key would be another log")  # fmt: skip
        SigningKey.generate().save(path)
    return SigningKey.load(path)


def _origin(settings: ControlSettings, log_files: Source, key: SigningKey) -> str:
    """Return the log's name: that of the log that is there, for its first key may have been exchanged since."""
    if settings.log_origin:
        return settings.log_origin
    shown = log_files.read(CHECKPOINT, MAX_NOTE_BYTES)
    return Checkpoint.parse(Note.parse(shown).text).origin if shown is not None else f"sealrig.local/{key.public.key_id}"


@contextlib.contextmanager
def _only_one(settings: ControlSettings) -> Iterator[None]:
    fd = os.open(settings.data / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                "another control plane serves this data folder",
                rule="data-folder",
                seen=f"{settings.data} is locked",
                wanted="one server a folder",
                fix="stop the other one, or give this one its own --data",
            ) from error
        yield
    finally:
        os.close(fd)
