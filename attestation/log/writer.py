"""The one writer of a log: group commit, and the order in which a batch becomes durable.

1. entries and tree state are committed (``EntryStore``);
2. the checkpoint over them is signed;
3. it goes into the lock store in exchange for the one before (``LockStore``);
4. tiles and entry bundles are written (``PublicStore``): from here on the batch survives;
5. witnesses cosign;
6. ``checkpoint`` is published, last.

Callers hear their indexes after step 6; where witnesses do not agree within ``PATIENCE_SECONDS``, after step 4. Acknowledged means
committed, published means witnessed: entries that wait for witnesses are safe, and published with the first checkpoint that a quorum
cosigns. As long as the witnesses are known to be out of reach nobody waits for them.

A crash anywhere leaves batches between these steps; ``open`` replays them from what step 1 stored, or refuses with the reason. A
failure while running ends the same way: the batch is refused, the stores are opened anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from attestation.errors import LogError
from attestation.log.cosigning import Cosign, Cosigning
from attestation.log.errors import LeafError, LogFencedError, LogFetchError, LogLockedError, LogStoreError
from attestation.log.leaf import leaf_id
from attestation.log.places import LogPlaces
from attestation.log.state import Stores, open_stores
from attestation.log.store import io_error
from attestation.merkle import leaf_hash
from attestation.signing import SigningKey

MAX_BATCH = 4096
MAX_BATCH_BYTES = 16 * 1024 * 1024
GATHER_SECONDS = 0.002

PATIENCE_SECONDS = 2.0
REOPEN_SECONDS = 5.0
"""How long after a failure the stores are opened again although nobody appends."""


@dataclass(frozen=True)
class LogHealth:
    """How far the log is. ``waiting_seconds``: for how long something committed has not been published; ``problem``: why."""

    committed: int
    published: int
    waiting_seconds: float
    problem: str = ""


@dataclass
class _Request:
    leaves: list[bytes]
    ids: list[bytes]
    done: Future[list[int]]
    size: int


class LogWriter:
    """Appends to a log. Any number of threads may call it; one process at a time may hold it."""

    def __init__(self, places: LogPlaces, origin: str, key: SigningKey, cosign: Cosign | None) -> None:
        """Use ``open``."""
        self._places, self._origin, self._key = places, origin, key
        self._held = hold(places.held)
        self._queue: list[_Request] = []
        self._wake = threading.Condition()
        self._crowd, self._idle, self._agreed = 0, False, False
        self._closed = False
        self._fenced: LogFencedError | None = None
        self._stores: Stores | None = None
        self._behind_since: float | None = None
        self._problem = ""
        self._cosigning = None if cosign is None else Cosigning(cosign, self._hear)
        try:
            self._open_stores()
        except BaseException:
            self._end()
            raise
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, places: LogPlaces, *, origin: str, key: SigningKey, cosign: Cosign | None = None) -> Self:
        """Open or create the log at ``places`` and replay. ``cosign`` asks witnesses.

        Raises ``LogLockedError`` while another process writes, ``LogStoreError`` when the stores contradict each other.
        """
        return cls(places, origin, key, cosign)

    def append(self, leaves: Sequence[bytes]) -> list[int]:
        """Add leaves (``Leaf.to_bytes()``); return their indexes once they are durable, with their tiles and a signed checkpoint.

        That checkpoint is published by then too, unless witnesses keep it waiting. Idempotent by leaf id: a leaf that is in the log
        already keeps its index. Raises ``LeafError`` for bytes that are no leaf or that use an id again for other bytes,
        ``LogStoreError`` when the batch could not be made durable; after this the same call may be made again.
        """
        if not leaves:
            return []
        request = _Request(list(leaves), [leaf_id(leaf) for leaf in leaves], Future(), sum(map(len, leaves)))
        with self._wake:
            if self._fenced is not None:
                raise self._fenced
            if self._closed:
                raise LogStoreError("the log is closed", rule="log-closed", seen="closed", wanted="open")
            self._queue.append(request)
            if self._idle:
                self._wake.notify()
        return request.done.result()

    def checkpoint(self) -> str:
        """Return the published checkpoint, a signed note."""
        return self._open().published.note

    def signed(self) -> str:
        """Return the newest signed checkpoint of what is committed: it may wait for witnesses and is not for the public."""
        return self._open().signed.note

    def health(self) -> LogHealth:
        """Say how far the log is, from any thread."""
        stores, since = self._stores, self._behind_since
        problem = self._cosigning.problem if self._cosigning is not None else None
        waiting = 0.0 if since is None else time.monotonic() - since
        text = self._problem or (f"{problem.message}: {problem.details.get('seen', '')}" if problem is not None else "")
        return LogHealth(stores.size if stores else 0, stores.published.size if stores else 0, waiting, text)

    def close(self) -> None:
        """Finish what is queued, then let go of the log."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> None:
        if self._cosigning is not None:
            self._cosigning.close()
        try:
            if self._stores is not None:
                self._stores.close()
        finally:
            self._held.close()

    def _open(self) -> Stores:
        stores = self._stores
        if stores is None:
            raise LogStoreError(
                "the log's stores are closed after a failure", rule="log-failed", seen="closed", wanted="open", fix="append again"
            )
        return stores

    def _open_stores(self) -> Stores:
        """Open and replay, and have published what is not."""
        try:
            self._stores = open_stores(self._places, self._origin, self._key)
            self._publish(self._stores)
        except (OSError, LogFetchError) as error:
            raise io_error(error) from error
        self._problem = ""
        return self._stores

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            try:
                stores = self._stores or self._open_stores()
                self._publish_agreed(stores)
                if batch:
                    self._append(stores, batch)
            except Exception as error:  # noqa: BLE001  (whatever it is, the callers must hear it and the stores are replayed)
                self._fail(batch, error)

    def _hear(self) -> None:
        """Wake the writer, for witnesses agreed."""
        with self._wake:
            self._agreed = True
            self._wake.notify()

    def _take(self) -> list[_Request] | None:
        """Wait for requests; return as many as fit one commit, none where there is other work, None once closed."""
        with self._wake:
            self._idle = True
            while not self._queue and not self._closed and not self._agreed:
                if not self._wake.wait(REOPEN_SECONDS if self._stores is None else None):
                    break
            self._idle, self._agreed = False, False
            if not self._queue and self._closed:
                return None
            self._gather()
            count = leaves = size = 0
            for request in self._queue:
                leaves, size = leaves + len(request.leaves), size + request.size
                if count and (leaves > MAX_BATCH or size > MAX_BATCH_BYTES):
                    break
                count += 1
            batch, self._queue = self._queue[:count], self._queue[count:]
            self._crowd = count
            return batch

    def _gather(self) -> None:
        """Wait a moment for callers that the last commit woke, as long as they keep coming: they fit into this commit."""
        waiting = 0
        while waiting < len(self._queue) < self._crowd and not self._closed:
            waiting = len(self._queue)
            self._wake.wait(GATHER_SECONDS)

    def _append(self, stores: Stores, batch: list[_Request]) -> None:
        placing = _Placing(stores, [each for request in batch for each in request.ids])
        answers: list[tuple[_Request, list[int]]] = []
        for request in batch:
            try:
                answers.append((request, placing.place(request)))
            except LeafError as error:
                request.done.set_exception(error)
        if placing.fresh:
            stores.commit(list(placing.fresh.items()))
            self._publish(stores)
        for request, indexes in answers:
            request.done.set_result(indexes)

    def _publish(self, stores: Stores) -> None:
        """Publish what is signed: at once, or when witnesses agree, for which a healthy quorum is waited."""
        if self._cosigning is None:
            if not stores.published.note.startswith(stores.signed.note):
                stores.publish(stores.signed, ())
            return
        if self._behind_since is None:
            self._behind_since = time.monotonic()
        self._cosigning.offer(stores.signed)
        self._publish_agreed(stores, PATIENCE_SECONDS)

    def _publish_agreed(self, stores: Stores, seconds: float = 0.0) -> None:
        """Publish what witnesses have cosigned; wait for it up to ``seconds``."""
        until = time.monotonic() + seconds
        while self._cosigning is not None:
            agreed = self._cosigning.take(max(0.0, until - time.monotonic()))
            if agreed is None:
                return
            signed, lines = agreed
            if signed.size >= stores.published.size:
                stores.publish(signed, lines)
            if signed == stores.signed:
                self._behind_since = None
                return

    def _fail(self, batch: list[_Request], error: Exception) -> None:
        """Refuse a batch and close the stores: whether it is durable is not known, a replay finds out."""
        if self._stores is not None:
            with contextlib.suppress(LogError, OSError):
                self._stores.close()
            self._stores = None
        refusal = error if isinstance(error, LogError) and not isinstance(error, LogFetchError) else io_error(error)
        self._problem = f"{refusal.message}: {refusal.details.get('seen', '')}"
        if isinstance(refusal, LogFencedError):
            # Opening anew would take the log back from its new writer: this one is done for good.
            with self._wake:
                self._fenced, self._closed = refusal, True
                batch, self._queue = batch + self._queue, []
        for request in batch:
            if not request.done.done():
                request.done.set_exception(refusal)


