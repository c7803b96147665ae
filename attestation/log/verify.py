"""Checks a whole log: every entry, every tile, the root, the signature. The auditor's fsck."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import compress, islice
from multiprocessing import get_context
from operator import eq

from attestation.log.errors import LeafError, TileError
from attestation.log.history import require_extends
from attestation.log.leaf import leaf_id
from attestation.log.note import COSIGNATURE, Checkpoint, NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.rules import LogRules
from attestation.log.tiles import TILE_WIDTH, Edge, Tile, unpack_bundle
from attestation.merkle import leaf_hash, perfect_root

PARALLEL_FROM = 20_000
"""Below so many entries other processes would take longer to start than to help."""
_BUNDLES = 16  # a worker's portion: about 2 MB
_ID_PARTS = 4
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LogCheck:
    """A log that holds: its checkpoint as proven, and the keys that signed (a witness with the time it stated)."""

    checkpoint: Checkpoint
    note: str
    signers: tuple[tuple[str, int | None], ...]


def verify_log(
    reader: LogReader,
    accepted: LogRules | Sequence[NoteVerifier] | NoteVerifier | str,
    *,
    held: str | None = None,
    progress: Progress | None = None,
    workers: int = 1,
) -> LogCheck:
    """Check a log from its first entry to its signature. ``accepted``: its key, or all that is accepted of it.

    ``held``: a checkpoint of this log seen before, as a note.
    ``workers``: how many processes check entries. With more than one, whoever calls this from a script guards it with
    ``if __name__ == "__main__"``, as for every use of ``multiprocessing``.

    1. the checkpoint is a signed note by a trusted key, of the log that the key names, and enough witnesses cosigned it;
    2. it extends ``held``; 3. every entry is a leaf, and no id stands twice; 4. every entry hashes to its place in the lowest tiles;
    5. every tile above follows from the ones below; 6. the root is the signed one; 7. every exchange of the log's key is in the log.
    Raises ``NoteError``, ``NoteSignatureError``, ``CheckpointError``, ``QuorumError`` (1), ``ForkError``, ``HistoryError`` (2),
    ``LeafError`` (3), ``TileError`` (4-6), ``LogFetchError``. Memory stays bounded: 8 bytes an entry and a few bundles a worker.
    """
    rules = _rules(accepted)
    chain = rules.follow(reader)
    keys = chain.keys
    note = reader.checkpoint()
    checkpoint, signed = chain.open(note)  # 1
    rules.require_cosigned(signed)
    signers = signed.verify((*keys, *rules.witnesses))
    if held is not None:
        require_extends(reader, held, note, keys)  # 2
    edge, ids = Edge(), array("Q")
    for part in _checked(reader, checkpoint.size, workers):  # 3, 4
        ids.frombytes(part.ids)
        for full in _grow(edge, part):
            _check_parent(reader, checkpoint.size, *full)  # 5
        if progress is not None:
            progress(edge.size, checkpoint.size)
    for tile, row in edge.partials():
        _check_parent(reader, checkpoint.size, tile, row)
    if edge.root() != checkpoint.root:  # 6
        raise TileError("the tiles lead to another root", rule="tile-root", seen=edge.root().hex(), wanted=checkpoint.root.hex())
    _require_unique(reader, checkpoint.size, ids)
    chain.require_logged(reader, checkpoint.size)  # 7
    return LogCheck(checkpoint, note, tuple((verifier.name, moment) for verifier, moment in signers.items()))


def _rules(given: LogRules | Sequence[NoteVerifier] | NoteVerifier | str) -> LogRules:
    if isinstance(given, LogRules):
        return given
    if isinstance(given, str):
        return LogRules((NoteVerifier.from_text(given),))
    keys = (given,) if isinstance(given, NoteVerifier) else tuple(given)
    witnesses = tuple(key for key in keys if key.kind == COSIGNATURE)
    return LogRules(tuple(key for key in keys if key not in witnesses), witnesses=witnesses)


@dataclass(frozen=True)
class _Raw:
    """A bundle and its lowest tile as they were read: everything that a check of their entries needs."""

    number: int
    width: int
    hashes: list[bytes]
    bundle: bytes


@dataclass(frozen=True)
class _Checked:
    """Bundles whose entries are leaves and hash to their places: the low halves of their ids, the roots of the full ones, the rest."""

    ids: bytes
    roots: list[bytes]
    rest: list[bytes]


def _checked(reader: LogReader, size: int, workers: int) -> Iterator[_Checked]:
    """Check all bundles in order, in as many processes; reading stays in this one."""
    count = -(-size // TILE_WIDTH)
    parts = ([_read(reader, number, size) for number in range(at, min(at + _BUNDLES, count))] for at in range(0, count, _BUNDLES))
    if workers < 2 or size < PARALLEL_FROM:
        yield from map(_check, parts)
        return
    # Started afresh, not forked: this process may have threads.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting: deque[Future[_Checked]] = deque()
        try:
            for part in parts:
                waiting.append(pool.submit(_check, part))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(reader: LogReader, number: int, size: int) -> _Raw:
    hashes = reader.hashes(0, number, size)
    return _Raw(number, len(hashes), hashes, reader.raw_bundle(number, size))


def _check(part: list[_Raw]) -> _Checked:
    ids, roots, rest = array("Q"), [], []
    for raw in part:
        leaves = unpack_bundle(raw.bundle, raw.width)
        for index, leaf in enumerate(leaves, start=raw.number * TILE_WIDTH):
            try:
                ids.append(int.from_bytes(leaf_id(leaf)[8:], "big"))
            except LeafError as error:
                raise LeafError(f"entry {index} is no leaf: {error.message}", **error.details, index=index) from error
        hashes = [leaf_hash(leaf) for leaf in leaves]
        if hashes != raw.hashes:
            raise _entry_error(raw.number, hashes, raw.hashes)
        if raw.width == TILE_WIDTH:
            roots.append(perfect_root(hashes))
        else:
            rest = hashes
    return _Checked(ids.tobytes(), roots, rest)


def _grow(edge: Edge, part: _Checked) -> Iterator[tuple[Tile, list[bytes]]]:
    """Add what was checked to the edge; yield the tiles above the lowest that became full by it."""
    for root in part.roots:
        yield from edge.append_tile(root)
    for digest in part.rest:
        edge.append(digest)


def _check_parent(reader: LogReader, size: int, tile: Tile, row: list[bytes]) -> None:
    if tile.level and reader.hashes(tile.level, tile.index, size) != row:
        raise TileError("a tile does not follow from the tiles below", rule="tile-parent", seen=tile.path, wanted="the hashes of its tiles")


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
        order = sorted([each for each in ids if each % _ID_PARTS == part])
        twice.update(compress(order, map(eq, order, islice(order, 1, None))))
    if not twice:
        return
    met: dict[bytes, int] = {}
    for index in (index for index, each in enumerate(ids) if each in twice):
        leaf = next(leaf for _, leaf in reader.entries(index, index + 1, size=size))
        id_ = leaf_id(leaf)
        if id_ in met:
            raise LeafError("an id stands twice", rule="leaf-id-twice", seen=f"entries {met[id_]} and {index}", wanted="one entry an id")
        met[id_] = index
