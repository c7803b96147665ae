"""The files of an upload's parts become its one file.

1. the first part's file takes the upload's name
2. every other one is appended, synced and removed before the next is begun, so that no more than one is there twice

A part whose file is gone is in already, so a crash at any point is mended by going on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from sandbox.control.store.folder import sync_folder

_COPY_BYTES = 2**30


def assemble(folder: Path, upload: str, parts: Sequence[tuple[str, int]]) -> None:
    """Make one file of the parts' files. Safe to call again at any point. Raises ``OSError``; nothing is lost then."""
    whole, end = folder / upload, 0
    for number, (part, size) in enumerate(parts):
        source = folder / part
        if source.exists():
            if number == 0:
                source.rename(whole)
                sync_folder(folder)
            else:
                _append(source, size, whole, end)
                source.unlink()
        end += size


def _append(source: Path, size: int, whole: Path, end: int) -> None:
    """Put a part's bytes at ``end``, durably; what an earlier try left there is overwritten."""
    with source.open("rb") as part, whole.open("r+b") as file:
        done = 0
        while done < size:
            # The kernel copies, or shares the blocks where the file system can.
            count = os.copy_file_range(part.fileno(), file.fileno(), min(size - done, _COPY_BYTES), done, end + done)
            if count == 0:
                raise OSError(errno.EIO, "a part is shorter than it was")
            done += count
        os.fsync(file.fileno())
