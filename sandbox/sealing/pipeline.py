"""Read, hash, encrypt and write on all cores: each worker takes one segment through every step, in its own buffers.

Reading, AES-GCM, BLAKE3 and writing all release the interpreter's lock. A segment stays in one core's cache from the first step to the
last; steps that depend on what came before (hashing, walking the tar) wait for their turn. Memory is the workers' buffers.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sandbox.sealing.algorithms import SEGMENT_BYTES, SEGMENT_PLAIN_BYTES
from sandbox.sealing.entries import Entry
from sandbox.sealing.stream import Stream

WORKERS = max(4, min(6, (os.cpu_count() or 1) + 1))
"""More than there are cores, so that a thread that waits for its turn or the disk leaves no core idle; 2 MiB each."""


class Piece(NamedTuple):
    """Bytes of an entry within a batch's ``plain``; ``first`` and ``last`` say whether they are the entry's first and last ones."""

    entry: Entry
    start: int
    end: int
    first: bool
    last: bool


class Batch:
    """One segment's plaintext and ciphertext, page-aligned, allocated once and used again and again."""

    def __init__(self, stream: Stream) -> None:
        """Allocate both buffers."""
        self._stream = stream
        self._plain = memoryview(mmap.mmap(-1, SEGMENT_PLAIN_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._sealed = memoryview(mmap.mmap(-1, SEGMENT_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.pieces: list[Piece] = []
        self.place(0)

    def place(self, index: int) -> None:
        """Stand for segment ``index``."""
        self.index = index
        self.plain_start, plain_end = self._stream.plain_span(index)
        self.plain = self._plain[: plain_end - self.plain_start]
        low, high = self._stream.sealed_span(index)
        self.start = index * SEGMENT_BYTES
        """Where ``block`` stands in the stream."""
        self.block = self._sealed[: high - self.start]
        """The ciphertext as it stands in the file; in segment 0 the stream's header is in front."""
        self.sealed = self.block[low - self.start :]
        """The ciphertext without the stream's header."""
        self.pieces.clear()


@dataclass(frozen=True)
class Step:
    """What is done to every segment; ``ordered`` steps see one segment after the other."""

    action: Callable[[Batch], None]
    ordered: bool


class _Stopped(Exception):  # noqa: N818  (not an error: another worker has one)
    """Ends a worker that waits for a turn that will not come."""


class _Turns:
    """Lets segment i through when segment i - 1 has passed.

    Segments that wait are always neighbours, so one lock a worker is enough, and each turn wakes exactly one thread.
    """

    def __init__(self, workers: int, stop: threading.Event) -> None:
        self._stop = stop
        self._locks = [threading.Lock() for _ in range(workers)]
        for lock in self._locks[1:]:
            lock.acquire()

    def wait(self, index: int) -> None:
        self._locks[index % len(self._locks)].acquire()
        if self._stop.is_set():
            raise _Stopped

    def done(self, index: int) -> None:
        _release(self._locks[(index + 1) % len(self._locks)])

    def wake(self) -> None:
        for lock in self._locks:
            _release(lock)


def _release(lock: threading.Lock) -> None:
    with contextlib.suppress(RuntimeError):  # not held: another thread ended the run
        lock.release()


class _Run:
    def __init__(self, stream: Stream, steps: Sequence[Step], workers: int) -> None:
        self._stream = stream
        self.stop = threading.Event()
        self._steps = [(step.action, _Turns(workers, self.stop) if step.ordered else None) for step in steps]
        self._numbers = itertools.count()
        self.errors: list[BaseException] = []

    def work(self) -> None:
        try:
            batch = Batch(self._stream)
            while (index := next(self._numbers)) < self._stream.segments and not self.stop.is_set():
                batch.place(index)
                for action, turns in self._steps:
                    if turns is None:
                        action(batch)
                    else:
                        turns.wait(index)
                        action(batch)
                        turns.done(index)
        except _Stopped:
            return
        except BaseException as error:  # noqa: BLE001  (handed to the caller)
            self.errors.append(error)
            self.end()

    def end(self) -> None:
        """Wake and end all workers."""
        self.stop.set()
        for _, turns in self._steps:
            if turns is not None:
                turns.wake()


def run(stream: Stream, steps: Sequence[Step]) -> None:
    """Take every segment of a stream through ``steps``. The first error ends all and is raised; nothing runs any more on return."""
    workers = min(WORKERS, stream.segments)
    work = _Run(stream, steps, workers)
    threads = [threading.Thread(target=work.work, name=f"sealing-{n}", daemon=True) for n in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        work.end()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if work.errors:
        raise work.errors[0]
