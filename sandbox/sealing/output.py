"""A file that appears under its name whole and durable, or not at all."""

from __future__ import annotations

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
        """``size`` bytes are going to be written; a disk without room for them is noticed now (``OSError``)."""
        self.path = path
        self.state = blake3()
        self.size = 0
        """Where ``write`` goes on."""
        self._started = 0
        self._temp = path.parent / f".sealrig-{secrets.token_hex(8)}.part"  # a name of its own, so that a long one needs no cutting
        self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fd = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except BaseException:
            os.close(self._folder)
            raise
        try:
            room = os.fstatvfs(self._fd)
            if room.f_bavail * room.f_frsize < size:
                self._refuse(path)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

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
        try:
            os.fsync(self._folder)
        except OSError:
            self.path.unlink(missing_ok=True)  # told as a failure, so it must be one
            raise

    def _close(self) -> None:
        os.close(self._fd)
        os.close(self._folder)
        self._temp.unlink(missing_ok=True)

    @staticmethod
    def _refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
