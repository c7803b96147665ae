"""Bundles in a local folder: ``<root>/ab/abcd….bundle``, each a file or a folder of pieces (``store/pieces.py``).

It stays what it was put as, so that what was sent in parts is renamed and not copied. A bundle appears under its name only when it is whole
and durable: its files are synced, it is renamed, and the folder around it synced. What ends in ``.part`` has no such name yet, or no more.
The names are hex digests from a strict pattern, so that nothing a caller says becomes a path.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self

from sandbox.control.store import CHUNK, Reading
from sandbox.control.store.pieces import Pieces, files_of, open_whole, remove, size_of
from sandbox.errors import InputError
from sandbox.model import is_bundle_digest, new_id


class FolderStore:
    """The ``BundleStore`` below one folder."""

    def __init__(self, root: Path) -> None:
        """Use ``root``; make it (mode 0700) where it is missing."""
        self._root = root
        self._lock = threading.RLock()  # a reader may be closed by the garbage collector, at any point of any thread
        self._readers: Counter[int] = Counter()
        self._deleted: dict[int, Path] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in (*root.glob("*.part"), *root.glob("*/*.part")):
            remove(leftover)

    def put(self, digest: str, source: Path) -> None:
        """See ``BundleStore``."""
        target = self._path(digest)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        sync_folder(self._root)
        if not target.exists():
            _sync(source)
            try:
                self._name(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:  # what two mounts of one disk say, too
                    raise
                self._copy(source, target)
        sync_folder(target.parent)  # also where it was there already: a crash may have come before this
        remove(source)

    def _name(self, source: Path, target: Path) -> None:
        with self._lock:
            if not target.exists():  # a folder replaces nothing
                source.replace(target)

    def _copy(self, source: Path, target: Path) -> None:
        part = self._root / f"{new_id('put')}.part"
        try:
            with open_whole(source) as whole, part.open("wb") as file:
                shutil.copyfileobj(whole, file, CHUNK)
            sync_file(part)
            self._name(part, target)
        finally:
            part.unlink(missing_ok=True)

    def size(self, digest: str) -> int | None:
        """See ``BundleStore``."""
        try:
            return size_of(self._path(digest))
        except FileNotFoundError:
            return None

    def read(self, digest: str, start: int, end: int) -> Reading:
        """See ``BundleStore``. What is open can be read to its end: pieces of a bundle that is deleted go with its last reader."""
        path = self._path(digest)
        with self._lock:
            if not path.is_dir():
                return _Range(path.open("rb"), start, end)
            inode = path.stat().st_ino
            pieces = Pieces(path, partial(self._closed, inode))
            self._readers[inode] += 1
        return _Range(io.BufferedReader(pieces), start, end)

    def _closed(self, inode: int) -> None:
        with self._lock:
            self._readers[inode] -= 1
            if self._readers[inode]:
                return
            del self._readers[inode]
            gone = self._deleted.pop(inode, None)
        if gone is not None:
            with contextlib.suppress(OSError):  # the next start removes it
                remove(gone)

    def delete(self, digest: str) -> None:
        """See ``BundleStore``."""
        target = self._path(digest)
        gone = self._unname(target)
        if target.parent.exists():
            sync_folder(target.parent)
        if gone is not None:
            remove(gone)

    def _unname(self, target: Path) -> Path | None:
        """Take a bundle's name away. Return the folder that can be removed now, if there is one."""
        with self._lock:
            if not target.is_dir():
                target.unlink(missing_ok=True)
                return None
            gone = target.parent / f"{new_id('deleted')}.part"
            inode = target.stat().st_ino
            target.rename(gone)
            if inode not in self._readers:
                return gone
            self._deleted[inode] = gone
            return None

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


def _sync(source: Path) -> None:
    for each in files_of(source):
        sync_file(each)
    if source.is_dir():
        sync_folder(source)


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
