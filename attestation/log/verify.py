"""Checks a whole log: every entry, every tile, the root, the signature. The auditor's fsck."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from attestation.log.errors import LeafError, TileError
from attestation.log.history import require_extends
from attestation.log.keychain import KeyChain
from attestation.log.leaf import leaf_id
from attestation.log.note import Checkpoint, NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.tiles import TILE_WIDTH, Edge
from attestation.merkle import leaf_hash

_ID_PARTS = 8
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
    5. every tile above follows from the ones below; 6. the root is the signed one; 7. every exchange of the log's key is in the log.
    Raises ``NoteError``, ``NoteSignatureError``, ``CheckpointError`` (1), ``ForkError``, ``HistoryError`` (2), ``LeafError`` (3),
    ``TileError`` (4-6), ``LogFetchError``. Memory stays bounded: 8 bytes an entry and one bundle.
    """
    chain = KeyChain.follow(reader, _keys(log_keys))
    keys = chain.keys
    note = reader.checkpoint()
    checkpoint, signed = chain.open(note)  # 1
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
    chain.require_logged(reader, checkpoint.size)  # 7
    proven = signed.verify(keys)
    return LogCheck(checkpoint, note, tuple((verifier.name, moment) for verifier, moment in proven.items()))


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
        raise _entry_error(number, hashes, wanted)
    for digest in hashes:
        for tile, row in edge.append(digest):
            if tile.level and reader.hashes(tile.level, tile.index, size) != row:
                raise TileError(
                    "a tile does not follow from the tiles below", rule="tile-parent", seen=tile.path, wanted="the hashes of its tiles"
                )


def _entry_error(number: int, hashes: list[bytes], wanted: list[bytes]) -> TileError:
    """Say which entry is not the one in the tree, and whether it was moved, repeated or changed."""
    at = next(at for at, (one, two) in enumerate(zip(hashes, wanted, strict=True)) if one != two)
    if sorted(hashes) == sorted(wanted):
        what, rule = "entries stand in another order", "tile-order"
    elif set(hashes) < set(wanted):
        what, rule = "an entry stands twice, in the place of another", "tile-duplicate"
    else:
        what, rule = "an entry does not hash to its place in the tree", "tile-entry"
    return TileError(what, rule=rule, seen=f"entry {number * TILE_WIDTH + at}: {hashes[at].hex()}", wanted=wanted[at].hex())


def _require_unique(reader: LogReader, size: int, ids: array[int]) -> None:
    """Refuse a log in which an id stands twice: 62 random bits of each are compared, then the ids themselves."""
    twice: set[int] = set()
    for part in range(_ID_PARTS):  # a part at a time, because numbers take four times the room once they are sorted
        order = sorted(each for each in ids if each % _ID_PARTS == part)
        twice |= {one for one, two in pairwise(order) if one == two}
    if not twice:
        return
    met: dict[bytes, int] = {}
    for index in (index for index, each in enumerate(ids) if each in twice):
        leaf = next(leaf for _, leaf in reader.entries(index, index + 1, size=size))
        id_ = leaf_id(leaf)
        if id_ in met:
            raise LeafError("an id stands twice", rule="leaf-id-twice", seen=f"entries {met[id_]} and {index}", wanted="one entry an id")
        met[id_] = index
