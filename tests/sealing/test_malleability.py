"""Nothing about a bundle can change without a typed error, and nothing is left behind when it did."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestation.canonical import canonical_json
from attestation.signing import Envelope, b64decode, sign_envelope
from sandbox.errors import BundleError, BundleTamperedError, WrongKeyError
from sandbox.sealing.bundle import BundleReader, RangeSource, data_key, open_bundle, read_header, seal
from sandbox.sealing.format import HEADER_PAYLOAD_TYPE, MAGIC
from sandbox.sealing.keys import DataKey
from tests.sealing.trees import names


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    base = Path("/dev/shm")
    root = Path(tmp_path_factory.mktemp("malleability", numbered=True)) if not base.is_dir() else base / f"sealrig-test-{os.getpid()}"
    root.mkdir(exist_ok=True)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def sealed(place, alice, bob):
    """Return two small bundles and one of three segments, as bytes."""
    found = []
    for number, size in enumerate((7, 7, 2 * 1024 * 1024 + 100)):
        source = place / f"src{number}"
        (source / "d").mkdir(parents=True)
        (source / "d" / "f").write_bytes(os.urandom(size))
        (source / "l").symlink_to("d/f")
        out = place / f"b{number}"
        seal([source], out, recipients=[alice.public, bob.public], signer=alice.signing_key)
        found.append(out.read_bytes())
    return found


@pytest.fixture(scope="module")
def refuses(place, alice):
    before: set[str] = set()

    def check(raw: bytes, kinds=BundleError, key=alice):
        (place / "changed").write_bytes(raw)
        before.update(names(place))
        with pytest.raises(kinds):
            open_bundle(place / "changed", place / "out", key=key, signers=[alice.signing_key.public])
        assert set(names(place)) == before

    return check


def read_all(raw: bytes, identity) -> None:
    """Read everything in place: ten times faster than opening into a folder."""
    reader = BundleReader(RangeSource(len(raw), lambda start, end: raw[start:end]), identity, signers=[identity.signing_key.public])
    reader.entries()
    for index in range(reader.payload.segments):
        reader.segment(index)


def test_a_flip_in_every_byte_is_refused(place, sealed, refuses, alice):
    seal([place / "src0" / "d" / "f"], place / "small", recipients=[alice.public], signer=alice.signing_key)
    raw = bytearray((place / "small").read_bytes())
    read_all(bytes(raw), alice)
    for position in range(len(raw)):
        bit = 1 << (position * 5 + position // 8) % 8
        raw[position] ^= bit
        with pytest.raises(BundleError):
            read_all(bytes(raw), alice)
        if position % 83 == 0:
            refuses(bytes(raw))
        raw[position] ^= bit


def test_every_kind_of_truncation_and_every_trailing_byte_is_refused(sealed, refuses):
    raw = sealed[0]
    for length in {*range(40), *range(0, len(raw), 97), *range(len(raw) - 40, len(raw))}:
        refuses(raw[:length])
    for extra in (b"\0", b"x", raw, bytes(512), bytes(1024 * 1024)):
        refuses(raw + extra)


def test_a_bundle_of_any_shorter_length_is_refused(place, sealed, alice):
    assert sealed
    seal([place / "src0" / "d" / "f"], place / "shorter", recipients=[alice.public], signer=alice.signing_key)
    raw = (place / "shorter").read_bytes()
    read_all(raw, alice)
    for length in range(len(raw)):
        with pytest.raises(BundleError):
            read_all(raw[:length], alice)


def test_segments_cannot_be_reordered_repeated_or_dropped(sealed, refuses):
    raw = sealed[2]
    header = read_header(raw)
    p, mib = header.payload_offset, 1024 * 1024
    one, two, rest = raw[p : p + mib], raw[p + mib : p + 2 * mib], raw[p + 2 * mib :]
    for payload in (two + one, one + one, two + two, one, two):
        refuses(raw[:p] + payload + rest)


def test_parts_of_two_bundles_cannot_be_spliced(sealed, refuses):
    left, right = sealed[0], sealed[1]
    a, b = read_header(left), read_header(right)
    assert (a.payload_offset, a.total_size) == (b.payload_offset, b.total_size)
    parts = [(raw[: a.payload_offset], raw[a.payload_offset : a.index_offset], raw[a.index_offset :]) for raw in (left, right)]
    for pick in range(1, 7):
        refuses(b"".join(parts[pick >> number & 1][number] for number in range(3)))
    # Payload and index of one bundle in each other's place.
    refuses(parts[0][0] + parts[0][2] + parts[0][1])


def _with_document(raw: bytes, change, signer):
    length = int.from_bytes(raw[16:20], "big")
    tree = json.loads(Envelope.from_bytes(raw[20 : 20 + length]).payload)
    change(tree)
    envelope = sign_envelope(canonical_json(tree), HEADER_PAYLOAD_TYPE, signer).to_bytes()
    head = MAGIC + len(envelope).to_bytes(4, "big") + envelope
    return head + bytes(-len(head) % 4096) + raw[-(-(20 + length) // 4096) * 4096 :]


def test_a_header_signed_by_another_does_not_pass_for_the_sealers(sealed, refuses, bob):
    raw = _with_document(sealed[0], lambda tree: tree.update(signer=bob.signing_key.public.text), bob.signing_key)
    with pytest.raises(WrongKeyError):  # the wrapped key is bound to the header that it was made for
        data_key(read_header(raw), bob)
    refuses(raw, BundleTamperedError)
    refuses(_with_document(sealed[0], lambda tree: None, bob.signing_key), BundleTamperedError)


def _set(key, value):
    return lambda tree: tree.update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["recipients"].reverse(),
        lambda tree: tree["recipients"].pop(),
        lambda tree: tree["recipients"].append(dict(tree["recipients"][0])),
        lambda tree: tree["recipients"][0].update(to=tree["recipients"][1]["to"]),
        lambda tree: tree["recipients"][0].update(wrapped=tree["recipients"][1]["wrapped"]),
        lambda tree: tree["recipients"][0].update(wrapped=""),
        lambda tree: tree["recipients"][0].update(extra=1),
        _set("recipients", []),
        _set("recipients", {}),
        _set("labels", {"a": "b"}),
        _set("labels", {"A": "b"}),
        _set("labels", {"a": 1}),
        _set("labels", {"a": "\x1b[2J"}),
        _set("labels", {str(n): "" for n in range(17)}),
        _set("id", "0" * 32),
        _set("id", "../" + "0" * 29),
        _set("v", 2),
        _set("v", True),
        _set("v", 1.5),
        _set("type", "other"),
        _set("suite", "NULL"),
        _set("payload_size", 0),
        _set("payload_size", -1),
        _set("payload_size", 2**52),
        _set("payload_size", True),
        _set("index_size", 56),
        _set("created_at", "now"),
        _set("signer", "ed25519:AAAA"),
        _set("unknown", 1),
        lambda tree: tree.pop("id"),
    ],
)
def test_a_header_that_its_own_sealer_changed_later_is_refused(sealed, refuses, alice, change):
    refuses(_with_document(sealed[0], change, alice.signing_key))


def test_a_time_is_in_ascii_digits(sealed, alice):
    for time, good in (("2026-01-02T03:04:05.678Z", True), ("202\u0666-01-02T03:04:05.678Z", False)):
        raw = _with_document(sealed[0], _set("created_at", time), alice.signing_key)
        with contextlib.nullcontext() if good else pytest.raises(BundleError):
            read_header(raw)


def test_who_holds_the_data_key_cannot_replace_contents(place, sealed, refuses, alice, bob):
    """A node or fellow recipient re-encrypts another payload and index under the real key and header: the sealer's signature is missing."""
    from sandbox.sealing.entries import Entry, Kind
    from sandbox.sealing.index import write_index
    from sandbox.sealing.stream import Stream, StreamWriter, plain_size
    from sandbox.sealing.tar import END, padding, tar_header, with_offset

    raw = sealed[0]
    header = read_header(raw)
    key = data_key(header, bob)
    reader_entries = _entries(place, raw, alice)
    content = b"forged!"
    from blake3 import blake3

    entries, cursor, tar = [], 0, b""
    for entry in reader_entries:
        changed = Entry(entry.path, entry.kind, entry.mode, entry.mtime_ns, entry.size, target=entry.target,
                        digest=blake3(content).digest() if entry.kind is Kind.FILE else b"")  # fmt: skip
        tar += tar_header(changed) + (content + bytes(padding(len(content))) if changed.kind is Kind.FILE else b"")
        placed, cursor = with_offset(changed, cursor)
        entries.append(placed)
    tar += END
    index = b"".join(write_index(entries, header, bob.signing_key))
    parts = [raw[: header.payload_offset]]
    for aad, plain, size in ((header.payload_aad, tar, header.payload_size), (header.index_aad, index, header.index_size)):
        out: list[bytes] = []
        StreamWriter(Stream.fresh(key, aad, plain_size(size)), lambda view, out=out: out.append(bytes(view))).write(plain)
        parts += out
    refuses(b"".join(parts), BundleTamperedError)
    # The payload alone, under the true index: the digest of the file does not fit.
    refuses(parts[0] + parts[1] + parts[2] + raw[header.index_offset :], BundleTamperedError)


def _entries(place, raw, identity):
    return list(BundleReader(RangeSource(len(raw), lambda start, end: raw[start:end]), identity).entries().values())


def test_another_data_key_opens_nothing(sealed, refuses):
    refuses(sealed[0], BundleTamperedError, DataKey.generate())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_is_refused(sealed, refuses, data):
    raw = data.draw(st.sampled_from(sealed))
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 5000)))
    filling = data.draw(st.one_of(st.binary(max_size=200), st.integers(0, len(raw)).map(lambda at: raw[at : at + end - start])))
    changed = raw[:start] + filling + raw[end:]
    if changed not in sealed:
        refuses(changed)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=5000))
def test_garbage_is_no_bundle(raw):
    for garbage in (raw, MAGIC + raw, MAGIC + len(raw).to_bytes(4, "big") + raw + bytes(4096)):
        with pytest.raises(BundleError):
            read_header(garbage)


def test_wrapped_keys_have_one_length(sealed):
    tree = json.loads(read_header(sealed[0]).document)
    assert {len(b64decode(item["wrapped"])) for item in tree["recipients"]} == {1168}
