"""Decrypted segments of a payload, on demand: a bounded cache that decrypts each segment once however many ask, and reads ahead."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from sandbox.sealing.algorithms import TAG_BYTES
from sandbox.sealing.source import Piece, Span
from sandbox.sealing.stream import Stream

READ_AHEAD_THREADS = 4
READERS = 64
"""How many segments last asked for are remembered, to tell who reads on and on among many readers."""

_bytearray = ctypes.pythonapi.PyByteArray_FromStringAndSize
_bytearray.restype, _bytearray.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)


class _Slot:
    """One segment: on its way, there, or failed. ``gate`` is locked until it is known which."""

    __slots__ = ("error", "gate", "plain")

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.plain: bytearray | None = None
        self.error: BaseException | None = None

    def wait(self) -> bytearray:
        if self.plain is None:
            with self.gate:  # for whoever else waits, too
                pass
        if self.plain is None:
            raise self.error or RuntimeError("neither a segment nor an error")
        return self.plain


class SegmentCache:
    """Plaintext of the last few segments used. Safe for use by many threads. An error is told to those who waited, and not kept."""

    def __init__(
        self,
        stream: Stream,
        read_spans: Callable[[Sequence[Span]], list[Piece]],
        *,
        capacity: int,
        ahead: int = 0,
        run: int = 1,
        forget: Callable[[int], None] | None = None,
    ) -> None:
        """Keep ``capacity`` segments of 1 MiB, half of them read ahead: up to ``ahead`` for each reader that reads on and on.

        ``read_spans`` returns the ciphertext of spans of the stream that follow each other; it is asked for ``run`` segments at once, where
        a request costs more than a read. ``forget(offset)`` is told of a segment that did not verify.
        """
        self._stream = stream
        self._read_spans = read_spans
        self._forget = forget
        self._capacity = capacity
        self._ahead = ahead
        self._run = run
        self._pool = ThreadPoolExecutor(READ_AHEAD_THREADS, thread_name_prefix="read-ahead") if ahead else None
        self._lock = threading.Lock()
        self._used: OrderedDict[int, _Slot] = OrderedDict()
        """Segments that somebody asked for, the one asked for last at the end."""
        self._early: OrderedDict[int, _Slot] = OrderedDict()
        """Segments that nobody has asked for yet."""
        self._recent: OrderedDict[int, None] = OrderedDict()

    def get(self, index: int) -> bytearray:
        """Return segment ``index``, which is shared: look, do not touch. Raises ``BundleTamperedError``, and what reading raises."""
        return next(self.get_all(range(index, index + 1)))

    def get_all(self, indices: range) -> Iterator[bytearray]:
        """Return segments that follow each other, as ``get`` does, each with its own error.

        What nobody loads yet is loaded before what others load is waited for: two who share the segment at their seam load the rest of
        what they want at the same time.
        """
        with self._lock:
            slots: list[_Slot] = []
            mine: dict[int, _Slot] = {}
            for index in indices:
                slot = self._used.get(index) or self._early.pop(index, None)
                if slot is None:
                    slot = mine[index] = self._claim()
                self._used[index] = slot
                self._used.move_to_end(index)
                slots.append(slot)
            ahead = [] if self._pool is None else [run for index in indices for run in self._follow(index)]
        for run in ahead:
            if self._pool is not None:
                self._pool.submit(self._load, run)
        for numbers in self._runs(mine, self._run):
            self._load({number: mine[number] for number in numbers})
        return (slot.wait() for slot in slots)

    def _follow(self, index: int) -> list[dict[int, _Slot]]:
        """Remember who asked for ``index``, and return what to read ahead for them, claimed."""
        if index in self._recent:
            return []
        self._recent[index] = None
        if len(self._recent) > READERS:
            self._recent.popitem(last=False)
        if index - 1 not in self._recent:
            return []
        runs = self._missing(index + 1)
        for number in itertools.chain.from_iterable(runs):
            self._early[number] = self._claim()  # one by one: each claim counts those before
        return [{number: self._early[number] for number in numbers} for numbers in runs]

    def _missing(self, start: int) -> list[list[int]]:
        """Return what is to be read ahead from ``start``, in runs; nothing while there is less than a whole run of it."""
        ahead = self._share()
        stop = min(start + ahead, self._stream.segments)
        wanted = [n for n in range(start, stop) if n not in self._used and n not in self._early]
        run = min(self._run, ahead)
        if len(wanted) < run and stop < self._stream.segments:
            return []
        return self._runs(wanted, run)

    @staticmethod
    def _runs(numbers: Iterable[int], longest: int) -> list[list[int]]:
        """Return rising numbers in runs of at most ``longest`` that follow each other."""
        runs: list[list[int]] = []
        for number in numbers:
            if runs and runs[-1][-1] == number - 1 and len(runs[-1]) < longest:
                runs[-1].append(number)
            else:
                runs.append([number])
        return runs

    def _share(self) -> int:
        """Return how far to read ahead for one reader, so that what is read for all of them fits: else each would push out the others'."""
        recent = self._recent
        readers = sum(n + 1 not in recent and n - 1 in recent for n in recent)
        return min(self._ahead, self._capacity // 2 // max(readers, 1))

    def close(self) -> None:
        """Forget everything and end the background threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=False)
        with self._lock:
            self._used.clear()
            self._early.clear()

    def _claim(self) -> _Slot:
        """Return a new slot in the place of an old one: of each half the oldest, so that what is read ahead lasts until it is used."""
        if len(self._used) + len(self._early) >= self._capacity:
            halves = [self._used, self._early] if len(self._used) >= self._capacity // 2 else [self._early, self._used]
            for half in halves:
                # What is on its way is waited for, and would cost the same again. There is little of it: a run for each thread.
                oldest = next((number for number, kept in half.items() if kept.plain is not None), None)
                if oldest is not None:
                    del half[oldest]
                    break
        return _Slot()

    def _load(self, slots: dict[int, _Slot]) -> None:
        """Read a run of segments at once, and decrypt one after the other."""
        try:
            sealed = self._read_spans([self._span(index) for index in slots])
        except BaseException as error:  # noqa: BLE001  (raised again by everybody who waits)
            for index, slot in slots.items():
                self._fail(index, slot, error)
            return
        for (index, slot), data in zip(slots.items(), sealed, strict=True):
            try:
                out = _uncleared(len(data) - TAG_BYTES)
                self._stream.open_segment(index, data, memoryview(out))
            except BaseException as error:  # noqa: BLE001  (as above)
                if self._forget is not None:
                    self._forget(self._span(index)[0])
                self._fail(index, slot, error)
            else:
                slot.plain = out
                slot.gate.release()

    def _fail(self, index: int, slot: _Slot, error: BaseException) -> None:
        with self._lock:
            for half in (self._used, self._early):
                if half.get(index) is slot:
                    del half[index]
        cause: BaseException | None = error
        while cause is not None:  # whose frames hold the ciphertext and this slot: a circle that only the collector would end
            cause.__traceback__ = None
            cause = cause.__cause__ or cause.__context__
        slot.error = error
        slot.gate.release()

    def _span(self, index: int) -> Span:
        low, high = self._stream.sealed_span(index)
        return low, high - low


def _uncleared(size: int) -> bytearray:
    """Return a bytearray of whatever was in memory: clearing takes a tenth of a segment's time, and a segment fills it or is given up."""
    made: bytearray = _bytearray(None, size)  # https://docs.python.org/3/c-api/bytearray.html: without a string it is not initialised
    return made
