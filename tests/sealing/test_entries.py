"""Index lines and tar headers: one spelling, checked against a general encoder and Python's own tarfile; unsafe ones refused."""

from __future__ import annotations

import io
import json
import tarfile
import time

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.errors import BundleError, UnsafePathError
from sandbox.sealing import entries
from sandbox.sealing.entries import MAX_PATH_BYTES, Entry, Kind, Order, check_path, decode_line, encode_line, order, shown, unsafe_links
from sandbox.sealing.tar import END, padding, tar_header, with_offset

NAMES = st.one_of(st.binary(min_size=1, max_size=255), st.text(min_size=1, max_size=60).map(lambda t: t.encode("utf-8", "replace"))).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..") and len(name) <= 255
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
TIMES = st.integers(-(10**20), 10**20)


def make(*fields, **more):
    return Entry(*fields, **more)


FILES = st.builds(make, PATHS, st.just(Kind.FILE), st.integers(0, 0o777), TIMES, st.integers(0, 2**50), st.integers(0, 2**50),
                  digest=st.binary(min_size=32, max_size=32), sparse=st.booleans())  # fmt: skip
LINKS = st.builds(make, PATHS, st.sampled_from([Kind.SYMLINK, Kind.LINK]), st.integers(0, 0o777), TIMES, target=PATHS)
ENTRIES = st.one_of(FILES, LINKS, st.builds(make, PATHS, st.just(Kind.DIR), st.integers(0, 0o777), TIMES))


@given(ENTRIES)
@example(Entry('q"\\\n\x7f\u2028é'.encode(), Kind.FILE, 0, -1, digest=bytes(32)))
def test_a_line_is_canonical_and_comes_back(entry):
    line = encode_line(entry)
    assert line == rfc8785.dumps(json.loads(line)) + b"\n"
    assert decode_line(line[:-1]) == entry


OTHER = [b"", b"0", b"00", b"-", b"A", b"1", b"+1", b" ", b"\\u0061", b".0"]
PLAIN = Entry(b"a/b", Kind.FILE, 0o644, 1_700_000_000_000_000_001, 1234, 5678, digest=bytes(range(32)), sparse=True)


@given(st.sampled_from([PLAIN, PLAIN._replace(sparse=False, mode=0)]), st.data())
def test_a_line_that_differs_anywhere_is_another_entry_or_refused(entry, data):
    """No second spelling: whatever is still accepted after a change is spelled as its own entry is."""
    line = bytearray(encode_line(entry)[:-1])
    at = data.draw(st.integers(0, len(line)))
    line[at : at + data.draw(st.integers(0, 2))] = data.draw(
        st.sampled_from([b"", b"0", b"00", b"-", b"A", b"1", b"+1", b" ", b"\\u0061", b".0"])
    )
    try:
        found = decode_line(bytes(line))
    except (BundleError, UnsafePathError):
        return
    assert encode_line(found)[:-1] == line


@pytest.mark.parametrize("field", ["mode", "size", "offset"])
def test_numbers_have_one_spelling_and_a_bound(field):
    line = encode_line(PLAIN)[:-1]
    value = str(getattr(PLAIN, field)).encode()
    for other in (b"0" + value, b"-" + value, value + b".0", b"9" * 16, b"9" * 17):
        changed = line.replace(f'"{field}":'.encode() + value, f'"{field}":'.encode() + other)
        assert changed != line
        with pytest.raises(BundleError):
            decode_line(changed)


@given(ENTRIES)
@example(Entry(b"a" * 99, Kind.DIR, 0o755, 0))
@example(Entry(b"a" * 100, Kind.DIR, 0o755, 0))
@example(Entry(b"a" * 100, Kind.FILE, 0o755, 1, 8**11, digest=bytes(32)))
def test_a_tar_header_says_the_same_to_pythons_tarfile(entry):
    raw = tar_header(entry)
    assert with_offset(entry, 1000)[0 if entry.kind is Kind.FILE else 1] == (
        Entry(entry.path, entry.kind, entry.mode, entry.mtime_ns, entry.size, 1000 + len(raw), digest=entry.digest, sparse=entry.sparse)
        if entry.kind is Kind.FILE else 1000 + len(raw)
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(raw + END), mode="r:", errors="surrogateescape") as tar:
        member = tar.next()
    assert member is not None
    assert member.name.encode("utf-8", "surrogateescape") == entry.path.rstrip(b"/")
    assert member.linkname.encode("utf-8", "surrogateescape") == entry.target.rstrip(b"/")
    assert (member.mode, member.uid, member.gid, member.size) == (entry.mode, 0, 0, entry.size)
    assert {Kind.FILE: member.isreg(), Kind.DIR: member.isdir(), Kind.SYMLINK: member.issym(), Kind.LINK: member.islnk()}[entry.kind]


@given(st.binary(max_size=300))
def test_other_lines_are_refused(raw):
    with pytest.raises(BundleError):
        decode_line(raw)


