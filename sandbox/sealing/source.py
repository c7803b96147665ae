"""Where a bundle's bytes come from: a file, or anything that answers byte ranges, such as a server's store over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from sandbox.errors import BundleError, InputError

Span = tuple[int, int]
"""Where a piece starts, and its length."""


class Source(Protocol):
    """Bytes by range. ``read_at`` may be called by several threads at once."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``. Raises ``BundleError`` if there are fewer, ``SealrigError`` if none come."""
        ...


Piece = bytes | memoryview
"""Some of a source's bytes, perhaps within a longer read that lives as long."""


def read_spans(source: Source, spans: Sequence[Span]) -> list[Piece]:
    """Return pieces that follow each other, read as one."""
    start, total = spans[0][0], sum(length for _, length in spans)
    data = source.read_at(start, total)
    return [data] if len(spans) == 1 else [memoryview(data)[at - start : at - start + length] for at, length in spans]


class FileSource:
    """A file on this machine. Close it, or use it in a ``with`` statement."""

    def __init__(self, path: Path) -> None:
        """Open ``path``. Raises ``InputError`` if it cannot be read."""
        self._path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._size = os.fstat(self.fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; calling it twice does no harm."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def size(self) -> int:
        """The file's size when it was opened."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``. Raises ``BundleError`` if the file is shorter, ``InputError`` for a failing disk."""
        try:
            data = os.pread(self.fd, length, offset)
            while len(data) < length:
                more = os.pread(self.fd, length - len(data), offset + len(data))
                if not more:
                    raise cut_short(offset + len(data), offset + length)
                data += more
        except OSError as error:
            raise _unreadable(self._path, error) from error
        return data

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` from ``offset``. Raises as ``read_at`` does."""
        while out:
            try:
                count = os.preadv(self.fd, [out], offset)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            if count == 0:
                raise cut_short(offset, offset + len(out))
            out = out[count:]
            offset += count


class RangeSource:
    """Bytes behind a function that fetches a range, for example an HTTP GET with ``Range: bytes=START-LAST``."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        """``fetch(start, end)`` returns the bytes from ``start`` up to, not with, ``end``."""
        self._size = size
        self._fetch = fetch

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``. Raises ``BundleError`` if fewer came, and what ``fetch`` raises."""
        if offset + length > self._size:
            raise cut_short(self._size, offset + length)
        data = self._fetch(offset, offset + length) if length else b""
        if len(data) != length:
            raise cut_short(offset + len(data), offset + length)
        return data


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read: {error.strerror}", rule="bundle-file", seen=error.strerror or "an error",
                      wanted="a readable file on a sound disk", fix="check the name, its permissions and the disk")  # fmt: skip


def cut_short(seen: int, wanted: int) -> BundleError:
    """Return the error for a bundle that ends too early."""
    return BundleError("the bundle is cut short", rule="bundle-size", seen=f"{seen} bytes", wanted=f"{wanted} bytes or more",
                       fix="transfer the bundle again")  # fmt: skip
