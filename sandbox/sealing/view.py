"""What the kernel asks of a mounted bundle, answered from its reader: names, attributes, and bytes that were verified."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.errors import SealrigError
from sandbox.sealing.entries import Entry, Kind
from sandbox.sealing.reader import BundleReader
from sandbox.sealing.stream import segment_at

_BLOCK = 4096


class View:
    """Answers the kernel's questions about a bundle. Paths come as text with surrogate escapes."""

    use_ns = True

    def __init__(self, reader: BundleReader, *, owner: tuple[int, int], tell: Callable[[dict[str, Any]], None]) -> None:
        """Show everything as ``owner``'s; ``tell`` is called with what went wrong with a read."""
        self._reader = reader
        self._owner = owner
        self._tell = tell
        self._entries = reader.entries()
        self._children: dict[bytes, list[str]] = {}
        self._files: dict[int, Entry] = {}
        self._lock = threading.Lock()
        self._next = 1

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:  # noqa: ARG002  (FUSE's signature)
        """Return the attributes of ``path``."""
        name = _inside(path)
        if not name:
            return self._attributes(stat.S_IFDIR | 0o755, 0, 0, 2)
        entry = self._find(name)
        kind = {Kind.FILE: stat.S_IFREG, Kind.DIR: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}[entry.kind]
        size = len(entry.target) if entry.kind is Kind.SYMLINK else entry.size
        return self._attributes(kind | entry.mode, size, entry.mtime_ns, 2 if entry.kind is Kind.DIR else 1)

    def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002
        """Return the names in a folder."""
        with self._lock:
            if not self._children:
                self._children = self._names()
        found = self._children.get(_inside(path))
        if found is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return [".", "..", *found]

    def readlink(self, path: str) -> str:
        """Return where a symlink points to."""
        return os.fsdecode(self._find(_inside(path)).target)

    def open(self, path: str, flags: int) -> int:
        """Open a file for reading; anything else is refused."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        entry = self._find(_inside(path))
        with self._lock:
            handle, self._next = self._next, self._next + 1
            self._files[handle] = entry
        return handle

    def release(self, path: str, fh: int) -> int:  # noqa: ARG002
        """Close a file."""
        with self._lock:
            self._files.pop(fh, None)
        return 0

    def read_into(self, path: str, address: int, size: int, offset: int, handle: int) -> int:
        """Copy bytes of an open file to memory at ``address``; return how many.

        A segment that does not verify is an I/O error, and told.
        """
        entry = self._files[handle]
        position, stop = entry.offset + offset, entry.offset + min(offset + size, entry.size)
        if position >= stop:
            return 0
        done = 0
        segments = self._reader.segments(range(segment_at(position)[0], segment_at(stop - 1)[0] + 1))
        while position < stop:
            index, place = segment_at(position)
            segment = self._verified(path, index, segments)
            count = min(stop - position, len(segment) - place)
            # One byte's address, not an array of ``count``: for each new length ctypes would make a new type.
            ctypes.memmove(address + done, ctypes.addressof(ctypes.c_char.from_buffer(segment, place)), count)
            position += count
            done += count
        return done

    def statfs(self, path: str) -> dict[str, int]:  # noqa: ARG002
        """Return the size of the view; nothing is free."""
        blocks = self._reader.payload.plain_size // _BLOCK
        return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_blocks": blocks, "f_files": len(self._entries), "f_namemax": 255}

    def _names(self) -> dict[bytes, list[str]]:
        """Return the names in every folder: looked for with the first listing, because a job that knows its paths never lists."""
        children: dict[bytes, list[str]] = {b"": []}
        for entry in self._entries.values():
            parent, _, name = entry.path.rpartition(b"/")
            children[parent].append(os.fsdecode(name))
            if entry.kind is Kind.DIR:
                children[entry.path] = []
        return children

    def _verified(self, path: str, index: int, segments: Iterator[bytearray]) -> bytearray:
        try:
            return next(segments)
        except SealrigError as error:
            self._tell({"event": "error", "path": path, "segment": index, "code": error.code, "message": error.message})
            # Its frames hold the segments beside it, and those the error: a circle that only the collector would end.
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error.with_traceback(None)

    def _find(self, name: bytes) -> Entry:
        entry = self._entries.get(name)
        if entry is not None and entry.kind is Kind.LINK:
            entry = self._entries.get(entry.target)
        if entry is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return entry

    def _attributes(self, mode: int, size: int, mtime_ns: int, links: int) -> dict[str, int]:
        return {
            "st_mode": mode, "st_size": size, "st_nlink": links, "st_uid": self._owner[0], "st_gid": self._owner[1],
            "st_mtime": mtime_ns, "st_atime": mtime_ns, "st_ctime": mtime_ns, "st_blocks": -(-size // 512), "st_blksize": _BLOCK,
        }  # fmt: skip


def _inside(path: str) -> bytes:
    return os.fsencode(path).strip(b"/")
