"""Decrypted segments of a payload, on demand: a bounded cache that decrypts each segment once however many ask, and reads ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sandbox.errors import BundleTamperedError
from sandbox.sealing.algorithms import TAG_BYTES
from sandbox.sealing.stream import Stream

READ_AHEAD_THREADS = 4
READERS = 64
"""How many segments last asked for are remembered, to tell who reads on and on among many readers."""


class SegmentCache:
    """Plaintext of the last few segments used. Safe for use by many threads. An error is told to those who waited, and not kept."""

    def __init__(
        self,
        stream: Stream,
        read_at: Callable[[int, int], bytes],
        *,
        capacity: int,
        ahead: int = 0,
        forget: Callable[[int], None] | None = None,
    ) -> None:
        """Keep ``capacity`` segments of 1 MiB; decrypt ``ahead`` more in the background where somebody reads on and on.

        ``read_at(offset, length)`` returns ciphertext within the stream; ``forget(offset)`` is told of a segment that did not verify.
        """
        self._stream = stream
        self._read_at = read_at
        self._forget = forget
        self._capacity = max(capacity, ahead + 2)
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(READ_AHEAD_THREADS, thread_name_prefix="read-ahead") if ahead else None
        self._lock = threading.Lock()
        self._futures: OrderedDict[int, Future[bytearray]] = OrderedDict()
        self._recent: OrderedDict[int, None] = OrderedDict()

    def get(self, index: int) -> bytearray:
        """Return segment ``index``, which is shared: look, do not touch. Raises ``BundleTamperedError``, and what reading raises."""
        claimed: list[tuple[int, Future[bytearray]]] = []
        with self._lock:
            future, mine = self._claim(index)
            if index not in self._recent:
                if self._pool is not None and index - 1 in self._recent:
                    claimed = [(n, self._claim(n)[0]) for n in self._missing(index + 1)]
                self._recent[index] = None
                if len(self._recent) > READERS:
                    self._recent.popitem(last=False)
        for number, promise in claimed:
            if self._pool is not None:
                self._pool.submit(self._load, number, promise)
        if mine:
            self._load(index, future)
        return future.result()

    def _missing(self, start: int) -> list[int]:
        return [n for n in range(start, min(start + self._ahead, self._stream.segments)) if n not in self._futures]

    def close(self) -> None:
        """Forget everything and end the background threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=False)
        with self._lock:
            self._futures.clear()

    def _claim(self, index: int) -> tuple[Future[bytearray], bool]:
        found = self._futures.get(index)
        if found is not None:
            self._futures.move_to_end(index)
            return found, False
        future: Future[bytearray] = Future()
        self._futures[index] = future
        while len(self._futures) > self._capacity:
            self._futures.popitem(last=False)
        return future, True

    def _load(self, index: int, future: Future[bytearray]) -> None:
        try:
            low, high = self._stream.sealed_span(index)
            sealed = self._read_at(low, high - low)
            out = bytearray(high - low - TAG_BYTES)
            try:
                self._stream.open_segment(index, sealed, memoryview(out))
            except BundleTamperedError:
                if self._forget is not None:
                    self._forget(low)
                raise
            future.set_result(out)
        except BaseException as error:  # noqa: BLE001  (raised again by everybody who waits)
            with self._lock:
                if self._futures.get(index) is future:
                    del self._futures[index]
            future.set_exception(error)
