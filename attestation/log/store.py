"""What a log keeps its private state in, and what every backend of it must hold to.

Two stores, separate on purpose: a checkpoint is signed only for entries that are already durable, and is handed out only
after the lock store took it in exchange for the one before. Whoever restores an old copy of one of them is found out by the other.
Every write names the epoch of its writer; a writer that was overtaken writes nothing. What a method has returned from is durable.
Where a backend fails, it raises ``LogStoreError``; whether the write is durable is then not known, and a replay finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from attestation.log.errors import LogFencedError, LogStoreError
from attestation.log.source import Source
from attestation.merkle import EMPTY_ROOT


@dataclass(frozen=True)
class TreeState:
    """How far the tree is, and how far it was published at the last commit (``base_*``: what a replay starts from)."""

    origin: str
    epoch: int
    size: int = 0
    root: bytes = EMPTY_ROOT
    base_size: int = 0
    base_root: bytes = EMPTY_ROOT
    base_upper: bytes = b""


@dataclass(frozen=True)
class Head:
    """The last signed checkpoint, the key that signed it, and the epoch of the writer."""

    epoch: int
    note: str
    vkey: str


class EntryStore(Protocol):
    """Entries that do not stand in a published full bundle yet, the ids of all, and the state of the tree. For one thread."""

    def close(self) -> None:
        """Let go of the store."""
        ...

    def state(self) -> TreeState | None:
        """Return the state, or None for a new store."""
        ...

    def start(self, state: TreeState) -> None:
        """Take over as the writer named by ``state.epoch``; creates the state of a new log.

        Raises ``LogFencedError`` where a later writer was here, or one wrote since ``state`` was read.
        """
        ...

    def find(self, ids: Sequence[bytes]) -> dict[bytes, int]:
        """Return the indexes of those ids that are in the log."""
        ...

    def leaves(self, start: int, end: int) -> list[bytes]:
        """Return the stored entries ``start`` up to ``end``. Raises ``LogStoreError`` if one is missing."""
        ...

    def commit(self, state: TreeState, leaves: Iterable[tuple[int, bytes]], ids: Iterable[tuple[bytes, int]], *, forget_below: int) -> None:
        """Make entries and the new state durable in one transaction. Raises ``LogFencedError`` if another writer took over.

        Entries below ``forget_below`` stand in durable full bundles and are dropped here.
        """
        ...


class LockStore(Protocol):
    """One row, changed only by compare-and-swap: which checkpoint was signed last, and who may sign the next. For one thread."""

    def close(self) -> None:
        """Let go of the store."""
        ...

    def head(self) -> Head | None:
        """Return the row, or None for a new store."""
        ...

    def create(self, head: Head) -> None:
        """Store the first checkpoint of a new log."""
        ...

    def rotations(self) -> list[str]:
        """Return the notes by which this log's keys were exchanged, oldest first."""
        ...

    def swap(self, old: Head, new: Head, *, rotation: str | None = None) -> None:
        """Exchange ``old`` for ``new``, durably, with the note that hands over to another key.

        Raises ``LogFencedError`` if the store holds anything else.
        """
        ...

    def while_owner(self, epoch: int, publish: Callable[[], None]) -> None:
        """Run ``publish`` while this writer is the owner and nobody can take over. Raises ``LogFencedError``."""
        ...


class PublicStore(Source, Protocol):
    """The log's public files: each appears whole or not at all, and stays once a method has returned."""

    def close(self) -> None:
        """Let go of the store."""
        ...

    def write(self, files: Mapping[str, bytes]) -> None:
        """Make files durable under their paths; those that stand there already with the same bytes are kept.

        A tile is never changed: raises ``LogStoreError`` if one stands there with other bytes.
        """
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Put a file in the place of the one before, durably."""
        ...

    def drop_partials(self, stems: Iterable[str]) -> None:
        """Remove the partial tiles that full ones have replaced. They are not needed; a failure leaves them for the next time."""
        ...


def require_epoch(seen: int | None, wanted: int) -> None:
    """Raise ``LogFencedError`` unless the writer of ``wanted`` still owns the store."""
    if seen != wanted:
        raise fenced(f"epoch {seen}", f"epoch {wanted}")


def require_unchanged(stored: TreeState | None, wanted: TreeState) -> None:
    """Raise ``LogFencedError`` unless the stored tree is the one that the new writer read."""
    if stored is None or (stored.epoch, stored.size, stored.root) != (wanted.epoch, wanted.size, wanted.root):
        seen = f"epoch {stored.epoch}, {stored.size} entries" if stored else "no state"
        raise fenced(seen, f"epoch {wanted.epoch}, {wanted.size} entries")


def fenced(seen: str, wanted: str) -> LogFencedError:
    """Return the error of a writer that was overtaken."""
    return LogFencedError(
        "another writer has taken over",
        rule="log-fenced",
        seen=seen,
        wanted=wanted,
        fix="stop this process; the other one is the log's writer now",
    )


def require_count(seen: int, start: int, end: int) -> None:
    """Raise ``LogStoreError`` unless every entry from ``start`` up to ``end`` was found."""
    if seen != end - start:
        raise LogStoreError(
            "the entry store has lost entries",
            rule="store-entries",
            seen=f"{seen} of {start} to {end}",
            wanted=str(end - start),
            fix="restore the newest copy of the entry store",
        )


def differs(place: str) -> LogStoreError:
    """Return the error of a tile that somebody changed."""
    return LogStoreError(
        f"{place.rpartition('/')[2]} stands in the log's folder with other bytes",
        rule="store-tile-differs",
        seen=place,
        wanted="the same bytes",
        fix="find out who changed the log's folder; restore it from a copy that 'sealrig audit verify' accepts",
    )


def io_error(error: BaseException) -> LogStoreError:
    """Return the error for a backend that failed."""
    return LogStoreError(
        "the log could not be written",
        rule="store-io",
        seen=f"{type(error).__name__}: {error}"[:200],
        wanted="a durable write",
        fix="see to the disk or the server behind it (space, errors, rights), then try again",
    )
