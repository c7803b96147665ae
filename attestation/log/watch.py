"""Follows a log: every checkpoint must extend the last one seen, and every new entry must stand in it. Otherwise: an alarm."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from attestation.canonical import canonical_json, parse_json
from attestation.errors import FormatError, LogError
from attestation.log.errors import ForkError, HistoryError, LeafError, LogFetchError, NoteError, NoteSignatureError, TileError
from attestation.log.files import sync_folder
from attestation.log.history import require_extends
from attestation.log.keychain import KeyChain
from attestation.log.leaf import Leaf
from attestation.log.note import Checkpoint, NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.tiles import TILE_WIDTH, Edge
from attestation.merkle import leaf_hash
from attestation.shape import shape
from attestation.signing import b64decode, b64encode

MAX_STATE_BYTES = 1024 * 1024
# What an alarm is called, by the error that raises it; the first that fits.
_KINDS: tuple[tuple[type[LogError], str], ...] = (
    (ForkError, "fork"),
    (HistoryError, "shrink"),
    (NoteSignatureError, "unknown-key"),
    (NoteError, "bad-checkpoint"),
    (LogFetchError, "unreachable"),
    (LogError, "bad-log"),
)


@dataclass(frozen=True)
class Alarm:
    """Something that a person must look at.

    ``kind`` is stable: fork, shrink, unknown-key, bad-checkpoint, bad-log, unreachable, stale, quorum-lost.
    """

    kind: str
    message: str
    details: dict[str, object]


@dataclass(frozen=True)
class WatchState:
    """What was seen: the last checkpoint (a note), when it was first seen (POSIX seconds), and the edge of its tree."""

    note: str = ""
    since: int = 0
    size: int = 0
    lowest: tuple[bytes, ...] = ()
    upper: bytes = b""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a state, or start a new one. Raises ``FormatError`` or ``LimitError`` for a damaged file: it is not started over."""
        try:
            with path.open("rb") as file:
                tree = parse_json(file.read(MAX_STATE_BYTES + 1), max_bytes=MAX_STATE_BYTES)
        except FileNotFoundError:
            return cls()
        try:
            return cls(
                str(tree["note"]), int(tree["since"]), int(tree["size"]), tuple(map(b64decode, tree["lowest"])), b64decode(tree["upper"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{path} is no state of a watch", rule="watch-state", seen=shape(tree), wanted="a file that watch wrote"
            ) from error

    def save(self, path: Path) -> None:
        """Write the state in the place of the one before, durably."""
        tree = {
            "v": 1,
            "note": self.note,
            "since": self.since,
            "size": self.size,
            "lowest": [b64encode(each) for each in self.lowest],
            "upper": b64encode(self.upper),
        }
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            file.write(canonical_json(tree))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


@dataclass(frozen=True)
class Watch:
    """What is accepted: the log's keys, witnesses and how many must have cosigned; stale after so many seconds without news (0: never).

    ``retired``: keys that the log had before, each with the size of the last tree that it may have signed.
    """

    keys: tuple[NoteVerifier, ...]
    witnesses: tuple[NoteVerifier, ...] = ()
    quorum: int = 0
    stale_seconds: int = 0
    retired: Mapping[NoteVerifier, int] = field(default_factory=dict)

    def step(self, reader: LogReader, state: WatchState, now: int) -> tuple[WatchState, list[Alarm]]:
        """Look once: return what to remember and what to be alarmed about. Never goes back behind ``state``."""
        # A clock that was ahead when the state was written must not keep ``stale`` silent until then.
        state = replace(state, since=min(state.since, now))
        try:
            note = reader.checkpoint()
            chain = KeyChain.follow(reader, self.keys, self.retired)
            checkpoint, signed = chain.open(note)
            fresh = _follow_or_prove(reader, state, checkpoint, note, chain)
            chain.require_logged(reader, checkpoint.size)
            stated = [moment for moment in signed.signed_by(self.witnesses).values() if moment is not None]
        except LogError as error:
            return state, self.missed(error, state, now)
        if not state.note or checkpoint.size != state.size:
            fresh = replace(fresh, since=now)
        fresh = replace(fresh, note=note)
        alarms = []
        if len(stated) < self.quorum:
            details: dict[str, object] = {"rule": "quorum-lost", "seen": f"{len(stated)} cosignatures", "wanted": f"≥ {self.quorum}"}
            alarms.append(Alarm("quorum-lost", "too few witnesses cosigned", details))
        # A cosignature says when a witness saw the log; without any, only its growth shows that it lives. A time to come tells nothing.
        seen = [moment for moment in stated if moment <= now]
        return fresh, alarms + self._stale(replace(fresh, since=max([fresh.since, *seen])), now)

    def missed(self, error: LogError, state: WatchState, now: int) -> list[Alarm]:
        """Return what to be alarmed about where a look failed, or could not begin because the log was not found."""
        return [_alarm(error), *self._stale(state, now)]

    def _stale(self, state: WatchState, now: int) -> list[Alarm]:
        age = now - state.since
        if not self.stale_seconds or not state.note or age <= self.stale_seconds:
            return []
        details: dict[str, object] = {"rule": "stale", "seen": f"{age} s without news", "wanted": f"≤ {self.stale_seconds} s"}
        return [Alarm("stale", "the log stands still", details)]


def _follow_or_prove(reader: LogReader, state: WatchState, checkpoint: Checkpoint, note: str, chain: KeyChain) -> WatchState:
    """Follow the log; where its entries do not lead on from ``state``, say what happened to it, with the proof of a fork if there is one.

    What was seen is the watch's own, and leads on by its hashes: the key that signed it may have been exchanged since.
    """
    if checkpoint.size < state.size:
        raise HistoryError("the log shrank", rule="history-shrunk", seen=f"{checkpoint.size} entries", wanted=f"≥ {state.size} entries",
                           fix="keep both checkpoints; ask the log for the newer one again", held=state.note, shown=note)  # fmt: skip
    try:
        return _follow(reader, state, checkpoint)
    except (TileError, LeafError):
        if state.note:
            with contextlib.suppress(NoteSignatureError):  # who signed what was seen is not known any more: the first error has to do
                require_extends(reader, state.note, note, chain.keys)
        raise


def _follow(reader: LogReader, state: WatchState, checkpoint: Checkpoint) -> WatchState:
    """Read every entry since ``state`` and prove that they, and nothing else, lead to the new root. Raises ``LogError``."""
    edge = Edge.restore(state.size, state.upper, state.lowest)
    for number in range(state.size // TILE_WIDTH, -(-checkpoint.size // TILE_WIDTH)):
        leaves = reader.bundle(number, checkpoint.size)
        for raw in leaves[max(0, edge.size - number * TILE_WIDTH) :]:
            Leaf.from_bytes(raw)
            edge.append(leaf_hash(raw))
    if edge.root() != checkpoint.root:
        raise TileError(
            "the entries do not lead to the signed root", rule="watch-root", seen=edge.root().hex(), wanted=checkpoint.root.hex()
        )
    return replace(state, size=edge.size, lowest=tuple(edge.rows[0] if edge.rows else ()), upper=edge.upper())


def _alarm(error: LogError) -> Alarm:
    kind = next(name for type_, name in _KINDS if isinstance(error, type_))
    return Alarm(kind, error.message, dict(error.details))
