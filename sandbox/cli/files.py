"""Small files of commands: read with a bound, written once and never over another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandbox.errors import InputError, LimitError

if TYPE_CHECKING:
    from pathlib import Path

MAX_SMALL_BYTES = 256 * 1024


def small_file(path: Path, limit: int = MAX_SMALL_BYTES) -> bytes:
    """Return a file's bytes. Raises ``LimitError``."""
    with path.open("rb") as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise LimitError(f"{path} is too large", rule="file-size", seen="more", wanted=f"≤ {limit} bytes", fix="name another file")
    return raw


def new_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that is not there yet, or nothing. Raises ``InputError`` for one that is, and ``OSError``."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise InputError(f"{path} exists already", rule="file-overwrite", seen="an existing file", wanted="a new file",
                         fix="name another with -o, or remove it first") from error  # fmt: skip
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
