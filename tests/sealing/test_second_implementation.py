"""A reader written from ``docs/format.md`` alone verifies the golden vectors and what Sealrig writes, and refuses what Sealrig refuses."""

from __future__ import annotations

import ast
import base64
import json
import sys
import zlib
from hashlib import shake_128
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.sealing.bundle import seal
from sandbox.sealing.entries import Entry, Kind, mtime_text
from sandbox.sealing.tar import tar_header
from tests.sealing import second
from tests.sealing.trees import describe, make_tree

VECTORS = Path(__file__).parent / "vectors"
NAMES = {"cryptography", "blake3"}


def vector(name):
    return {key: base64.b64decode(value) if key in BYTES else value for key, value in json.loads((VECTORS / name).read_text()).items()}


BYTES = {"identity", "data_key", "bundle", "header", "payload_stream", "index_stream", "index"}


def rebuilt(parts):
    """Return the bundle of several segments, from what the vector keeps of it."""
    key, index = parts["data_key"], zlib.decompress(parts["index"])
    length = int.from_bytes(parts["header"][16:20], "big")
    document = second.b64(second.parse(parts["header"][20 : 20 + length])["payload"])
    entries = [second.read_line(line) for line in index.split(b"\n")[:-2]]
    contents = {e.path: bytes(e.size) if e.sparse else shake_128(e.path).digest(e.size) for e in entries if e.kind == "file"}
    payload = second.seal_stream(
        key, parts["payload_stream"], second.bind("sealrig/bundle-payload/v1", document), second.write_tar(entries, contents)
    )
    return (
        parts["header"] + payload + second.seal_stream(key, parts["index_stream"], second.bind("sealrig/bundle-index/v1", document), index)
    )


@pytest.fixture(scope="module")
def golden():
    return vector("v1.json")


def test_it_imports_nothing_of_ours():
    tree = ast.parse(Path(second.__file__).read_text())
    found = {node.module if isinstance(node, ast.ImportFrom) else name.name for node in ast.walk(tree)
             if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names}  # fmt: skip
    assert {str(name).partition(".")[0] for name in found} - sys.stdlib_module_names == NAMES


@pytest.mark.parametrize("name", ["v1.json", "v1-segments.json"])
def test_it_verifies_the_golden_bundles(name):
    parts = vector(name)
    raw = parts["bundle"] if "bundle" in parts else rebuilt(parts)
    assert "blake3:" + blake3(raw).hexdigest() == parts["digest"]
    identity = second.Identity(parts["identity"])
    assert (identity.text, identity.fingerprint) == (parts["identity_pub"], parts["fingerprint"])
    opened = second.open_bundle(raw, identity)
    assert opened.header.tree["labels"] == {"vector": name.removesuffix(".json")}
    assert second.data_key(opened.header, identity) == parts["data_key"]


def test_the_golden_bundle_of_segments_has_several_in_both_streams():
    tree = second.read_header(rebuilt(vector("v1-segments.json"))).tree
    assert tree["payload_size"] > 2 << 20
    assert tree["index_size"] > 1 << 20


def test_it_opens_the_golden_log(golden):
    chunks = [base64.b64decode(chunk) for chunk in golden["log"]]
    identity = second.Identity(golden["identity"])
    assert second.open_log(chunks, golden["log_lease"], identity) == [b"", b"first\n", b"last\n"]
    for broken in (chunks[:2], chunks[::-1], [chunks[0], chunks[2]], [*chunks, chunks[2]]):
        with pytest.raises(second.Refused):
            second.open_log(broken, golden["log_lease"], identity)


def test_it_refuses_every_flip_and_cut(golden):
    raw, identity = bytearray(golden["bundle"]), second.Identity(golden["identity"])
    for position in range(0, len(raw), 29):
        raw[position] ^= 1 << position % 8
        with pytest.raises(second.Refused):
            second.open_bundle(bytes(raw), identity)
        raw[position] ^= 1 << position % 8
        with pytest.raises(second.Refused):
            second.open_bundle(bytes(raw[:position]), identity)


def test_it_opens_what_sealrig_seals_today(tmp_path, alice, bob):
    (tmp_path / "src").mkdir()
    make_tree(tmp_path / "src")
    seal([tmp_path / "src"], tmp_path / "b", recipients=[alice.public], signer=bob.signing_key)
    opened = second.open_bundle((tmp_path / "b").read_bytes(), second.Identity(alice._secret))
    seen = describe(tmp_path / "src")
    assert {entry.path.decode("utf-8", "surrogateescape") for entry in opened.entries} == set(seen)
    for path, content in opened.contents.items():
        assert seen[path.decode("utf-8", "surrogateescape")][3] == content


part = st.one_of(st.binary(min_size=1, max_size=60), st.text("aü\t~\x7f", min_size=1, max_size=120).map(str.encode)).filter(
    lambda name: not {0, 0x2F} & set(name)
)
times = st.one_of(st.integers(-(10**21) + 1, 10**21 - 1), st.integers(8**11 * 10**9 - 5, 8**11 * 10**9 + 5), st.integers(-(10**9), 10**9))
sizes = st.one_of(st.integers(0, 2**50), st.integers(8**11 - 2, 8**11 + 2))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(Kind), st.tuples(st.lists(part, min_size=1, max_size=4).map(b"/".join), part), st.integers(0, 0o777), times, sizes)
def test_both_write_the_same_tar(kind, names, mode, mtime, size):
    path, target = names
    size, target = size if kind is Kind.FILE else 0, target if kind in {Kind.LINK, Kind.SYMLINK} else b""
    theirs = second.Entry(kind.value, path, mode, mtime_text(mtime), size, target=target)
    assert second.tar_header(theirs) == tar_header(Entry(path, kind, mode, mtime, size, target=target))
