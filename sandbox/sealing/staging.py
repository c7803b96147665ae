"""A private folder beside, or inside, the destination of an opened bundle: its contents appear there when all of it is verified."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.errors import InputError


class Staging:
    """The private folder; ``fd`` is open on it. Leaving it with an error removes all of it."""

    def __init__(self, dest: Path) -> None:
        """Make it. Raises ``InputError`` unless ``dest`` is new or empty, and ``OSError``."""
        self._dest = dest
        self._inside = dest.is_symlink() or dest.exists()
        if self._inside and (not dest.is_dir() or any(dest.iterdir())):
            seen = "a folder with something in it" if dest.is_dir() else "something that is no folder"
            raise InputError(
                f"{dest} is not an empty folder", rule="open-dest", seen=seen, wanted="a new or empty folder", fix="choose another folder"
            )
        if not self._inside and not dest.parent.is_dir():
            raise InputError(
                f"{dest.parent} is not a folder", rule="open-dest", seen="no folder", wanted="an existing folder", fix="make it first"
            )
        # A destination that exists may be a mount point, onto which nothing can be renamed: then work inside it.
        name = f".sealrig-{secrets.token_hex(8)}.part"
        self._path = dest / name if self._inside else dest.parent / name
        self._path.mkdir(mode=0o700)
        try:
            self.fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._path.rmdir()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.fd)
        if kind is not None:
            _remove(self._path)

    def publish(self, *, durable: bool) -> None:
        """Move the contents to the destination, all of them or, on an error, none; if ``durable``, they are before they are moved."""
        if not self._inside:
            self._path.chmod(0o777 & ~_umask())
        if durable:
            _sync_contents(self.fd)
        if self._inside:
            self._move_each(durable=durable)
            return
        self._path.rename(self._dest)
        try:
            if durable:
                _sync_names(self._dest.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                self._dest.rename(self._path)
            raise

    def _move_each(self, *, durable: bool) -> None:
        moved: list[str] = []
        try:
            for name in sorted(path.name for path in self._path.iterdir()):
                os.rename(name, self._dest / name, src_dir_fd=self.fd)
                moved.append(name)
            if durable:
                _sync_names(self._dest)
            self._path.rmdir()
        except BaseException:
            for name in moved:
                with contextlib.suppress(OSError):
                    os.rename(self._dest / name, name, dst_dir_fd=self.fd)
            raise


def _remove(path: Path) -> None:
    # Folders may have been given modes that forbid their owner to empty them.
    for place, folders, _ in os.walk(path):
        for name in folders:
            if not (Path(place) / name).is_symlink():
                (Path(place) / name).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _sync_contents(folder: int) -> None:
    """Make everything on the file system of an open folder durable: one call instead of one a file, which would cost a disk seconds."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):  # not Linux
        os.sync()
    elif libc.syncfs(folder) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _sync_names(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    # There is no way to read it without setting it; it is put back at once.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
