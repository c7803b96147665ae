"""Where sealed bundles are kept: ciphertext only, each once, named by its own digest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

CHUNK = 1024 * 1024
"""Bytes that ``read`` gives at once, at most."""


class Reading(Iterator[bytes], Protocol):
    """A range of a bundle, in pieces of at most ``CHUNK``."""

    def close(self) -> None:
        """Let go of what is open. Closing twice is the same as once; reading it to its end closes it, too."""
        ...


class BundleStore(Protocol):
    """Durable, content-addressed storage of finished bundles.

    Any number of threads may call it. Failures are ``OSError`` (or ``StorageError``); after one, whether the thing was stored is
    not known and the same call may be made again.
    """

    def put(self, digest: str, source: Path) -> None:
        """Take ``source``, whose bytes were checked to have ``digest``, and remove it; durable when it returns.

        It is a file or a folder of pieces (``store/pieces.py``). Putting a digest that is there already changes nothing. A ``source`` that
        is gone is not an error where the digest is there.
        """
        ...

    def size(self, digest: str) -> int | None:
        """Return a bundle's bytes, or None where there is none of that digest."""
        ...

    def read(self, digest: str, start: int, end: int) -> Reading:
        """Open the bytes from ``start`` up to, not with, ``end``; the caller closes them. Raises ``FileNotFoundError``."""
        ...

    def delete(self, digest: str) -> None:
        """Remove a bundle, durably. Removing what is not there changes nothing."""
        ...

    def digests(self) -> Iterator[str]:
        """Name every bundle in the store, in no order."""
        ...

    def check(self) -> None:
        """Raise unless the store can be reached and written to."""
        ...
