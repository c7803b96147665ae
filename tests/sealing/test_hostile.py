"""A sealer who means harm: properly signed bundles that no honest program would write are refused before anything is written."""

from __future__ import annotations

import pytest
from blake3 import blake3

from sandbox.errors import BundleError, BundleTamperedError, LimitError, UnsafePathError
from sandbox.sealing.bundle import BundleReader, Limits, RangeSource, open_bundle
from sandbox.sealing.entries import Entry, Kind
from sandbox.sealing.format import new_core, write_header
from sandbox.sealing.index import end_line, write_index
from sandbox.sealing.keys import DataKey
from sandbox.sealing.stream import Stream, StreamWriter, sealed_size
from sandbox.sealing.tar import END, padding, tar_header, with_offset
from tests.sealing.trees import names

F, D, S, L = Kind.FILE, Kind.DIR, Kind.SYMLINK, Kind.LINK


def file(path: bytes, content: bytes = b"x", **change) -> tuple[Entry, bytes]:
    fields = {"mode": 0o644, "mtime_ns": 0, "size": len(content), "digest": blake3(content).digest()} | change
    return Entry(path, F, **fields), content


def other(path: bytes, kind: Kind, target: bytes = b"") -> tuple[Entry, bytes]:
    return Entry(path, kind, 0o755, 0, target=target), b""


def bundle(identity, items, *, tar: bytes | None = None, index: bytes | None = None, place=True) -> bytes:
    """Write a bundle of any entries, with a true signature over them."""
    plain, entries, cursor = b"", [], 0
    for entry, content in items:
        plain += tar_header(entry) + content + bytes(padding(len(content)) if entry.kind is F else 0)
        placed, cursor = with_offset(entry, cursor) if place else (entry, 0)
        entries.append(placed)
    plain = plain + END if tar is None else tar
    size = len(index) if index is not None else sum(len(line) for line in _index(entries, None, identity))
    core = new_core(bundle_id="0" * 32, labels={}, payload_size=sealed_size(len(plain)), index_size=sealed_size(size),
                    signer=identity.signing_key.public, to=(identity.public.fingerprint,))  # fmt: skip
    key = DataKey.generate()
    raw, header = write_header(core, (identity.public.wrap(key.raw, core.wrap_info),), identity.signing_key)
    out = [raw]
    lines = index if index is not None else b"".join(write_index(entries, header, identity.signing_key))
    for aad, data in ((header.payload_aad, plain), (header.index_aad, lines)):
        StreamWriter(Stream.fresh(key, aad, len(data)), lambda view: out.append(bytes(view))).write(data)
    return b"".join(out)


def _index(entries, header, identity):
    from sandbox.sealing.entries import encode_line

    return [*(encode_line(entry) for entry in entries), end_line(len(entries), bytes(64))]


@pytest.fixture
def refuses(tmp_path, alice):
    def check(raw, kind=BundleError, limits=None):
        (tmp_path / "b").write_bytes(raw)
        with pytest.raises(kind):
            open_bundle(tmp_path / "b", tmp_path / "out", key=alice, limits=limits)
        assert names(tmp_path) == ["b"]

    return check


def test_the_helper_writes_bundles_that_open(tmp_path, alice):
    (tmp_path / "b").write_bytes(bundle(alice, [other(b"d", D), file(b"d/f"), other(b"l", S, b"d/f"), other(b"m", L, b"d/f")]))
    open_bundle(tmp_path / "b", tmp_path / "out", key=alice)
    assert (tmp_path / "out" / "l").read_bytes() == b"x"


@pytest.mark.parametrize("path", [b"../x", b"/etc/x", b"a/../../x", b"", b".", b"a//b", b"x" * 256, b"a\0b", b"a/"])
def test_paths_that_climb_out(alice, refuses, path):
    refuses(bundle(alice, [file(path)]), UnsafePathError)


@pytest.mark.parametrize("target", [b"/etc", b"..", b"d/../../x", b"s"])
def test_symlinks_that_leave(alice, refuses, target):
    refuses(bundle(alice, [other(b"d", D), other(b"s", S, target)]))


@pytest.mark.parametrize(
    "items",
    [
        [other(b"s", S, b"d"), file(b"s/x")],
        [file(b"f"), file(b"f/x")],
        [file(b"a"), file(b"a")],
        [file(b"b"), file(b"a")],
        [file(b"d/x")],
        [other(b"l", L, b"../../etc/passwd")],
        [other(b"l", L, b"z"), file(b"z")],
        [other(b"d", D), other(b"l", L, b"d")],
        [other(b"s", S, b"x"), other(b"t", L, b"s")],
        [file(b"f"), other(b"l", L, b"f"), other(b"m", L, b"l")],
        [file(b"f"), other(b"l", L, b"e")],
    ],
    ids=range(11),
)
def test_writing_through_links_twice_or_out_of_order(alice, refuses, items):
    refuses(bundle(alice, items))


def test_a_tar_that_says_something_else_than_the_index(alice, refuses):
    good = [file(b"a", b"hello")]
    plain = tar_header(good[0][0]) + b"hello" + bytes(507) + END
    for changed in (
        plain.replace(b"0000644", b"0004755"),  # a setuid bit for plain tar
        plain[:1536] + b"HELLO" + plain[1541:],
        plain[:1600] + b"!" + plain[1601:],
        plain[:-1] + b"\1",
        plain + bytes(512),
        plain[:-512],
    ):
        refuses(bundle(alice, good, tar=changed))
    refuses(bundle(alice, [file(b"a", b"hello", digest=bytes(32))]), BundleTamperedError)
    refuses(bundle(alice, [file(b"a", b"", digest=bytes(32))]), BundleTamperedError)


def test_a_whole_file_is_compared_with_its_digest_wherever_it_is_read(alice):
    """Who holds the data key can make segments that verify; that they are the sealer's only the digest tells."""
    raw = bundle(alice, [file(b"a", b"hello", digest=bytes(32)), file(b"b", b"", digest=bytes(32)), file(b"c", b"sound")])
    reader = BundleReader(RangeSource(len(raw), lambda start, end: raw[start:end]), alice)
    for whole in ((b"a",), (b"a", 0, 5), (b"a", 0, 99), (b"b",)):
        with pytest.raises(BundleTamperedError, match="not what its sealer signed"):
            list(reader.read(*whole))
    assert b"".join(reader.read(b"a", 1, 5)) == b"ello"  # a part has no digest of its own
    assert b"".join(reader.read(b"c")) == b"sound"


def test_sizes_and_offsets_that_are_not_there(alice, refuses):
    refuses(bundle(alice, [file(b"a", size=2**40)]))
    refuses(bundle(alice, [file(b"a", offset=0)], place=False))
    refuses(bundle(alice, [file(b"a", offset=1536), file(b"b", offset=1536)], place=False))


@pytest.mark.parametrize(
    "index", [b"x", b"\n", b"{}\n", b"{}\n{}\n", end_line(0, bytes(64)), b"a" * 200_000, end_line(1, bytes(64))[:-1]], ids=range(7)
)
def test_an_index_that_is_none(alice, refuses, index):
    refuses(bundle(alice, [], index=index))


def test_many_files_meet_the_limit(alice, refuses):
    items = [file(b"%06d" % number, b"") for number in range(300)]
    refuses(bundle(alice, items), LimitError, Limits(files=299))
    refuses(bundle(alice, [file(b"a", b"x" * 2000)]), LimitError, Limits(bytes=1999))
