"""Golden vectors: what version 1 wrote is read for ever, and is still written the same way, byte for byte."""

from __future__ import annotations

import io
import json
import os
import zlib
from hashlib import shake_128
from pathlib import Path

import pytest
from blake3 import blake3

from attestation.signing import b64decode
from sandbox.sealing.bundle import BundleReader, Kind, RangeSource, open_bundle, read_header
from sandbox.sealing.entries import decode_line
from sandbox.sealing.format import write_header
from sandbox.sealing.index import write_index
from sandbox.sealing.keys import DataKey, Identity
from sandbox.sealing.logs import LogOpener
from sandbox.sealing.stream import Stream, StreamWriter, plain_size
from sandbox.sealing.tar import END, padding, tar_header

CONTENT = {b"folder/text": b"golden\n", b"folder/nothing": b"", "ünï".encode(): b"unicode", b"\xff": b"bytes"}


@pytest.fixture(scope="module")
def vector():
    return json.loads((Path(__file__).parent / "vectors" / "v1.json").read_text())


@pytest.fixture(scope="module")
def identity(vector):
    return Identity(b64decode(vector["identity"]))


@pytest.fixture(scope="module")
def bundle(vector):
    return b64decode(vector["bundle"])


@pytest.fixture
def reader(bundle, identity):
    return BundleReader(RangeSource(len(bundle), lambda start, end: bundle[start:end]), identity)


def test_the_identity_is_the_same(vector, identity):
    assert identity.public.text == vector["identity_pub"]
    assert identity.public.fingerprint == vector["fingerprint"]


def test_the_bundle_opens(vector, identity, bundle, tmp_path):
    (tmp_path / "b").write_bytes(bundle)
    assert "blake3:" + blake3(bundle).hexdigest() == vector["digest"]
    result = open_bundle(tmp_path / "b", tmp_path / "out", key=identity)
    assert result.labels == {"vector": "v1"}
    for path, content in CONTENT.items():
        place = tmp_path / "out" / os.fsdecode(path)
        assert place.read_bytes() == content
        assert place.stat().st_mode & 0o7777 == 0o640
        assert place.stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert str((tmp_path / "out" / "link").readlink()) == "folder/text"
    assert (tmp_path / "out" / "same").samefile(tmp_path / "out" / "folder" / "text")


def written(header, entries, contents, parts, identity) -> bytes:
    """Return a bundle as it is written today, but for what is random: wrapped keys and the headers of streams, given in ``parts``."""
    raw, again = write_header(header.core, tuple(recipient.wrapped for recipient in header.recipients), identity.signing_key)
    out = io.BytesIO(raw)
    out.seek(0, io.SEEK_END)
    tar = b"".join(tar_header(e) + contents.get(e.path, b"") + bytes(padding(e.size)) for e in entries) + END
    index = b"".join(write_index(entries, again, identity.signing_key))
    key = DataKey(b64decode(parts["data_key"]))
    for stream, size, aad, plain in (
        (parts["payload_stream"], header.payload_size, again.payload_aad, tar),
        (parts["index_stream"], header.index_size, again.index_aad, index),
    ):
        assert plain_size(size) == len(plain)
        StreamWriter(Stream(key, stream, aad, len(plain)), out.write).write(plain)
    return out.getvalue()


def test_the_bundle_is_still_written_the_same_way(vector, identity, bundle, reader):
    header = reader.header
    streams = {
        name: bundle[at : at + 40] for name, at in (("payload_stream", header.payload_offset), ("index_stream", header.index_offset))
    }
    assert written(header, list(reader.entries().values()), CONTENT, vector | streams, identity) == bundle


def test_a_bundle_of_several_segments_is_still_written_the_same_way_and_opens(identity, tmp_path):
    vector = json.loads((Path(__file__).parent / "vectors" / "v1-segments.json").read_text())
    header = read_header(b64decode(vector["header"]))
    entries = [decode_line(line) for line in zlib.decompress(b64decode(vector["index"])).split(b"\n")[:-2]]
    contents = {e.path: bytes(e.size) if e.sparse else shake_128(e.path).digest(e.size) for e in entries if e.kind is Kind.FILE}
    streams = {name: b64decode(vector[name]) for name in ("payload_stream", "index_stream")}
    raw = written(header, entries, contents, vector | streams, identity)
    assert "blake3:" + blake3(raw).hexdigest() == vector["digest"]
    (tmp_path / "b").write_bytes(raw)
    result = open_bundle(tmp_path / "b", tmp_path / "out", key=identity)
    assert result.files == len(contents)
    for path, content in contents.items():
        assert (tmp_path / "out" / os.fsdecode(path)).read_bytes() == content


def test_the_log_opens(vector, identity):
    opener = LogOpener(vector["log_lease"], identity)
    assert [opener.open(seq, b64decode(chunk)) for seq, chunk in enumerate(vector["log"])] == [b"", b"first\n", b"last\n"]
    assert opener.finished
