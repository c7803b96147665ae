"""A private folder beside, or inside, the destination of an opened bundle: its contents appear there when all of it is verified."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.errors import InputError
from sandbox.sealing.names import sorted_names
from sandbox.sealing.spool import Spool


class Staging:
    """The private folder, at ``path``; ``fd`` is open on it. Leaving it with an error removes all of it."""

    def __init__(self, dest: Path) -> None:
        """Choose its place; entering makes it (``OSError``). Raises ``InputError`` unless ``dest`` is new or empty."""
        self._dest = dest
        self._inside = dest.is_symlink() or dest.exists()
        found = next(dest.iterdir(), None) if dest.is_dir() else None
        if self._inside and (found is not None or not dest.is_dir()):
            seen = "something that is no folder" if found is None else f"{found.name} in it"
            raise InputError(
                f"{dest} is not an empty folder", rule="open-dest", seen=seen, wanted="a new or empty folder", fix="choose another folder"
            )
        if not self._inside and not dest.parent.is_dir():
            raise InputError(
                f"{dest.parent} is not a folder", rule="open-dest", seen="no folder", wanted="an existing folder", fix="make it first"
            )
        # A destination that exists may be a mount point, onto which nothing can be renamed: then work inside it.
        name = f".sealrig-{secrets.token_hex(8)}.part"
        self.path = dest / name if self._inside else dest.parent / name
        self.fd = -1

    def __enter__(self) -> Self:
        # Made here and not before: from here on nothing, a signal neither, comes between the folder and its removal.
        try:
            self.path.mkdir(mode=0o700)
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BaseException:
            self._end(remove=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._end(remove=kind is not None)
        except BaseException:  # told to end in the middle of it, which happens once
            self._end(remove=kind is not None)
            raise

    def _end(self, *, remove: bool) -> None:
        if remove and self.fd >= 0:
            _empty(self.fd)
        if remove:
            with contextlib.suppress(OSError):
                self.path.rmdir()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def publish(self, *, durable: bool) -> None:
        """Move the contents to the destination, all of them or, on an error, none; if ``durable``, they are before they are moved."""
        if not self._inside:
            self.path.chmod(0o777 & ~_umask())
        if durable:
            _sync_contents(self.fd)
        if self._inside:
            self._move_each(durable=durable)
            return
        try:
            self.path.rename(self._dest)
            if durable:
                _sync_names(self._dest.parent)
        except BaseException:
            if not os.path.lexists(self.path):  # it was moved; what stands there otherwise is not ours
                with contextlib.suppress(OSError):
                    self._dest.rename(self.path)
            raise

    def _move_each(self, *, durable: bool) -> None:
        with Spool(self._dest) as moved:  # not in the folder that has to be empty at the end
            try:
                for name in sorted_names(os.fsencode(self.path), self._dest):
                    moved.append(name)
                    os.rename(name, self._dest / os.fsdecode(name), src_dir_fd=self.fd)
                if durable:
                    _sync_names(self._dest)
                self.path.rmdir()
            except BaseException:
                for name in moved:
                    if not os.path.lexists(self.path / os.fsdecode(name)):  # it was moved
                        with contextlib.suppress(OSError):
                            os.rename(self._dest / os.fsdecode(name), name, dst_dir_fd=self.fd)
                raise


def _empty(folder: int) -> None:
    """Remove what is in an open folder that nobody else uses, as far as the system lets us.

    By paths from there, as everything was made, and not folder by folder: they may go deeper than a whole path, open files or calls do.
    """
    found = [b""]
    for place in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            if place:
                os.chmod(place, 0o700, dir_fd=folder)  # its own mode may forbid its owner to empty it
            here = os.open(place or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                with os.scandir(here) as entries:
                    inside = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
            finally:
                os.close(here)
            for name, is_folder in inside:
                path = place + b"/" + name if place else name
                if is_folder:
                    found.append(path)
                    continue
                with contextlib.suppress(OSError):
                    os.unlink(path, dir_fd=folder)
    for place in reversed(found[1:]):
        with contextlib.suppress(OSError):
            os.rmdir(place, dir_fd=folder)


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
