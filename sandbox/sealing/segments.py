"""Decrypted segments of a payload, on demand: a bounded cache that decrypts each segment once however many ask, and reads ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from sandbox.sealing.algorithms import TAG_BYTES
from sandbox.sealing.source import Span
from sandbox.sealing.stream import Stream

READ_AHEAD_THREADS = 4
READERS = 64
"""How many segments last asked for are remembered, to tell who reads on and on among many readers."""


class SegmentCache:
    """Plaintext of the last few segments used. Safe for use by many threads. An error is told to those who waited, and not kept."""

    def __init__(
        self,
        stream: Stream,
        read_spans: Callable[[Sequence[Span]], list[bytes]],
        *,
        capacity: int,
        ahead: int = 0,
        run: int = 1,
        forget: Callable[[int], None] | None = None,
    ) -> None:
        """Keep ``capacity`` segments of 1 MiB; decrypt ``ahead`` more in the background where somebody reads on and on.

        ``read_spans`` returns the ciphertext of spans of the stream that follow each other; it is asked for ``run`` segments at once, where
        a request costs more than a read. ``forget(offset)`` is told of a segment that did not verify.
        """
        self._stream = stream
        self._read_spans = read_spans
        self._forget = forget
        self._capacity = max(capacity, ahead + 2)
        self._ahead = ahead
        self._run = run
        self._pool = ThreadPoolExecutor(READ_AHEAD_THREADS, thread_name_prefix="read-ahead") if ahead else None
        self._lock = threading.Lock()
        self._futures: OrderedDict[int, Future[bytearray]] = OrderedDict()
        self._recent: OrderedDict[int, None] = OrderedDict()

    def get(self, index: int) -> bytearray:
        """Return segment ``index``, which is shared: look, do not touch. Raises ``BundleTamperedError``, and what reading raises."""
        runs: list[dict[int, Future[bytearray]]] = []
        with self._lock:
            future, mine = self._claim(index)
            if index not in self._recent:
                if self._pool is not None and index - 1 in self._recent:
                    runs = [{n: self._claim(n)[0] for n in numbers} for numbers in self._missing(index + 1)]
                self._recent[index] = None
                if len(self._recent) > READERS:
                    self._recent.popitem(last=False)
        for promises in runs:
            if self._pool is not None:
                self._pool.submit(self._load, promises)
        if mine:
            self._load({index: future})
        return future.result()

    def _missing(self, start: int) -> list[list[int]]:
        """Return what is to be read ahead from ``start``, in runs; nothing while there is less than a whole run of it."""
        stop = min(start + self._ahead, self._stream.segments)
        wanted = [n for n in range(start, stop) if n not in self._futures]
        if len(wanted) < self._run and stop < self._stream.segments:
            return []
        runs: list[list[int]] = []
        for number in wanted:
            if runs and runs[-1][-1] == number - 1 and len(runs[-1]) < self._run:
                runs[-1].append(number)
            else:
                runs.append([number])
        return runs

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

    def _load(self, promises: dict[int, Future[bytearray]]) -> None:
        """Read a run of segments at once, and decrypt one after the other."""
        try:
            sealed = self._read_spans([self._span(index) for index in promises])
        except BaseException as error:  # noqa: BLE001  (raised again by everybody who waits)
            for index, promise in promises.items():
                self._fail(index, promise, error)
            return
        for (index, promise), data in zip(promises.items(), sealed, strict=True):
            try:
                out = bytearray(len(data) - TAG_BYTES)
                self._stream.open_segment(index, data, memoryview(out))
            except BaseException as error:  # noqa: BLE001  (as above)
                if self._forget is not None:
                    self._forget(self._span(index)[0])
                self._fail(index, promise, error)
            else:
                promise.set_result(out)

    def _fail(self, index: int, promise: Future[bytearray], error: BaseException) -> None:
        with self._lock:
            if self._futures.get(index) is promise:
                del self._futures[index]
        promise.set_exception(error)

    def _span(self, index: int) -> Span:
        low, high = self._stream.sealed_span(index)
        return low, high - low
