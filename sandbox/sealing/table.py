"""Entries by the hundred thousand in little memory: each is packed into one string of bytes, about 110 and its names.

A ``Table`` finds them by path and is for views, which stay; a ``Listing`` keeps any number in order, for a program that goes through them.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import ItemsView, Iterator, Mapping, ValuesView

from sandbox.sealing.entries import Entry, Kind, order
from sandbox.sealing.spool import Spool

_HEAD = struct.Struct("<BBBHHqIQQ")
"""Kind, sparse, length of the digest, mode, length of the path, mtime (seconds, nanoseconds), size, offset. Digest, path, target follow."""
_KINDS = tuple(Kind)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_BILLION = 10**9


def pack(entry: Entry) -> bytes:
    """Return an entry in the form that takes the least room."""
    path, kind, mode, mtime_ns, size, offset, target, digest, sparse = entry
    seconds, rest = divmod(mtime_ns, _BILLION)
    return _HEAD.pack(_NUMBERS[kind], sparse, len(digest), mode, len(path), seconds, rest, size, offset) + digest + path + target


def unpack(raw: bytes, at: int = 0) -> Entry:
    """Return the entry that was packed and stands from ``at`` to the end of ``raw``."""
    number, sparse, digest_bytes, mode, path_bytes, seconds, rest, size, offset = _HEAD.unpack_from(raw, at)
    at += _HEAD.size
    path_at = at + digest_bytes
    path_end = path_at + path_bytes
    return Entry(
        raw[path_at:path_end], _KINDS[number], mode, seconds * _BILLION + rest, size, offset, raw[path_end:], raw[at:path_at], sparse == 1
    )


def path_of(raw: bytes, at: int = 0) -> bytes:
    """Return only the path of the entry that ``unpack`` would return."""
    _, _, digest_bytes, _, path_bytes, _, _, _, _ = _HEAD.unpack_from(raw, at)
    at += _HEAD.size + digest_bytes
    return raw[at : at + path_bytes]


class Listing:
    """Entries in order, in a spool. Appended to until it is first iterated over, then read as often as need be."""

    def __init__(self, spool: Spool) -> None:
        """Keep them in ``spool``, which stays the caller's to close."""
        self._spool = spool

    def append(self, entry: Entry) -> None:
        """Add the next entry. Raises ``InputError`` as the spool does."""
        self._spool.append(pack(entry))

    def __len__(self) -> int:
        return len(self._spool)

    def values(self) -> Iterator[Entry]:
        """Yield the entries, in order. Raises ``InputError`` as the spool does."""
        return map(unpack, self._spool)


class Table(Mapping[bytes, Entry]):
    """Entries by path, kept in bundle order; what is added must follow in that order."""

    def __init__(self) -> None:
        """Start empty."""
        self._packed: list[bytes] = []

    def append(self, entry: Entry) -> None:
        """Add the next entry."""
        self._packed.append(pack(entry))

    def at(self, number: int) -> Entry:
        """Return the entry that was added as number ``number``, from 0."""
        return unpack(self._packed[number])

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[bytes]:
        return map(path_of, self._packed)

    def __getitem__(self, path: bytes) -> Entry:
        number = bisect_left(self._packed, order(path), key=lambda raw: order(path_of(raw)))
        if number < len(self._packed) and (entry := self.at(number)).path == path:
            return entry
        raise KeyError(path)

    def values(self) -> ValuesView[Entry]:
        """Return a view of the entries, in order."""
        return _Values(self)

    def items(self) -> ItemsView[bytes, Entry]:
        """Return a view of paths and entries, in order."""
        return _Items(self)


class _Values(ValuesView[Entry]):
    _mapping: Table

    def __iter__(self) -> Iterator[Entry]:
        return map(unpack, self._mapping._packed)  # noqa: SLF001  (its own view)


class _Items(ItemsView[bytes, Entry]):
    _mapping: Table

    def __iter__(self) -> Iterator[tuple[bytes, Entry]]:
        return ((entry.path, entry) for entry in self._mapping.values())
