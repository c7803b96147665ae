"""Tiles: the paths and widths of the specification, and an edge that agrees with the plain tree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.log.errors import TileError
from attestation.log.tiles import Edge, Tile, cut_bundle, pack_bundle, tile_of, unpack_bundle
from attestation.merkle import leaf_hash, root

HASHES = [leaf_hash(b"%d" % number) for number in range(1100)]


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(1, 1000), "tile/1/x001/000"),
        (Tile(2, 5, 17), "tile/2/005.p/17"),
        (Tile(None, 999, 255), "tile/entries/999.p/255"),
    ],
)
def test_paths(tile: Tile, path: str) -> None:
    assert tile.path == path


def test_tiles_of_a_tree_of_seventy_thousand() -> None:
    """The example of the specification."""
    assert tile_of(0, 272, 70_000).width == 256
    assert tile_of(0, 273, 70_000).width == 112
    assert tile_of(1, 0, 70_000).width == 256
    assert tile_of(1, 1, 70_000).width == 17
    assert tile_of(2, 0, 70_000).width == 1
    with pytest.raises(TileError):
        tile_of(2, 1, 70_000)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 1024, 1100])
def test_edge_is_the_tree(size: int) -> None:
    edge = Edge()
    for digest in HASHES[:size]:
        edge.append(digest)
    assert edge.root() == root(HASHES[:size])
    again = Edge.restore(size, edge.upper(), HASHES[size // 256 * 256 : size])
    assert again.root() == edge.root()
    assert {tile.width for tile, _ in again.partials()} == {len(row) for row in edge.rows if row}


def test_edge_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TileError):
        Edge.restore(5, b"", HASHES[:4])


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=40), st.data())
def test_bundles_round_trip(leaves: list[bytes], data: st.DataObject) -> None:
    raw = pack_bundle(leaves)
    assert unpack_bundle(raw, len(leaves)) == leaves
    width = data.draw(st.integers(0, len(leaves)))
    assert cut_bundle(raw, width) == pack_bundle(leaves[:width])


@pytest.mark.parametrize(
    ("raw", "width", "rule"),
    [
        (b"\x00", 1, "bundle-truncated"),
        (b"\x00\x05abc", 1, "bundle-truncated"),
        (b"\x00\x01a", 2, "bundle-short"),
        (b"\x00\x01a!", 1, "bundle-trailing"),
    ],
)
def test_broken_bundles_are_refused_by_name(raw: bytes, width: int, rule: str) -> None:
    with pytest.raises(TileError) as caught:
        unpack_bundle(raw, width)
    assert caught.value.details["rule"] == rule