class _Placing:
    """Gives the leaves of one commit their indexes. ``fresh``: id to bytes of what is new, in order."""

    def __init__(self, stores: Stores, ids: list[bytes]) -> None:
        self._stores, self._size = stores, stores.size
        self._known = stores.entries.find(ids)
        self.fresh: dict[bytes, bytes] = {}

    def place(self, request: _Request) -> list[int]:
        """Return the indexes of a request's leaves. Raises ``LeafError`` and takes back all of the request."""
        added: list[bytes] = []
        for id_, leaf in zip(request.ids, request.leaves, strict=True):
            if id_ not in self._known:
                self._known[id_] = self._size + len(self.fresh)
                self.fresh[id_] = leaf
                added.append(id_)
            elif not self._same(id_, leaf):
                for taken in added:
                    del self._known[taken], self.fresh[taken]
                raise LeafError(
                    "another leaf has this id",
                    rule="leaf-id-reused",
                    seen=id_.hex(),
                    wanted="the same bytes for the same id",
                    fix="give every event its own id",
                )
        return [self._known[id_] for id_ in request.ids]

    def _same(self, id_: bytes, leaf: bytes) -> bool:
        at = self._known[id_]
        return self.fresh[id_] == leaf if at >= self._size else self._stores.leaf_hash_at(at) == leaf_hash(leaf)


class Held:
    """The writer's file lock; it ends with the process, or with ``close``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Let go."""
        os.close(self._fd)


def hold(folder: Path) -> Held:
    """Take the writer's file lock. Raises ``LogLockedError``."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise LogLockedError(
            "another process writes this log",
            rule="log-locked",
            seen=str(folder / "writer.lock"),
            wanted="one writer",
            fix="stop the other process, or use the running server's address",
        ) from error
    return Held(fd)
