"""Verifiers that others wrote accept our log, and refuse it once it is changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.log.proof import TlogProof
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from attestation.merkle import leaf_hash
from attestation.signing import b64encode
from tests.attestation.log.logs import KEY, ORIGIN, VERIFIER, leaf, open_log

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent / "third_party"
SIZE = 700
GO_SOURCE = Path("/usr/share/gocode/src/golang.org/x/mod/sumdb")
SPKI = Ed25519PublicKey.from_public_bytes(KEY.public.raw).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 700 entries, and beside it a checkpoint of its first 300."""
    folder = tmp_path_factory.mktemp("log")
    with open_log(folder) as writer:
        writer.append([leaf(number) for number in range(300)])
        (folder / "older").write_text(writer.checkpoint())
        writer.append([leaf(number) for number in range(300, SIZE)])
    return folder


def _proof(data: Path, index: int) -> tuple[bytes, TlogProof]:
    entry = LogReader.from_dir(data).extract([index]).entries[0]
    return entry.leaf, TlogProof.from_text(entry.proof)


@pytest.fixture(scope="module")
def tree(data: Path):
    pymerkle = pytest.importorskip("pymerkle", reason="pymerkle is not installed: it is in the development group")
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for _, raw in LogReader.from_dir(data).entries(0, SIZE):
        tree.append_entry(raw)
    return tree


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("go") is None or not GO_SOURCE.is_dir():
        pytest.skip("Go or its x/mod source is not installed: apt-get install golang-go golang-golang-x-mod-dev")
    folder = tmp_path_factory.mktemp("go")
    cache = ROOT / ".dev" / "go-cache"
    cache.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "GOCACHE": str(cache),
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    subprocess.run(["go", "build", "-o", str(folder / "sumdb"), str(HERE / "sumdb.go")], env=environment, check=True, timeout=150)
    return folder / "sumdb"


class TestSigstorePython:
    """The checkpoint and inclusion code of sigstore-python."""

    @staticmethod
    def _verify(checkpoint: str, index: int, raw: bytes, proof: TlogProof) -> None:
        pytest.importorskip("sigstore", reason="sigstore is not installed: it is in the development group")
        from sigstore._internal.merkle import verify_merkle_inclusion
        from sigstore._internal.rekor.checkpoint import SignedCheckpoint
        from sigstore._internal.trust import Key, Keyring
        from sigstore_models.common.v1 import PublicKey, PublicKeyDetails

        ring = Keyring()
        key = Key(PublicKey(raw_bytes=b64encode(SPKI).encode(), key_details=PublicKeyDetails.PKIX_ED25519))
        # In a C2SP note the key id is made from name, type and key; sigstore's own logs use the key alone.
        id_ = VERIFIER.key_id
        ring._keyring[id_] = key
        signed = SignedCheckpoint.from_text(checkpoint)
        signed.signed_note.verify(ring, id_)
        inclusion = SimpleNamespace(
            log_index=index,
            tree_size=signed.checkpoint.log_size,
            hashes=list(proof.hashes),
            root_hash=bytes.fromhex(signed.checkpoint.log_hash),
        )
        verify_merkle_inclusion(SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=inclusion, canonicalized_body=raw)))

    @pytest.mark.parametrize("index", [0, 255, 256, 511, 699])
    def test_accepts(self, data: Path, index: int) -> None:
        raw, proof = _proof(data, index)
        self._verify(proof.checkpoint, index, raw, proof)

    def test_refuses_changes(self, data: Path) -> None:
        sigstore_errors = pytest.importorskip("sigstore.errors", reason="sigstore is not installed: it is in the development group")
        raw, proof = _proof(data, 7)
        for checkpoint, index, body in [
            (proof.checkpoint.replace("\n700\n", "\n701\n"), 7, raw),
            (proof.checkpoint, 8, raw),
            (proof.checkpoint, 7, raw + b" "),
        ]:
            with pytest.raises(sigstore_errors.VerificationError):
                self._verify(checkpoint, index, body, proof)


class TestPymerkle:
    """pymerkle builds the same tree, and its verifier accepts our proofs."""

    def test_same_root(self, data: Path, tree) -> None:
        assert tree.get_root() == verify_log(LogReader.from_dir(data), VERIFIER).checkpoint.root

    @pytest.mark.parametrize("index", [0, 255, 256, 699])
    def test_accepts(self, data: Path, tree, index: int) -> None:
        import pymerkle

        raw, proof = _proof(data, index)
        theirs = tree.prove_inclusion(index + 1)
        ours = pymerkle.InclusionProof("sha256", True, SIZE, index + 1, theirs.rule, [leaf_hash(raw), *proof.hashes])
        pymerkle.verify_inclusion(leaf_hash(raw), tree.get_root(), ours, index=index + 1, size=SIZE)
        with pytest.raises(pymerkle.InvalidProof):
            pymerkle.verify_inclusion(leaf_hash(raw + b" "), tree.get_root(), ours)


class TestGoSumdb:
    """golang.org/x/mod/sumdb: note.Open, tlog.CheckRecord of every entry, tlog.CheckTree."""

    pytestmark = pytest.mark.slow

    def test_accepts(self, data: Path, program: Path) -> None:
        done = subprocess.run(
            [program, data / "log", VERIFIER.text, data / "older"], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == f"ok {SIZE}\n"

    @pytest.mark.parametrize("path", ["checkpoint", "tile/0/000", "tile/1/000.p/2", "tile/entries/001"])
    def test_refuses_changes(self, data: Path, program: Path, tmp_path: Path, path: str) -> None:
        shutil.copytree(data / "log", tmp_path / "log")
        file = tmp_path / "log" / path
        raw = bytearray(file.read_bytes())
        raw[20] ^= 1
        file.write_bytes(raw)
        done = subprocess.run([program, tmp_path / "log", VERIFIER.text], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1

    def test_refuses_another_history(self, data: Path, program: Path, tmp_path: Path) -> None:
        with open_log(tmp_path) as writer:
            writer.append([leaf() for _ in range(300)])
        done = subprocess.run(
            [program, data / "log", VERIFIER.text, tmp_path / "log" / "checkpoint"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 1


class TestSigstoreNode:
    """@sigstore/verify under Node."""

    @staticmethod
    def _run(given: dict) -> subprocess.CompletedProcess:
        modules = ROOT / ".dev" / "node_modules"
        if shutil.which("node") is None or not (modules / "@sigstore" / "verify").is_dir():
            pytest.skip("Node or @sigstore/verify is not there: './dev test' fetches both")
        return subprocess.run(
            ["node", str(HERE / "sigstore_verify.js"), str(modules)],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @staticmethod
    def _given(data: Path, index: int) -> dict:
        raw, proof = _proof(data, index)
        return {
            "checkpoint": proof.checkpoint,
            "key": b64encode(SPKI),
            "keyHint": VERIFIER.key_id.hex(),
            "origin": ORIGIN,
            "index": index,
            "hashes": [b64encode(each) for each in proof.hashes],
            "leaf": b64encode(raw),
        }

    @pytest.mark.parametrize("index", [0, 511, 699])
    def test_accepts(self, data: Path, index: int) -> None:
        done = self._run(self._given(data, index))
        assert done.stdout == "ok\n", done.stderr

    @pytest.mark.parametrize("change", [{"index": 8}, {"leaf": "aGk="}, {"keyHint": "00000000"}])
    def test_refuses_changes(self, data: Path, change: dict) -> None:
        done = self._run(self._given(data, 7) | change)
        assert done.returncode != 0
        assert "TLOG_INCLUSION_PROOF_ERROR" in done.stderr
