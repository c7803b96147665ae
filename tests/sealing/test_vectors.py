"""Golden vectors: what version 1 wrote is read for ever, and is still written the same way, byte for byte."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from blake3 import blake3

from attestation.signing import b64decode
from sandbox.sealing.bundle import BundleReader, Kind, RangeSource, open_bundle
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


def test_payload_and_index_are_still_written_the_same_way(vector, identity, bundle, reader):
    header = reader.header
    key = DataKey(b64decode(vector["data_key"]))
    entries = list(reader.entries().values())
    tar = b"".join(tar_header(e) + (CONTENT[e.path] + bytes(padding(e.size)) if e.kind is Kind.FILE else b"") for e in entries) + END
    index = b"".join(write_index(entries, header, identity.signing_key))
    for offset, size, aad, plain in (
        (header.payload_offset, header.payload_size, header.payload_aad, tar),
        (header.index_offset, header.index_size, header.index_aad, index),
    ):
        assert plain_size(size) == len(plain)
        out = io.BytesIO()
        StreamWriter(Stream(key, bundle[offset : offset + 40], aad, len(plain)), out.write).write(plain)
        assert out.getvalue() == bundle[offset : offset + size]


def test_the_log_opens(vector, identity):
    opener = LogOpener(vector["log_lease"], identity)
    assert [opener.open(seq, b64decode(chunk)) for seq, chunk in enumerate(vector["log"])] == [b"", b"first\n", b"last\n"]
    assert opener.finished
