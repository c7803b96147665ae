"""Reading a log from a folder and over HTTP: entries, proofs, extracts; and what a hostile server cannot do."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from attestation.errors import LogError
from attestation.log.errors import LogFetchError, NoteSignatureError, TileError
from attestation.log.note import NoteVerifier
from attestation.log.proof import TlogProof
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from attestation.merkle import ProofError, verify_consistency
from tests.attestation.log.logs import ORIGIN, OTHER_KEY, VERIFIER, leaf, make_log, open_log


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    make_log(folder, 777, batch=90)
    return folder


def _serve(data: Path) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        file = data / request.url.path.lstrip("/")
        return httpx.Response(200, content=file.read_bytes()) if file.is_file() else httpx.Response(404)

    return httpx.Client(transport=httpx.MockTransport(answer))


def test_over_http_as_from_the_folder(data: Path) -> None:
    near, far = LogReader.from_dir(data), LogReader.from_url("http://log.example/log/", _serve(data))
    assert far.checkpoint() == near.checkpoint()
    assert far.vkey() == VERIFIER.text
    assert list(far.entries(250, 530)) == list(near.entries(250, 530))
    assert verify_log(far, [VERIFIER]).checkpoint.size == 777


def test_an_extract_proves_itself(data: Path) -> None:
    extract = LogReader.from_dir(data).extract([0, 255, 256, 776])
    assert extract.origin == ORIGIN
    for index, raw, proof in extract.entries:
        parsed = TlogProof.from_text(proof)
        assert parsed.text == proof
        assert parsed.index == index
        assert parsed.verify(raw, [VERIFIER]).size == 777
        with pytest.raises(ProofError):
            parsed.verify(leaf(), [VERIFIER])
        with pytest.raises(NoteSignatureError):
            parsed.verify(raw, [NoteVerifier(ORIGIN, OTHER_KEY.public)])


def test_consistency_between_any_two_checkpoints(tmp_path: Path) -> None:
    heads = []
    with open_log(tmp_path) as writer:
        for count in (1, 5, 250, 1, 300):
            writer.append([leaf() for _ in range(count)])
            heads.append(verify_log(LogReader.from_dir(tmp_path), VERIFIER).checkpoint)
    reader = LogReader.from_dir(tmp_path)
    for new in heads:
        for old in heads:
            if old.size <= new.size:
                verify_consistency(old.size, new.size, old.root, new.root, reader.consistency(old.size, new.size))


def test_an_old_checkpoint_can_be_proven_against_after_its_partial_tiles_are_gone(tmp_path: Path) -> None:
    with open_log(tmp_path) as writer:
        writer.append([leaf() for _ in range(10)])
        old = writer.checkpoint()
        writer.append([leaf() for _ in range(500)])
    reader = LogReader.from_dir(tmp_path)
    raw = next(raw for _, raw in reader.entries(3, 4))
    assert reader.prove(3, old).verify(raw, [VERIFIER]).size == 10
    assert reader.bundle(0, 10)[3] == raw


def test_index_outside_the_tree(data: Path) -> None:
    with pytest.raises(ProofError) as caught:
        LogReader.from_dir(data).extract([777])
    assert caught.value.details["rule"] == "proof-index"
    with pytest.raises(TileError):
        LogReader.from_dir(data).bundle(9, 777)


def test_no_log_there(tmp_path: Path) -> None:
    with pytest.raises(LogFetchError) as caught:
        LogReader.from_dir(tmp_path).checkpoint()
    assert caught.value.details["rule"] == "log-missing"


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (lambda _: httpx.Response(500), "log-status"),
        (lambda _: httpx.Response(200, content=b"x" * 1_000_000), "log-limit"),
        (lambda _: (_ for _ in ()).throw(httpx.ConnectError("refused")), "log-unreachable"),
    ],
)
def test_a_server_that_misbehaves(answer, rule: str) -> None:
    reader = LogReader.from_url("http://log.example", httpx.Client(transport=httpx.MockTransport(answer)))
    with pytest.raises(LogFetchError) as caught:
        reader.checkpoint()
    assert caught.value.details["rule"] == rule


def test_an_unreadable_file_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(LogFetchError) as caught:
        LogReader.from_dir(tmp_path).checkpoint()
    assert caught.value.details["rule"] == "log-read"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "tlog-proof-header"),
        ("c2sp.org/tlog-proof@v1\n\n", "tlog-proof-index"),
        ("c2sp.org/tlog-proof@v1\nextra AA==\nindex 0\n\n", "tlog-proof-extra"),
        ("c2sp.org/tlog-proof@v1\nindex 01\n\n", "tlog-proof-index-form"),
        ("c2sp.org/tlog-proof@v1\nindex 9999999999999999999\n\n", "tlog-proof-index-range"),
        ("c2sp.org/tlog-proof@v1\nindex 0\n*\n\n", "tlog-proof-base64"),
        ("c2sp.org/tlog-proof@v1\nindex 0\nAAAA\n\n", "tlog-proof-hash"),
        ("c2sp.org/tlog-proof@v1\nindex 0\n" + "A\n" * 65 + "\n", "tlog-proof-length"),
        ("x" * 100_000, "tlog-proof-size"),
    ],
)
def test_broken_proofs_are_refused_by_name(text: str, rule: str) -> None:
    with pytest.raises(LogError) as caught:
        TlogProof.from_text(text)
    assert caught.value.details["rule"] == rule
