"""Checking a log in several processes finds what one process finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attestation.errors import LogError
from attestation.log.leaf import leaf_id
from attestation.log.reader import LogReader
from attestation.log.tiles import Edge
from attestation.log.verify import verify_log
from attestation.merkle import leaf_hash, perfect_root
from tests.attestation.log.logs import KEY, VERIFIER, leaf
from tests.attestation.log.test_tampering import build

LEAVES = [leaf(number) for number in range(16 * 256 + 300)]  # more than a worker's portion, and a partial bundle


def _swap(log: Path) -> None:
    bundle = log / "tile" / "entries" / "016"
    raw = bundle.read_bytes()
    one, two = LEAVES[16 * 256 + 1], LEAVES[16 * 256 + 2]
    assert len(one) == len(two)
    bundle.write_bytes(raw.replace(one, b"\0" * len(one)).replace(two, one).replace(b"\0" * len(one), two))


def _edit_last(log: Path) -> None:
    bundle = log / "tile" / "entries" / "017.p" / "44"
    bundle.write_bytes(bundle.read_bytes().replace(LEAVES[-1], leaf(7)))


def _no_leaf(log: Path) -> None:
    bundle = log / "tile" / "entries" / "003"
    bundle.write_bytes(bundle.read_bytes().replace(b'"v":1}', b'"v":2}', 1))


def _parent(log: Path) -> None:
    tile = log / "tile" / "1" / "000.p" / "17"
    raw = tile.read_bytes()
    tile.write_bytes(raw[:32] + bytes(32) + raw[64:])


def _gone(log: Path) -> None:
    (log / "tile" / "entries" / "016").unlink()


def test_the_whole_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestation.log.verify.PARALLEL_FROM", 0)
    log = build(tmp_path / "log", LEAVES)
    seen: list[int] = []
    check = verify_log(LogReader.from_dir(log), VERIFIER, workers=2, progress=lambda done, _: seen.append(done))
    assert check == verify_log(LogReader.from_dir(log), VERIFIER)
    assert seen == [16 * 256, len(LEAVES)]


@pytest.mark.parametrize(
    ("tamper", "rule"),
    [(_swap, "tile-order"), (_edit_last, "tile-entry"), (_no_leaf, "leaf-version"), (_parent, "tile-parent"), (_gone, "bundle-missing")],
)
def test_tampering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamper: Callable[[Path], None], rule: str) -> None:
    monkeypatch.setattr("attestation.log.verify.PARALLEL_FROM", 0)
    log = build(tmp_path / "log", LEAVES)
    tamper(log)
    raised = []
    for workers in (1, 2):
        with pytest.raises(LogError) as caught:
            verify_log(LogReader.from_dir(log), VERIFIER, workers=workers)
        raised.append((type(caught.value), caught.value.message, caught.value.details))
    assert raised[0] == raised[1]
    assert raised[0][2]["rule"] == rule


def test_an_id_that_stands_twice_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestation.log.verify.PARALLEL_FROM", 0)
    twice = LEAVES[5].replace(b'"outcome":"ok"', b'"outcome":"no"')
    assert leaf_id(twice) == leaf_id(LEAVES[5])
    log = build(tmp_path / "log", [*LEAVES[:-1], twice], KEY)
    with pytest.raises(LogError) as caught:
        verify_log(LogReader.from_dir(log), VERIFIER, workers=2)
    assert caught.value.details["rule"] == "leaf-id-twice"
    assert str(len(LEAVES) - 1) in str(caught.value.details["seen"])


def test_an_edge_grows_by_tiles_as_by_leaves() -> None:
    hashes = [leaf_hash(raw) for raw in LEAVES[:600]]
    one, two = Edge(), Edge()
    for digest in hashes:
        one.append(digest)
    for start in (0, 256):
        two.append_tile(perfect_root(hashes[start : start + 256]))
    for digest in hashes[512:]:
        two.append(digest)
    assert (one.rows, one.size) == (two.rows, two.size)
    with pytest.raises(LogError):
        two.append_tile(hashes[0])
