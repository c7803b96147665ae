"""A file that appears under its name whole and durable, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from sandbox.errors import InputError

_BEHIND = 8 * 1024 * 1024


def disk_error(what: str, error: OSError) -> InputError:
    """Return the error for a file that could not be written: a full disk, a quota, a failing device."""
    return InputError(
        f"{what} cannot be written: {error.strerror}",
        rule="disk",
        seen=error.strerror or "an error",
        wanted="room and a sound disk",
        fix="free space, or choose another place",
    )


class Output:
    """Writes a new file under a temporary name beside its place, hashing what is written. ``commit`` puts it there."""

    def __init__(self, path: Path, size: int) -> None:
        """``size`` bytes are going to be written; a disk without room for them is noticed on entering (``OSError``)."""
        self.path = path
        self.state = blake3()
        self.size = 0
        """Where ``write`` goes on."""
        self._started = 0
        self._needed = size
        self._temp = path.parent / f".sealrig-{secrets.token_hex(8)}.part"  # a name of its own, so that a long one needs no cutting
        self._fd = self._folder = -1

    def __enter__(self) -> Self:
        # Made here and not before: from here on nothing, a signal neither, comes between the file and its removal.
        try:
            self._folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fd = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            room = os.fstatvfs(self._fd)
            if room.f_bavail * room.f_frsize < self._needed:
                self._refuse(self.path)
        except BaseException:
            self._end(keep=False)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._end(keep=kind is None)
        except BaseException:  # told to end in the middle of it, which happens once
            self._end(keep=kind is None)
            raise

    def hash(self, data: memoryview | bytes) -> None:
        """Add bytes to the digest without writing them."""
        self.state.update(data)

    def write_at(self, offset: int, data: memoryview | bytes) -> None:
        """Write bytes that are hashed elsewhere at their place; may be called by several threads at once."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, offset)
            view = view[count:]
            offset += count

    def write_behind(self, offset: int, data: memoryview) -> None:
        """Like ``write_at`` for consecutive pieces, but have the disk begin with them, so that ``commit`` has little to wait for."""
        self.write_at(offset, data)
        end = offset + len(data)
        if end - self._started >= _BEHIND and hasattr(os, "posix_fadvise"):
            # Linux starts to write the range back; what is on its way is not dropped from the cache, so a following upload finds it there.
            os.posix_fadvise(self._fd, self._started, end - self._started, os.POSIX_FADV_DONTNEED)
            self._started = end

    def write(self, data: memoryview | bytes) -> None:
        """Hash bytes and write them behind everything that was written so."""
        self.hash(data)
        self.write_at(self.size, data)
        self.size += len(data)

    def commit(self) -> None:
        """Make the file durable, give it its name, and make the name durable. Raises ``InputError`` if the name was taken meanwhile."""
        os.fsync(self._fd)
        try:
            os.link(self._temp, self.path)  # unlike a rename, never over a file that somebody else put there
        except FileExistsError as error:
            raise InputError(f"{self.path} exists already", rule="output", seen="a file made meanwhile", wanted="a new name",
                             fix="choose another name") from error  # fmt: skip
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            self._temp.rename(self.path)  # a file system without hard links
        os.fsync(self._folder)

    def _end(self, *, keep: bool) -> None:
        if not keep and self._is_named():
            self.path.unlink(missing_ok=True)  # told as a failure, so it must be one
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._temp.unlink()
        fd, folder, self._fd, self._folder = self._fd, self._folder, -1, -1
        for number in (fd, folder):
            if number >= 0:
                os.close(number)

    def _is_named(self) -> bool:
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self._fd))
        except OSError:
            return False

    @staticmethod
    def _refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
