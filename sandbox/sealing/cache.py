"""Ciphertext that was fetched once, kept in a file that never grows beyond its bound: so that a view need not fetch it again.

Slots of one segment each; a full cache gives the slot that was used longest ago to the next piece. Only ciphertext is in it, exactly as it
came; what is read back is authenticated like what comes from the server.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox.sealing.algorithms import SEGMENT_BYTES
from sandbox.sealing.source import Piece, Source, Span, read_spans


@dataclass
class _Slot:
    number: int
    length: int
    readers: int = 0


class CachedSource:
    """A ``Source`` over another one. Pieces are known by where they start, so ask for the same ones. Safe for use by many threads.

    A disk that is full or fails costs the cache, never a read.
    """

    def __init__(self, source: Source, path: Path, limit: int) -> None:
        """Make the file at ``path`` (mode 0600), which grows to ``limit`` bytes at most. Raises ``OSError`` where it cannot be made."""
        self._source = source
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._slots = limit // SEGMENT_BYTES
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _Slot] = OrderedDict()
        self._free: list[int] = []
        self._next = 0

    @property
    def size(self) -> int:
        """How many bytes the bundle has."""
        return self._source.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, from the file or else from the source, which says what it raises."""
        return bytes(self.read_spans([(offset, length)])[0])  # no copy: one piece is bytes

    def read_spans(self, spans: Sequence[Span]) -> list[Piece]:
        """Return pieces that follow each other; what is not in the file is asked of the source as one for each gap."""
        found: dict[int, Piece | None] = {at: self._kept_piece(at, length) for at, length in spans}
        gap: list[Span] = []
        for span in (*spans, None):
            if span is not None and found[span[0]] is None:
                gap.append(span)
            elif gap:
                for (at, _), data in zip(gap, read_spans(self._source, gap), strict=True):
                    found[at] = data
                    self._keep(at, data)
                gap = []
        return [data for data in found.values() if data is not None]

    def forget(self, offset: int) -> None:
        """Give up the piece from ``offset``, because it did not verify: the next read asks the source again."""
        with self._lock:
            slot = self._kept.pop(offset, None)
            if slot is not None and slot.readers == 0:
                self._free.append(slot.number)

    def close(self) -> None:
        """Close the file; whoever named it removes it."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._slots = -1, 0
            self._kept.clear()

    def _kept_piece(self, offset: int, length: int) -> bytes | None:
        with self._lock:
            slot = self._kept.get(offset)
            if slot is None or slot.length != length:
                return None
            self._kept.move_to_end(offset)
            slot.readers += 1  # nobody is given this slot meanwhile
        try:
            data = os.pread(self._fd, length, slot.number * SEGMENT_BYTES)
        except OSError:
            data = b""
        with self._lock:
            slot.readers -= 1
            if slot.readers == 0 and self._kept.get(offset) is not slot:
                self._free.append(slot.number)  # forgotten while it was read
        return data if len(data) == length else None

    def _keep(self, offset: int, data: Piece) -> None:
        with self._lock:
            number = None if offset in self._kept or len(data) > SEGMENT_BYTES else self._claim()
        if number is None:
            return
        try:
            whole = os.pwrite(self._fd, data, number * SEGMENT_BYTES) == len(data)
        except OSError:
            whole = False
        with self._lock:
            if whole and offset not in self._kept:
                self._kept[offset] = _Slot(number, len(data))
                return
            self._free.append(number)
            if not whole:
                self._slots = min(self._slots, self._next)  # the disk takes no more: make do with what there is

    def _claim(self) -> int | None:
        if self._free:
            return self._free.pop()
        if self._next < self._slots:
            self._next += 1
            return self._next - 1
        for offset, slot in self._kept.items():
            if slot.readers == 0:
                del self._kept[offset]
                return slot.number
        return None
