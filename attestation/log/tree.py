"""The growing tree in memory: from entries to the files that must stand before a checkpoint may be published. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attestation.log.tiles import TILE_WIDTH, Edge, Tile, pack_bundle
from attestation.merkle import leaf_hash


class Growth:
    """A tree that grows batch by batch. ``tail``: the entries since the last full bundle."""

    def __init__(self, edge: Edge, tail: Sequence[bytes]) -> None:
        self._edge = edge
        self._tail = list(tail)

    @classmethod
    def restore(cls, size: int, upper: bytes, tail: Sequence[bytes]) -> Growth:
        """Return the tree of ``size`` leaves from what was stored of it. Raises ``TileError`` if the parts do not fit."""
        return cls(Edge.restore(size, upper, [leaf_hash(leaf) for leaf in tail]), tail)

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._edge.size

    def root(self) -> bytes:
        """Return the root."""
        return self._edge.root()

    def upper(self) -> bytes:
        """Return the edge above the lowest row, packed for storing."""
        return self._edge.upper()

    def grow(self, leaves: Sequence[bytes]) -> dict[str, bytes]:
        """Add leaves; return every file that is new in the tree of the new size: path to bytes."""
        files: dict[str, bytes] = {}
        before = {tile for tile, _ in self._edge.partials()}
        for leaf in leaves:
            self._tail.append(leaf)
            for tile, hashes in self._edge.append(leaf_hash(leaf)):
                files[tile.path] = b"".join(hashes)
                if tile.level == 0:
                    files[Tile(None, tile.index).path] = pack_bundle(self._tail)
                    self._tail = []
        return files | self._partials(but=before)

    def edge_files(self) -> dict[str, bytes]:
        """Return the partial tiles and the partial bundle of the tree as it is."""
        return self._partials(but=set())

    def _partials(self, but: set[Tile]) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for tile, hashes in self._edge.partials():
            if tile not in but:
                files[tile.path] = b"".join(hashes)
                if tile.level == 0:
                    files[Tile(None, tile.index, tile.width).path] = pack_bundle(self._tail)
        return files

    @staticmethod
    def replaced(files: Mapping[str, bytes]) -> list[str]:
        """Return the paths of the full tiles among ``files``, whose partial forms are no longer needed."""
        return [path for path in files if ".p/" not in path]


def full_below(size: int) -> int:
    """Return how many of the first ``size`` entries stand in full bundles."""
    return size // TILE_WIDTH * TILE_WIDTH
