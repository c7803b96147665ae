"""Reads a log, from a folder or over HTTP: entries, proofs, and extracts that carry their own proof."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from attestation.log.errors import LogFetchError, NoteError, TileError
from attestation.log.note import MAX_NOTE_BYTES, Checkpoint, Note
from attestation.log.proof import TlogProof
from attestation.log.source import FolderSource, Source, UrlSource
from attestation.log.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, cut_bundle, rotation_path, split_hashes, tile_of, unpack_bundle
from attestation.merkle import HASH_BYTES, consistency_proof, inclusion_proof, leaf_hash, perfect_root, verify_inclusion

if TYPE_CHECKING:
    import httpx

CACHED_TILES = 64
CHECKPOINT = "checkpoint"


class LoggedEntry(NamedTuple):
    """An entry with its tlog-proof text."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs of an entry
    leaf: bytes
    proof: str


@dataclass(frozen=True)
class LogExtract:
    """Some entries of a log, each with its proof to one checkpoint."""

    origin: str
    checkpoint: str
    entries: tuple[LoggedEntry, ...]


class LogReader:
    """A log as anybody sees it. Trusts nothing: what it returns is proven by ``proof`` and ``verify``."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._cache: OrderedDict[Tile, list[bytes]] = OrderedDict()

    @classmethod
    def from_dir(cls, path: Path) -> Self:
        """Read a log's folder, or the data folder that holds it as ``log``."""
        inner = path / "log"
        return cls(FolderSource(inner if not (path / CHECKPOINT).exists() and inner.is_dir() else path))

    @classmethod
    def from_url(cls, url: str, client: httpx.Client | None = None) -> Self:
        """Read the log whose prefix is ``url``."""
        return cls(UrlSource(url, client))

    def checkpoint(self) -> str:
        """Return the published checkpoint, a signed note that is not proven yet. Raises ``LogFetchError`` or ``NoteError``."""
        try:
            return self._need(CHECKPOINT, MAX_NOTE_BYTES).decode()
        except UnicodeDecodeError as error:
            raise NoteError("a note is not UTF-8", rule="note-utf8", seen=str(error)[:80], wanted="UTF-8") from error

    def vkey(self) -> str:
        """Return the key that the log says is its own: a hint for people, never a basis for trust."""
        return self._need("vkey", 1024).decode("utf-8", errors="replace").strip()

    def rotation(self, number: int) -> str | None:
        """Return the note by which the log's key was exchanged for the ``number``-th time (from 1), or None. Not proven yet."""
        raw = self._source.read(rotation_path(number), MAX_NOTE_BYTES)
        return None if raw is None else raw.decode("utf-8", errors="replace")

    def hashes(self, level: int, index: int, size: int) -> list[bytes]:
        """Return a tile's hashes as they stand in the tree of ``size`` leaves. Raises ``TileError`` or ``LogFetchError``."""
        tile = tile_of(level, index, size)
        if tile in self._cache:
            self._cache.move_to_end(tile)
            return self._cache[tile]
        raw = self._read(tile)
        found = self._cache[tile] = split_hashes(raw)
        if len(self._cache) > CACHED_TILES:
            self._cache.popitem(last=False)
        return found

    def bundle(self, index: int, size: int) -> list[bytes]:
        """Return the entries of a bundle as they stand in the tree of ``size`` leaves. Raises ``TileError`` or ``LogFetchError``."""
        return unpack_bundle(self.raw_bundle(index, size), tile_of(None, index, size).width)

    def raw_bundle(self, index: int, size: int) -> bytes:
        """Return the bytes of a bundle as it stands in the tree of ``size`` leaves. Raises ``TileError`` or ``LogFetchError``."""
        return self._read(tile_of(None, index, size))

    def entries(self, start: int, end: int, *, size: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (index, bytes) of entries ``start`` up to ``end`` of the tree of ``size`` leaves (that of the checkpoint)."""
        size = self.size() if size is None else size
        end = min(end, size)
        for number in range(start // TILE_WIDTH, -(-end // TILE_WIDTH)):
            for index, leaf in enumerate(self.bundle(number, size), start=number * TILE_WIDTH):
                if start <= index < end:
                    yield index, leaf

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """Return the inclusion proof of an entry in the tree of ``size`` leaves."""
        return inclusion_proof(index, size, lambda height, at: self._node(height, at, size))

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Return the proof that the tree of ``old`` leaves is the start of that of ``new`` leaves."""
        return consistency_proof(old, new, lambda height, at: self._node(height, at, new))

    def prefix(self, old: int, new: int) -> list[bytes]:
        """Return the proof for ``merkle.prefix_roots``: which root the first ``old`` of ``new`` leaves have (0 < old < new)."""
        proof = self.consistency(old, new)
        if old & (old - 1):
            return proof
        return [self._node(old.bit_length() - 1, 0, new), *proof]

    def prove(self, index: int, checkpoint: str) -> TlogProof:
        """Return the proof of an entry against a checkpoint of this log."""
        return TlogProof(index, tuple(self.inclusion(index, _head(checkpoint).size)), checkpoint)

    def extract(self, indexes: Iterable[int]) -> LogExtract:
        """Return entries with their proofs against the published checkpoint. Raises ``TileError`` where the tiles do not lead to it."""
        checkpoint = self.checkpoint()
        head = _head(checkpoint)
        entries = []
        for index in indexes:
            proof = self.prove(index, checkpoint)
            leaf = self.bundle(index // TILE_WIDTH, head.size)[index % TILE_WIDTH]
            verify_inclusion(index, head.size, leaf_hash(leaf), proof.hashes, head.root)
            entries.append(LoggedEntry(index, leaf, proof.text))
        return LogExtract(head.origin, checkpoint, tuple(entries))

    def size(self) -> int:
        """Return how many entries the published checkpoint says there are; it is not proven yet."""
        return _head(self.checkpoint()).size

    def _node(self, height: int, index: int, size: int) -> bytes:
        level, inner = divmod(height, TILE_HEIGHT)
        start = index << inner
        row = self.hashes(level, start // TILE_WIDTH, size)
        at = start % TILE_WIDTH
        return perfect_root(row[at : at + (1 << inner)])

    def _read(self, tile: Tile) -> bytes:
        """Return a tile's exact bytes; a full tile stands in for a partial one that it replaced."""
        raw = self._source.read(tile.path, tile.max_bytes)
        if raw is None and tile.width < TILE_WIDTH:
            whole = self._source.read(tile.stem, Tile(tile.level, tile.index).max_bytes)
            raw = whole if whole is None else cut_bundle(whole, tile.width) if tile.level is None else whole[: tile.width * HASH_BYTES]
        if raw is None and tile.level is None:
            raise TileError("entries are missing", rule="bundle-missing", seen=f"no {tile.path}", wanted="every entry of the signed tree")
        if raw is None:
            raise TileError("a tile is missing", rule="tile-missing", seen=f"no {tile.path}", wanted="every tile of the signed tree")
        if tile.level is not None and len(raw) != tile.width * HASH_BYTES:
            raise TileError(
                "a tile has a wrong length", rule="tile-length", seen=f"{tile.path}: {len(raw)} bytes", wanted=f"{tile.width * HASH_BYTES}"
            )
        return raw

    def _need(self, path: str, limit: int) -> bytes:
        raw = self._source.read(path, limit)
        if raw is None:
            raise LogFetchError("there is no log here", rule="log-missing", seen=f"no {path}", wanted="a log's folder or URL prefix")
        return raw


def _head(checkpoint: str) -> Checkpoint:
    """Return what a checkpoint says; it is not proven here."""
    return Checkpoint.parse(Note.parse(checkpoint).text)
