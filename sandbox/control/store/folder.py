"""Bundles in a local folder: ``<root>/ab/abcd….bundle``.

A bundle appears under its name only when it is whole and durable: its file is synced, renamed, and its folder synced. The names
are hex digests from a strict pattern, so that nothing a caller says becomes a path.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from sandbox.control.store import CHUNK, Reading
from sandbox.errors import InputError
from sandbox.model import is_bundle_digest, new_id


class FolderStore:
    """The ``BundleStore`` below one folder."""

    def __init__(self, root: Path) -> None:
        """Use ``root``; make it (mode 0700) where it is missing."""
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in root.glob("*.part"):
            leftover.unlink()

    def put(self, digest: str, source: Path) -> None:
        """See ``BundleStore``."""
        target = self._path(digest)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        sync_folder(self._root)
        if not target.exists():
            sync_file(source)
            try:
                source.replace(target)
            except OSError as error:
                if error.errno != errno.EXDEV:  # what two mounts of one disk say, too
                    raise
                self._copy(source, target)
        sync_folder(target.parent)  # also where it was there already: a crash may have come before this
        source.unlink(missing_ok=True)

    def _copy(self, source: Path, target: Path) -> None:
        part = self._root / f"{new_id('put')}.part"
        try:
            shutil.copyfile(source, part)
            sync_file(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def size(self, digest: str) -> int | None:
        """See ``BundleStore``."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, digest: str, start: int, end: int) -> Reading:
        """See ``BundleStore``. The file is open before the first piece is asked for, so a deletion meanwhile cannot cut it."""
        return _Range(self._path(digest).open("rb"), start, end)

    def delete(self, digest: str) -> None:
        """See ``BundleStore``."""
        target = self._path(digest)
        target.unlink(missing_ok=True)
        if target.parent.exists():
            sync_folder(target.parent)

    def digests(self) -> Iterator[str]:
        """See ``BundleStore``."""
        for path in self._root.glob("*/*.bundle"):
            yield f"blake3:{path.stem}"

    def check(self) -> None:
        """See ``BundleStore``."""
        probe = self._root / f"{new_id('probe')}.part"
        try:
            probe.write_bytes(b"sealrig")
        finally:
            probe.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        if not is_bundle_digest(digest):
            raise InputError(
                "not a bundle digest",
                rule="bundle-digest",
                seen=digest[:80],
                wanted="blake3: and 64 hex digits",
                fix="copy it from 'sealrig seal'",
            )
        name = digest.removeprefix("blake3:")
        return self._root / name[:2] / f"{name}.bundle"


class _Range:
    """A part of an open file as a ``Reading``."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._left = file, end - start
        file.seek(start)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        piece = self._file.read(min(CHUNK, self._left)) if self._left > 0 else b""
        if not piece:
            self.close()
            raise StopIteration
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        self._left = 0
        self._file.close()


def sync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