GOOD = Entry(b"a/b", Kind.FILE, 0o644, 1_500_000_000, 3, 1536, digest=bytes(32))


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"mode": 0o4755},
        {"mode": -1},
        {"mode": "420"},
        {"mode": True},
        {"mtime": "1.5"},
        {"mtime": "-0.000000000"},
        {"mtime": "01.000000000"},
        {"mtime": 1},
        {"size": -1},
        {"size": 2**51},
        {"size": 1.0},
        {"offset": None},
        {"blake3": "00"},
        {"blake3": "A" * 64},
        {"sparse": False},
        {"sparse": 1},
        {"type": "fifo"},
        {"type": "dir"},
        {"path": ""},
        {"path": "/a"},
        {"path": "a/../b"},
        {"path": "a//b"},
        {"path": "./a"},
        {"path": "a/"},
        {"path": "a\0b"},
        {"path": "x" * 256},
        {"path": "y/" * 2000 + "y"},
        {"path": 7},
        {"pathB64": "YQ=="},
        {"target": "x"},
    ],
)
def test_unacceptable_fields_are_refused(change):
    tree = json.loads(encode_line(GOOD)) | change
    with pytest.raises(BundleError):
        decode_line(json.dumps(tree, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())


def test_text_may_not_hide_as_base64():
    tree = json.loads(encode_line(GOOD))
    del tree["path"]
    tree["pathB64"] = "YQ=="
    with pytest.raises(BundleError, match="malformed"):
        decode_line(rfc8785.dumps(tree))


@given(PATHS)
def test_a_path_inside_is_accepted_and_one_outside_never(path):
    assert check_path(path) == path
    for bad in (b"/" + path, path + b"/", path + b"/..", b"../" + path, path + b"\0", b"./" + path):
        with pytest.raises(UnsafePathError):
            check_path(bad)


@given(st.lists(PATHS, unique=True))
def test_order_is_that_of_a_walk(paths):
    assert sorted(paths, key=order) == sorted(paths, key=lambda path: path.split(b"/"))


@pytest.mark.parametrize("paths", [[b"b", b"a"], [b"a", b"a"], [b"a/b"], [b"f", b"f/x"], [b"d", b"d-", b"d/x"]])
def test_entries_out_of_order_twice_or_in_no_folder_are_refused(paths):
    checker = Order()
    entries = [Entry(path, Kind.DIR if path.startswith(b"d") else Kind.FILE, 0, 0) for path in paths]
    for entry in entries[:-1]:
        checker.add(entry)
    with pytest.raises(BundleError):
        checker.add(entries[-1])


def test_hard_links_name_what_is_earlier():
    checker = Order()
    checker.add(Entry(b"e", Kind.LINK, 0, 0, target=b"a"))
    assert checker.targets == {b"a"}
    for target in (b"f", b"f/x", b"zzz"):
        with pytest.raises(BundleError):
            Order().add(Entry(b"f", Kind.LINK, 0, 0, target=target))


@pytest.mark.parametrize(("links", "bad"), [
    ({b"a": b"b"}, []), ({b"d/a": b"../x"}, []), ({b"a": b"../x"}, [b"a"]), ({b"a": b"/x"}, [b"a"]), ({b"a": b"d/../../x"}, [b"a"]),
    ({b"dot": b".", b"z": b"dot/../x"}, [b"z"]), ({b"s/up": b"..", b"z": b"s/up/../x"}, [b"z"]), ({b"a": b"b", b"b": b"/x"}, [b"a", b"b"]),
    ({b"a": b"a"}, [b"a"]), ({b"a": b"b/c", b"b": b"d"}, []), ({b"a": b".//./b/"}, []),
])  # fmt: skip
def test_symlinks_are_followed_as_the_kernel_does(links, bad):
    assert sorted(unsafe_links(links)) == bad


def test_links_through_links_take_no_longer_than_their_parts(monkeypatch):
    """Twenty links that each lead on and 1,800 folders down: the last place is 36,000 folders deep."""
    links = {b"l%02d" % number: b"l%02d" % (number + 1) + b"/x" * 1800 for number in range(20)}
    began = time.process_time()
    assert unsafe_links(links) == {}
    assert time.process_time() - began < 5
    monkeypatch.setattr(entries, "MAX_FOLLOWED", 50_000)
    assert set(unsafe_links(links).values()) == {"leads too far round, as other links do"}
    assert unsafe_links({b"l19": links[b"l19"]}) == {}


def test_a_link_is_seen_at_a_path_as_long_as_can_be():
    deep = b"/".join([b"x" * 255] * 14)
    near = deep + b"/" + b"y" * (MAX_PATH_BYTES - len(deep) - 1)
    assert unsafe_links({near: b"..", b"a": near + b"/.." * 13}) == {}
    assert list(unsafe_links({near: b"..", b"a": near + b"/.." * 14})) == [b"a"]
    assert unsafe_links({b"a": near + b"z" + b"/.." * 15}) == {}
    assert list(unsafe_links({b"a": near + b"z" + b"/.." * 16})) == [b"a"]


def test_names_are_shown_without_control_characters():
    assert shown(b"\x1b[2J\xff\n") == "\\x1b[2J\\\\xff\\n"


def test_padding_fills_blocks():
    assert [padding(size) for size in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]
