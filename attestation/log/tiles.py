"""Where a log's bytes stand: paths, tiles and entry bundles of c2sp.org/tlog-tiles, and the growing right edge of the tree."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from attestation.log.errors import TileError
from attestation.merkle import HASH_BYTES, fold, perfect_parts, perfect_root

TILE_WIDTH = 256
TILE_HEIGHT = 8
MAX_LEVEL = 7  # 256 ** 8 leaves are more than 2^63 - 1
MAX_TILE_BYTES = TILE_WIDTH * HASH_BYTES
MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + 65535)


@dataclass(frozen=True)
class Tile:
    """Where a tile stands: its level (None: an entry bundle), its index in the level, and how many items it holds."""

    level: int | None
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the log's prefix."""
        partial = f".p/{self.width}" if self.width < TILE_WIDTH else ""
        return f"{self.stem}{partial}"

    @property
    def stem(self) -> str:
        """The path of the full tile."""
        level = "entries" if self.level is None else str(self.level)
        return f"tile/{level}/{_number(self.index)}"

    @property
    def max_bytes(self) -> int:
        """The most bytes it may have."""
        return MAX_BUNDLE_BYTES if self.level is None else self.width * HASH_BYTES


def rotation_path(number: int) -> str:
    """Return where the note stands by which the log's key was exchanged for the ``number``-th time (from 1)."""
    return f"keys/{number}"


def _number(index: int) -> str:
    parts = [f"{index % 1000:03d}"]
    while index := index // 1000:
        parts.append(f"x{index % 1000:03d}")
    return "/".join(reversed(parts))


def tile_of(level: int | None, index: int, size: int) -> Tile:
    """Return the tile ``index`` of a level as it stands in a tree of ``size`` leaves. Raises ``TileError`` if it is empty."""
    width = min(TILE_WIDTH, (size >> TILE_HEIGHT * (level or 0)) - index * TILE_WIDTH)
    if width <= 0:
        raise TileError(
            "the tree has no such tile", rule="tile-outside", seen=f"level {level} index {index}", wanted=f"a tile of size {size}"
        )
    return Tile(level, index, width)


def pack_bundle(leaves: Iterable[bytes]) -> bytes:
    """Return an entry bundle: each leaf with its 16-bit big-endian length in front."""
    return b"".join(struct.pack(">H", len(leaf)) + leaf for leaf in leaves)


def unpack_bundle(raw: bytes, width: int) -> list[bytes]:
    """Return exactly ``width`` leaves; bytes left over are an error. Raises ``TileError``."""
    leaves: list[bytes] = []
    at = 0
    while at < len(raw) and len(leaves) < width:
        start = at + 2
        at = start + int.from_bytes(raw[at:start], "big")
        leaves.append(raw[start:at])
        if start > len(raw) or at > len(raw):
            raise TileError("an entry bundle is cut off", rule="bundle-truncated", seen=f"{len(raw)} bytes", wanted=f"≥ {at} bytes")
    if len(leaves) != width:
        raise TileError("an entry bundle has too few entries", rule="bundle-short", seen=str(len(leaves)), wanted=str(width))
    if at != len(raw):
        raise TileError("an entry bundle has bytes left over", rule="bundle-trailing", seen=f"{len(raw) - at} bytes", wanted="none")
    return leaves


def cut_bundle(raw: bytes, width: int) -> bytes:
    """Return the first ``width`` leaves of a bundle as a bundle: what stood in the partial bundle that a full one replaced."""
    at = 0
    for _ in range(width):
        at += 2 + int.from_bytes(raw[at : at + 2], "big")
    return raw[:at]


def split_hashes(raw: bytes) -> list[bytes]:
    """Return the hashes of a tile."""
    return [raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)]


@dataclass
class Edge:
    """The right edge of a tree: for each level the hashes of its last, partial tile. Enough to grow the tree and know its root."""

    rows: list[list[bytes]] = field(default_factory=list)
    size: int = 0

    def append(self, leaf_hash: bytes) -> list[tuple[Tile, list[bytes]]]:
        """Add a leaf's hash; return the tiles that became full by it."""
        self.size += 1
        return self._carry(leaf_hash, 0)

    def append_tile(self, root: bytes) -> list[tuple[Tile, list[bytes]]]:
        """Add a full lowest tile by its root, where no partial one stands before it; return the tiles above that became full by it."""
        if not self.rows:
            self.rows.append([])
        if self.rows[0]:
            raise TileError("a tile does not fit behind a partial one", rule="edge-width", seen=f"size {self.size}", wanted="whole tiles")
        self.size += TILE_WIDTH
        return self._carry(root, 1)

    def _carry(self, carry: bytes, level: int) -> list[tuple[Tile, list[bytes]]]:
        full: list[tuple[Tile, list[bytes]]] = []
        while True:
            if level == len(self.rows):
                self.rows.append([])
            row = self.rows[level]
            row.append(carry)
            if len(row) < TILE_WIDTH:
                return full
            full.append((Tile(level, (self.size >> TILE_HEIGHT * (level + 1)) - 1), row))
            self.rows[level] = []
            carry, level = perfect_root(row), level + 1

    def root(self) -> bytes:
        """Return the root of the whole tree."""
        return fold([part for row in reversed(self.rows) for part in perfect_parts(row)])

    def partials(self) -> list[tuple[Tile, list[bytes]]]:
        """Return the partial tiles of the tree."""
        return [(tile_of(level, self.size >> TILE_HEIGHT * (level + 1), self.size), row) for level, row in enumerate(self.rows) if row]

    def upper(self) -> bytes:
        """Return all rows above the lowest, packed; the lowest follows from the leaves of the last bundle."""
        return b"".join(bytes([len(row)]) + b"".join(row) for row in self.rows[1:])

    @classmethod
    def restore(cls, size: int, upper: bytes, lowest: Sequence[bytes]) -> Edge:
        """Return the edge of a tree of ``size`` leaves from ``upper()`` and the leaf hashes since its last full bundle."""
        rows, at = [list(lowest)], 0
        while at < len(upper):
            end = at + 1 + upper[at] * HASH_BYTES
            rows.append(split_hashes(upper[at + 1 : end]))
            at = end
        for level, row in enumerate(rows):
            if len(row) != (size >> TILE_HEIGHT * level) % TILE_WIDTH:
                raise TileError(
                    "the stored edge is not that of the tree", rule="edge-width", seen=f"{len(row)} at level {level}", wanted=f"size {size}"
                )
        return cls(rows, size)
