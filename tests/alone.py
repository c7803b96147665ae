"""Turns for tests that change the machine: ``./dev test`` runs them in several processes, and a few would disturb those beside them.

Every such test holds a lock of this checkout that it shares with the others; one that is marked ``alone`` holds it for itself.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = Path(__file__).resolve().parents[1] / ".dev"


@contextmanager
def turn(*, alone: bool, place: Path = PLACE) -> Iterator[None]:
    """Run the block beside others, or ``alone``. Whoever asks first goes first: who wants to be alone is not passed by."""
    place.mkdir(exist_ok=True)
    with (place / "tests.queue").open("w") as queue, (place / "tests.lock").open("w") as lock:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing would not do: a process that the test forked may hold the file, too
