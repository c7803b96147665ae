"""The files of an upload's parts become one folder of pieces: each is renamed, and no byte is copied.

1. the folder is made, under the upload's name
2. every part's file is renamed into it, under its number

A part whose file is gone is in already, so a crash at any point is mended by going on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from sandbox.control.store.folder import sync_folder
from sandbox.control.store.pieces import piece_name


def assemble(folder: Path, upload: str, parts: Sequence[str]) -> None:
    """Make a folder of the parts' files, durably. Safe to call again at any point. Raises ``OSError``; nothing is lost then."""
    whole = folder / upload
    whole.mkdir(mode=0o700, exist_ok=True)
    for number, part in enumerate(parts):
        with contextlib.suppress(FileNotFoundError):
            (folder / part).rename(whole / piece_name(number))
    sync_folder(whole)
    sync_folder(folder)
