"""BLAKE3 digests of files, at the speed of memory, in bounded space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; both may be the same at the end only."""

DIGEST_PREFIX = "blake3:"
_CHUNK_BYTES = 2 * 1024 * 1024


def digest_text(state: blake3) -> str:
    """Return a hash state as a bundle digest, ``blake3:`` and 64 hex digits."""
    return DIGEST_PREFIX + state.hexdigest()


def bundle_digest(path: Path, progress: Progress | None = None) -> str:
    """Return the BLAKE3 digest of a file's bytes as ``blake3:…``. Raises ``OSError`` if it cannot be read."""
    # Reading into one buffer instead of mapping the file: a file that shrinks while it is read must not end the process with SIGBUS.
    state = blake3()
    view = memoryview(bytearray(_CHUNK_BYTES))
    done = 0
    with path.open("rb", buffering=0) as file:
        total = file.seek(0, 2)
        file.seek(0)
        while count := file.readinto(view):
            state.update(view[:count])
            done += count
            if progress is not None:
                progress(done, max(total, done))
    return digest_text(state)
