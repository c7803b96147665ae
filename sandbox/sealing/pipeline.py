"""Read, hash, encrypt and write at the same time: a ring of fixed buffers that passes through stages, one thread a stage.

Reading, AES-GCM, BLAKE3 and writing all release the interpreter's lock, so a machine with two cores works on two stages at once and one with
more on all of them; each stage sees the batches in order. Memory is the ring, whatever the size of the file.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Sequence

from sandbox.sealing.algorithms import SEGMENT_BYTES, SEGMENT_PLAIN_BYTES
from sandbox.sealing.stream import Stream

BATCH_SEGMENTS = 2
RING = 5
"""Batches in flight: 5 x 2 x 2 MiB = 20 MiB, enough for each of four stages to hold one while one waits."""


class Batch:
    """Some segments of a stream with room for their plaintext and ciphertext. Page-aligned, allocated once, used again."""

    def __init__(self) -> None:
        """Allocate both buffers."""
        self.plain = memoryview(mmap.mmap(-1, BATCH_SEGMENTS * SEGMENT_PLAIN_BYTES))
        self.sealed = memoryview(mmap.mmap(-1, BATCH_SEGMENTS * SEGMENT_BYTES))
        self.first = 0
        self.count = 0
        self.plain_start = 0
        self.plain_size = 0
        self.pieces: list[tuple[int, int, int]] = []
        """(number of the file, start, end) of file bytes within ``plain``."""

    def place(self, stream: Stream, first: int) -> None:
        """Stand for the segments from ``first`` on."""
        self.first = first
        self.count = min(BATCH_SEGMENTS, stream.segments - first)
        self.plain_start = stream.plain_span(first)[0]
        self.plain_size = stream.plain_span(first + self.count - 1)[1] - self.plain_start
        self.pieces.clear()


Stage = Callable[[Batch], None]


def segments_of(batch: Batch, stream: Stream) -> list[tuple[int, memoryview, memoryview]]:
    """Return (number, plaintext, ciphertext) of a batch's segments, as views of its buffers.

    Ciphertext stands as in the file: segment 0 leaves room for the stream's header.
    """
    found = []
    base = batch.first * SEGMENT_BYTES
    for index in range(batch.first, batch.first + batch.count):
        start, end = stream.plain_span(index)
        low, high = stream.sealed_span(index)
        plain = batch.plain[start - batch.plain_start : end - batch.plain_start]
        found.append((index, plain, batch.sealed[low - base : high - base]))
    return found


def sealed_range(batch: Batch, stream: Stream) -> tuple[int, int]:
    """Return where a batch's ciphertext starts and ends in the stream, the stream's header included."""
    return batch.first * SEGMENT_BYTES, stream.sealed_span(batch.first + batch.count - 1)[1]


def run(stream: Stream, stages: Sequence[Stage]) -> None:
    """Pass every batch of a stream through ``stages`` in order; the first runs in the calling thread. The first error ends all and is raised."""
    free: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    for _ in range(min(RING, -(-stream.segments // BATCH_SEGMENTS))):
        free.put(Batch())
    queues: list[queue.SimpleQueue[Batch | None]] = [queue.SimpleQueue() for _ in stages[1:]]
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        onward = queues[number + 1] if number + 1 < len(queues) else None
        while (batch := queues[number].get()) is not None:
            if not stop.is_set():
                try:
                    stages[number + 1](batch)
                except BaseException as error:  # noqa: BLE001  (handed to the caller below)
                    errors.append(error)
                    stop.set()
            (onward or free).put(batch)
        if onward is not None:
            onward.put(None)

    threads = [threading.Thread(target=work, args=(number,), name=f"sealing-{number}", daemon=True) for number in range(len(queues))]
    for thread in threads:
        thread.start()
    try:
        for first in range(0, stream.segments, BATCH_SEGMENTS):
            batch = free.get()
            if stop.is_set():
                break
            batch.place(stream, first)
            stages[0](batch)
            queues[0].put(batch)
    except BaseException:
        stop.set()
        raise
    finally:
        queues[0].put(None)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
