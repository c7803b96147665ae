"""Which names are further names of a file that was seen already: hard links, known by their inodes."""

from __future__ import annotations

import os


class HardLinks:
    """Remembers files with several names until the last of them was seen; there may be names elsewhere that never are."""

    def __init__(self) -> None:
        """Start with none."""
        self._open: dict[tuple[int, int], tuple[bytes, int]] = {}
        """The first name of an inode, and how many more there are."""

    def first(self, path: bytes, status: os.stat_result) -> bytes | None:
        """Return the first name of the file at ``path``; None if this is the first one."""
        if status.st_nlink <= 1:
            return None
        inode = (status.st_dev, status.st_ino)
        first, left = self._open.pop(inode, (None, status.st_nlink))
        if left > 1:
            self._open[inode] = (path if first is None else first, left - 1)
        return first

    def __len__(self) -> int:
        return len(self._open)
