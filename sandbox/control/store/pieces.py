"""A bundle as it lies in a folder: one file, or a folder of pieces that are read as one.

A folder of pieces holds the files ``0000``, ``0001``, … and nothing else. The bundle is their bytes one after another, in the order of
their names: what ``cat FOLDER/*`` prints.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def piece_name(number: int) -> str:
    """Return the name of the ``number``-th piece, counted from 0."""
    return f"{number:04}"


def size_of(path: Path) -> int:
    """Return the bytes of a file or of a folder of pieces. Raises ``FileNotFoundError``."""
    return sum(each.stat().st_size for each in files_of(path))


def files_of(path: Path) -> list[Path]:
    """Return the files of which a bundle consists, in order."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def open_whole(path: Path) -> BinaryIO:
    """Open a file or a folder of pieces to be read as one file. Raises ``FileNotFoundError``."""
    return io.BufferedReader(Pieces(path)) if path.is_dir() else path.open("rb")


def remove(path: Path) -> None:
    """Remove a file or a folder of pieces. What is not there is not an error."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Pieces(io.RawIOBase):
    """A folder of pieces as one file that is read. Of its pieces one is open at a time, so that many parts do not take many files.

    The folder may be renamed while it is read. ``on_close`` is called once.
    """

    _folder = -1

    def __init__(self, folder: Path, on_close: Callable[[], None] = lambda: None) -> None:
        """Open the folder. Raises ``FileNotFoundError``."""
        sizes = {each.name: each.stat().st_size for each in files_of(folder)}
        self._names, self._ends = list(sizes), list(accumulate(sizes.values()))
        self._at, self._number, self._piece = 0, -1, -1
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._on_close = on_close

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a byte of the whole."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._ends[-1] if self._ends else 0}[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read on, at most to the end of one piece; 0 bytes are the end of the whole. Raises ``OSError``."""
        number = bisect_right(self._ends, self._at)  # empty pieces are passed over
        if number == len(self._ends):
            return 0
        if number != self._number:
            self._leave()
            self._piece = os.open(self._names[number], os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
            self._number = number
        count = os.preadv(self._piece, [buffer], self._at - (self._ends[number - 1] if number else 0))
        if count == 0:
            raise OSError(errno.EIO, "a piece of a bundle is shorter than it was")
        self._at += count
        return count

    def close(self) -> None:
        """Close what is open."""
        folder, self._folder = self._folder, -1
        if folder >= 0:
            self._leave()
            os.close(folder)
            self._on_close()
        super().close()

    def _leave(self) -> None:
        piece, self._piece, self._number = self._piece, -1, -1
        if piece >= 0:
            os.close(piece)
