"""Checks a whole log: every entry, every tile, the root, the signature. The auditor's fsck."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from attestation.log.errors import ForkError, HistoryError, LeafError, TileError
from attestation.log.leaf import leaf_id
from attestation.log.note import Checkpoint, NoteVerifier, open_checkpoint
from attestation.log.reader import LogReader
from attestation.log.tiles import TILE_WIDTH, Edge
from attestation.merkle import ProofError, leaf_hash, verify_consistency

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LogCheck:
    """A log that holds: its checkpoint as proven, and the keys that signed (a witness with the time it stated)."""

    checkpoint: Checkpoint
    note: str
    signers: tuple[tuple[str, int | None], ...]


def verify_log(
    reader: LogReader,
    log_keys: Sequence[NoteVerifier] | NoteVerifier | str,
    *,
    held: str | None = None,
    progress: Progress | None = None,
) -> LogCheck:
    """Check a log from its first entry to its signature. ``held``: a checkpoint of this log seen before, as a note.

    1. the checkpoint is a signed note by a trusted key, of the log that the key names;
    2. it extends ``held``; 3. every entry is a leaf, and no id stands twice; 4. every entry hashes to its place in the lowest tiles;
    5. every tile above follows from the ones below; 6. the root is the signed one.
    Raises ``NoteError``, ``NoteSignatureError``, ``CheckpointError`` (1), ``ForkError``, ``HistoryError`` (2), ``LeafError`` (3),
    ``TileError`` (4-6), ``LogFetchError``. Memory stays bounded: 8 bytes an entry and one bundle.
    """
    keys = _keys(log_keys)
    note = reader.checkpoint()
    checkpoint, signed = open_checkpoint(note, keys)  # 1
    if held is not None:
        require_extends(reader, held, note, keys)  # 2
    edge = Edge()
    ids = array("Q")
    for number in range(-(-checkpoint.size // TILE_WIDTH)):
        _check_bundle(reader, checkpoint.size, number, edge, ids)  # 3, 4, 5
        if progress is not None:
            progress(edge.size, checkpoint.size)
    for tile, row in edge.partials():
        if tile.level and reader.hashes(tile.level, tile.index, checkpoint.size) != row:
            raise TileError(
                "a tile does not follow from the tiles below", rule="tile-parent", seen=tile.path, wanted="the hashes of its tiles"
            )
    if edge.root() != checkpoint.root:  # 6
        raise TileError("the tiles lead to another root", rule="tile-root", seen=edge.root().hex(), wanted=checkpoint.root.hex())
    _require_unique(reader, checkpoint.size, ids)
    proven = signed.verify(keys)
    return LogCheck(checkpoint, note, tuple((verifier.name, moment) for verifier, moment in proven.items()))


def require_extends(reader: LogReader, held: str, new: str, keys: Sequence[NoteVerifier]) -> None:
    """Raise unless the checkpoint ``new`` extends ``held``: ``ForkError`` with transferable evidence, or ``HistoryError``."""
    old, _ = open_checkpoint(held, keys)
    fresh, _ = open_checkpoint(new, keys, origin=old.origin)
    if fresh.size < old.size:
        raise HistoryError(
            "the log shrank",
            rule="history-shrunk",
            seen=f"{fresh.size} entries",
            wanted=f"≥ {old.size} entries",
            held=held,
            shown=new,
        )
    if fresh.size == old.size and fresh.root == old.root:
        return
    proof: list[bytes] = []
    try:
        if old.size:
            proof = reader.consistency(old.size, fresh.size)
            verify_consistency(old.size, fresh.size, old.root, fresh.root, proof)
    except ProofError as error:
        raise ForkError(
            "the log shows two histories",
            rule=f"fork-{error.details['rule']}",
            seen=fresh.root.hex(),
            wanted=f"an extension of {old.root.hex()}",
            evidence=fork_evidence(held, new),
            fix="keep the evidence; show it to everybody who relies on this log",
        ) from error


def fork_evidence(held: str, shown: str) -> str:
    """Return text that holds both signed checkpoints; anybody with the log's key can check that one key signed both."""
    return f"sealrig.dev/log-fork/v1\n\n{held}\n{shown}"


def _keys(given: Sequence[NoteVerifier] | NoteVerifier | str) -> tuple[NoteVerifier, ...]:
    if isinstance(given, str):
        return (NoteVerifier.from_text(given),)
    return (given,) if isinstance(given, NoteVerifier) else tuple(given)


def _check_bundle(reader: LogReader, size: int, number: int, edge: Edge, ids: array[int]) -> None:
    wanted = reader.hashes(0, number, size)
    leaves = reader.bundle(number, size)
    hashes = [leaf_hash(leaf) for leaf in leaves]
    for index, leaf in enumerate(leaves, start=number * TILE_WIDTH):
        try:
            ids.append(int.from_bytes(leaf_id(leaf)[8:], "big"))
        except LeafError as error:
            raise LeafError(f"entry {index} is no leaf: {error.message}", **error.details, index=index) from error
    if hashes != wanted:
        at = next(at for at, (one, two) in enumerate(zip(hashes, wanted, strict=True)) if one != two)
        raise TileError(
            "an entry does not hash to its place in the tree",
            rule="tile-entry",
            seen=f"entry {number * TILE_WIDTH + at}: {hashes[at].hex()}",
            wanted=wanted[at].hex(),
        )
    for digest in hashes:
        for tile, row in edge.append(digest):
            if tile.level and reader.hashes(tile.level, tile.index, size) != row:
                raise TileError(
                    "a tile does not follow from the tiles below", rule="tile-parent", seen=tile.path, wanted="the hashes of its tiles"
                )


def _require_unique(reader: LogReader, size: int, ids: array[int]) -> None:
    """Refuse a log in which an id stands twice: 62 random bits of each are compared, then the ids themselves."""
    order = sorted(ids)
    twice = {one for one, two in pairwise(order) if one == two}
    if not twice:
        return
    met: dict[bytes, int] = {}
    for index in (index for index, each in enumerate(ids) if each in twice):
        leaf = next(leaf for _, leaf in reader.entries(index, index + 1, size=size))
        id_ = leaf_id(leaf)
        if id_ in met:
            raise LeafError("an id stands twice", rule="leaf-id-twice", seen=f"entries {met[id_]} and {index}", wanted="one entry an id")
        met[id_] = index
