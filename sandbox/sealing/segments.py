"""Decrypted segments of a payload, on demand: a bounded cache that decrypts each segment once however many ask, and reads ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sandbox.sealing.algorithms import TAG_BYTES
from sandbox.sealing.stream import Stream


class SegmentCache:
    """Plaintext of the last few segments used. Safe for use by many threads. An error is told to those who waited, and not kept."""

    def __init__(self, stream: Stream, read_at: Callable[[int, int], bytes], *, capacity: int, ahead: int = 0) -> None:
        """Keep ``capacity`` segments of 1 MiB; decrypt ``ahead`` more in the background when two in a row were asked for.

        ``read_at(offset, length)`` returns ciphertext within the stream.
        """
        self._stream = stream
        self._read_at = read_at
        self._capacity = max(capacity, ahead + 2)
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="read-ahead") if ahead else None
        self._lock = threading.Lock()
        self._futures: OrderedDict[int, Future[bytearray]] = OrderedDict()
        self._last = -2

    def get(self, index: int) -> bytearray:
        """Return segment ``index``, which is shared: look, do not touch. Raises ``BundleTamperedError``, and what reading raises."""
        with self._lock:
            future, mine = self._claim(index)
            sequential = index in (self._last + 1, self._last)
            fresh = index != self._last
            self._last = index
            wanted = []
            if self._pool is not None and sequential and fresh:
                wanted = [n for n in range(index + 1, min(index + 1 + self._ahead, self._stream.segments)) if n not in self._futures]
                claimed = [(n, self._claim(n)[0]) for n in wanted]
        if wanted and self._pool is not None:
            for number, promise in claimed:
                self._pool.submit(self._load, number, promise)
        if mine:
            self._load(index, future)
        return future.result()

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
            out = bytearray(high - low - TAG_BYTES)
            self._stream.open_segment(index, self._read_at(low, high - low), memoryview(out))
            future.set_result(out)
        except BaseException as error:  # noqa: BLE001  (raised again by everybody who waits)
            with self._lock:
                if self._futures.get(index) is future:
                    del self._futures[index]
            future.set_exception(error)
