"""The log's public folder: every file appears whole or not at all, and stays after a power cut once ``write`` returned.

Temporary file, sync, rename, sync of the folder. Readers and copies of the folder never see half a file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from attestation.log.source import FolderSource
from attestation.log.store import differs

_TEMPORARY = ".tmp"


class PublicFolder(FolderSource):
    """The ``PublicStore`` below one folder."""

    def __init__(self, root: Path) -> None:
        """Make the folder where it is missing, and drop what an interrupted write left."""
        super().__init__(root)
        self._temporary = root / _TEMPORARY
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        self._synced: set[Path] = set()
        sync_folder(root)
        sync_folder(root.parent)

    def write(self, files: Mapping[str, bytes]) -> None:
        """See ``PublicStore``."""
        staged: list[tuple[Path, Path]] = []
        folders: set[Path] = set()
        for number, (path, data) in enumerate(files.items()):
            target = self._root / path
            self._make_folder(target.parent, folders)
            folders.add(target.parent)
            if target.exists():
                _require_same(target, data)
                continue
            temporary = self._temporary / str(number)
            _write_synced(temporary, data)
            staged.append((temporary, target))
        for temporary, target in staged:
            temporary.rename(target)
        for folder in folders:
            sync_folder(folder)

    def replace(self, path: str, data: bytes) -> None:
        """See ``PublicStore``. Both folders are on one machine: the writer's file lock keeps others away."""
        temporary = self._temporary / "replace"
        _write_synced(temporary, data)
        temporary.rename(self._root / path)
        sync_folder((self._root / path).parent)

    def close(self) -> None:
        """See ``PublicStore``: nothing is held open."""

    def drop_partials(self, stems: Iterable[str]) -> None:
        """See ``PublicStore``."""
        for stem in stems:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._root / f"{stem}.p")

    def _make_folder(self, folder: Path, folders: set[Path]) -> None:
        """Make a folder; its own entry in its parent is synced with the batch."""
        if folder in self._synced:
            return
        if not folder.is_dir():
            self._make_folder(folder.parent, folders)
            folder.mkdir(exist_ok=True)
        if folder != self._root:
            folders.add(folder.parent)
        # Full-tile folders are few and stay; partial ones come and go, so they are not remembered.
        if not folder.name.endswith(".p"):
            self._synced.add(folder)


def _require_same(target: Path, data: bytes) -> None:
    if target.read_bytes() != data:
        raise differs(str(target))


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
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
