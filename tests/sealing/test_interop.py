"""Tink reads what we write and we read what Tink writes; and the recipe in docs/format.md recovers a bundle without our code."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tink
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

from sandbox.sealing.bundle import seal
from sandbox.sealing.keys import DataKey
from sandbox.sealing.stream import Stream, StreamWriter, iterate_stream, plain_size, sealed_size
from tests.sealing.trees import describe, make_tree

SIZES = [1, 1048519, 1048520, 1048521, 1048520 + 1048560, 1048520 + 1048561, 3_500_000]


def primitive(data_key):
    streaming_aead.register()
    params = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=1 << 20, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256
    )
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, key_value=data_key, params=params)
    keyset = tink_pb2.Keyset(primary_key_id=1)
    keyset.key.add(key_id=1, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.RAW).key_data.CopyFrom(
        tink_pb2.KeyData(
            type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
            value=key.SerializeToString(),
            key_material_type=tink_pb2.KeyData.SYMMETRIC,
        )
    )
    return cleartext_keyset_handle.read(tink.BinaryKeysetReader(keyset.SerializeToString())).primitive(streaming_aead.StreamingAead)


class Kept(io.BytesIO):
    def close(self):  # Tink closes what it writes to
        pass


def test_the_parameters_are_tinks_own_template():
    template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
    wanted = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKeyFormat.FromString(template.value)
    assert (wanted.key_size, wanted.params.derived_key_size, wanted.params.ciphertext_segment_size) == (32, 32, 1 << 20)
    assert wanted.params.hkdf_hash_type == common_pb2.SHA256


@pytest.mark.parametrize("size", SIZES)
def test_tink_opens_our_streams(size):
    key, data, out = DataKey.generate(), os.urandom(size), io.BytesIO()
    writer = StreamWriter(Stream.fresh(key, b"context", size), out.write)
    for start in range(0, size, 300_000):
        writer.write(data[start : start + 300_000])
    assert len(out.getvalue()) == sealed_size(size)
    assert primitive(key.raw).new_decrypting_stream(io.BytesIO(out.getvalue()), b"context").read() == data


@pytest.mark.parametrize("size", SIZES)
def test_we_open_tinks_streams(size):
    key, data, out = DataKey.generate(), os.urandom(size), Kept()
    with primitive(key.raw).new_encrypting_stream(out, b"context") as stream:
        stream.write(data)
    raw = out.getvalue()
    assert plain_size(len(raw)) == size
    ours = Stream(key, raw[:40], b"context", size)
    assert b"".join(bytes(piece) for piece in iterate_stream(ours, lambda start, length: raw[start : start + length])) == data


def test_the_recipe_in_the_docs_recovers_a_bundle_with_tink_and_tar_alone(tmp_path, alice, bob):
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    recipe = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert recipe is not None
    (tmp_path / "recover.py").write_text(recipe[1])
    alice.save(tmp_path / "keys")
    (tmp_path / "src").mkdir()
    make_tree(tmp_path / "src")
    seal([tmp_path / "src"], tmp_path / "b", recipients=[bob.public, alice.public], signer=bob.signing_key)
    block = "import runpy, sys; sys.modules['sandbox'] = sys.modules['attestation'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0])"
    subprocess.run([sys.executable, "-c", block, "recover.py", "keys/identity.key", "b", "out.tar"], cwd=tmp_path, check=True)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xpf", "out.tar", "-C", "out"], cwd=tmp_path, check=True, capture_output=True)
    assert describe(tmp_path / "out") == describe(tmp_path / "src")
