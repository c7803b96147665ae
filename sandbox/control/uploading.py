"""What this process knows of the uploads under way: which one somebody is at work on, and how far each has been hashed.

None of it outlives the process. A new one holds nothing, and hashes from the start what the old one had received.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from sandbox.control.errors import UploadLockedError
from sandbox.control.store.pieces import open_whole
from sandbox.sealing.hashing import digest_text

_READ_BYTES = 8 * 1024 * 1024


class Uploading:
    """One for a control plane. Safe for use by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._hashed: dict[str, tuple[blake3, int]] = {}

    @contextmanager
    def hold(self, upload: str) -> Iterator[None]:
        """Be the only one at work on an upload. Raises ``UploadLockedError`` at once where somebody else is."""
        with self._lock:
            if upload in self._held:
                raise UploadLockedError(
                    "another request is at work on this upload",
                    rule="upload-lock",
                    seen="locked",
                    wanted="one request at a time",
                    fix="try again in a moment",
                )
            self._held.add(upload)
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(upload)

    # The rest is for whoever holds the upload.

    def hash_at(self, upload: str, offset: int) -> blake3 | None:
        """Return a hash state over the first ``offset`` bytes, to go on with; None where another process received some of them."""
        state, count = self._hashed.get(upload, (blake3(), 0))
        return state.copy() if count == offset else None

    def keep_hash(self, upload: str, state: blake3 | None, offset: int) -> None:
        """Keep a state over the first ``offset`` bytes, which are durable."""
        if state is not None:
            self._hashed[upload] = (state, offset)

    def digest(self, upload: str, path: Path) -> str:
        """Return the digest of a whole upload's bytes as ``blake3:…``; only what was not hashed on arrival is read. Raises ``OSError``."""
        # Read into one buffer, not mapped: a read error on a mapped page would end the whole server with SIGBUS.
        state, count = self._hashed.get(upload, (blake3(max_threads=blake3.AUTO), 0))
        state = state.copy()
        view = memoryview(bytearray(_READ_BYTES))
        with open_whole(path) as file:
            file.seek(count)
            while read := file.readinto(view):  # type: ignore[attr-defined]
                state.update(view[:read])
        return digest_text(state)

    def forget(self, upload: str) -> None:
        """Forget what was hashed."""
        self._hashed.pop(upload, None)
