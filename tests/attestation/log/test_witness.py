"""The witness: every answer of the protocol, forks caught with evidence; and the log that asks for a quorum."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.log.errors import QuorumError
from attestation.log.history import ForkEvidence
from attestation.log.note import Checkpoint, Note, NoteSignature, NoteVerifier, sign_checkpoint
from attestation.log.places import LogPlaces
from attestation.log.policy import WitnessPlace, WitnessPolicy
from attestation.log.quorum import Quorum
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from attestation.log.witness import MAX_BODY_BYTES, Witness
from attestation.log.witness_server import witness_server
from attestation.merkle import consistency_proof, leaf_hash, perfect_root, root
from attestation.signing import SigningKey, b64encode
from tests.attestation.log.logs import KEY, ORIGIN, OTHER_KEY, VERIFIER, leaf, make_log, open_log
from tests.patience import LONG, eventually

NAME = "witness.example/w1"
HASHES = [leaf_hash(b"%d" % number) for number in range(40)]
FORKED = [leaf_hash(b"forked"), *HASHES[1:]]


def body(
    old: int, size: int, hashes: list[bytes] = HASHES, *, key: SigningKey = KEY, origin: str = ORIGIN, proof: list[bytes] | None = None
) -> bytes:
    note = sign_checkpoint(Checkpoint(origin, size, root(hashes[:size])), origin, key).whole
    if proof is None:
        proof = (
            consistency_proof(old, size, lambda height, at: perfect_root(hashes[at << height : (at + 1) << height])) if old <= size else []
        )
    return ("".join(f"{line}\n" for line in (f"old {old}", *map(b64encode, proof), "")) + note).encode()


@pytest.fixture
def caught() -> list[ForkEvidence]:
    return []


@pytest.fixture
def witness(tmp_path: Path, caught: list[ForkEvidence]) -> Iterator[Witness]:
    witness = Witness(tmp_path / "witness.db", NAME, OTHER_KEY, [VERIFIER], on_fork=caught.append)
    yield witness
    witness.close()


def test_cosigns_what_extends(witness: Witness) -> None:
    for old, new in [(0, 3), (3, 3), (3, 8), (8, 40)]:
        answer = witness.add_checkpoint(body(old, new), 1_800_000_000)
        assert answer.status == 200, answer
        text = Note.parse(body(old, new).partition(b"\n\n")[2]).text
        assert Note.parse(f"{text}\n{answer.body}").verify([witness.verifier]) == {witness.verifier: 1_800_000_000}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (body(0, 5, origin="log.example/other"), 404),
        (body(0, 5, key=OTHER_KEY), 403),
        (body(6, 5), 400),
        (b"", 400),
        (b"old 0\n\nx\n", 400),
        (body(0, 5).replace(b"old 0", b"old 00"), 400),
        (body(0, 5).replace(b"old 0", b"new 0"), 400),
        (body(0, 5).replace(b"old 0\n", b"old 0\n" + b"A\n" * 64), 400),
        (body(0, 5).replace(b"old 0\n", b"old 0\n!!\n"), 400),
        (b"\xff" * 10, 400),
        (b"x" * (MAX_BODY_BYTES + 1), 400),
        (body(0, 5, proof=HASHES[:1]), 422),
    ],
)
def test_refuses_a_first_request(witness: Witness, request_: bytes, status: int) -> None:
    assert witness.add_checkpoint(request_, 1).status == status
    assert witness.add_checkpoint(body(0, 3), 1).status == 200


def test_names_the_size_it_saw_last(witness: Witness) -> None:
    witness.add_checkpoint(body(0, 7), 1)
    for old in (0, 3):
        answer = witness.add_checkpoint(body(old, 20), 1)
        assert (answer.status, answer.body, answer.media_type) == (409, "7\n", "text/x.tlog.size")


def test_never_goes_back(witness: Witness) -> None:
    witness.add_checkpoint(body(0, 20), 1)
    assert witness.add_checkpoint(body(7, 7), 1).status == 409
    assert witness.add_checkpoint(body(20, 7), 1).status == 400


def test_a_wrong_proof(witness: Witness, caught: list[ForkEvidence]) -> None:
    witness.add_checkpoint(body(0, 7), 1)
    assert witness.add_checkpoint(body(7, 20, proof=HASHES[:4]), 1).status == 422
    assert not caught
    assert witness.add_checkpoint(body(7, 20), 1).status == 200


@pytest.mark.parametrize(("old", "new", "status"), [(7, 7, 409), (7, 20, 422)])
def test_catches_a_rewrite_with_the_log_s_own_key(witness: Witness, caught: list[ForkEvidence], old: int, new: int, status: int) -> None:
    witness.add_checkpoint(body(0, old), 1)
    assert witness.add_checkpoint(body(old, new, FORKED), 1).status == status
    (evidence,) = caught
    assert [each.size for each in ForkEvidence.from_text(evidence.to_text()).verify([VERIFIER])] == [old, new]


def test_remembers_after_a_restart(tmp_path: Path) -> None:
    for status in (200, 409):
        witness = Witness(tmp_path / "w.db", NAME, OTHER_KEY, [VERIFIER])
        assert witness.add_checkpoint(body(0, 7), 1).status == status
        witness.close()


def test_an_earlier_key_of_a_log_ends_with_the_first_cosignature_for_a_later_one(tmp_path: Path) -> None:
    """A thief of the old key gets nothing cosigned any more. Before the exchange it goes on, and a made-up line does not end it."""
    key = SigningKey(b"\x09" * 32)
    new = NoteVerifier(ORIGIN, key.public)
    old_only = Witness(tmp_path / "w.db", NAME, OTHER_KEY, [VERIFIER])
    made_up = NoteSignature(ORIGIN, new.key_id, bytes(64)).line.encode()
    assert old_only.add_checkpoint(body(0, 3) + made_up, 1).status == 200
    old_only.close()
    witness = Witness(tmp_path / "w.db", NAME, OTHER_KEY, [VERIFIER, new])
    assert witness.add_checkpoint(body(3, 5), 1).status == 200
    assert witness.add_checkpoint(body(5, 8, key=key), 1).status == 200
    for again in (body(8, 8), body(8, 20)):
        answer = witness.add_checkpoint(again, 1)
        assert (answer.status, answer.body) == (403, "a newer key of this log has signed since\n")
    assert witness.add_checkpoint(body(8, 20, key=key), 1).status == 200
    witness.close()
    # The old key is not named any more: what the new one signs goes on.
    witness = Witness(tmp_path / "w.db", NAME, OTHER_KEY, [new])
    assert witness.add_checkpoint(body(20, 30, key=key), 1).status == 200
    witness.close()


def test_two_requests_at_once_cannot_roll_it_back(witness: Witness) -> None:
    witness.add_checkpoint(body(0, 5), 1)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda size=size: answers.append(witness.add_checkpoint(body(5, size), 1).status)) for size in range(6, 26)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [409] * 19


@given(st.binary(max_size=400))
def test_noise_is_refused(raw: bytes) -> None:
    witness = Witness(Path(":memory:"), NAME, OTHER_KEY, [VERIFIER])
    assert witness.add_checkpoint(raw, 1).status == 400
    witness.close()


# --- the log asks --------------------------------------------------------------------------------------------------------


def _client(witnesses: dict[str, Callable[[bytes], tuple[int, str]]]) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        status, text = witnesses[request.url.host](request.read())
        return httpx.Response(status, stream=httpx.ByteStream(text.encode()))

    return httpx.Client(transport=httpx.MockTransport(answer))


def _places(*witnesses: Witness) -> list[WitnessPlace]:
    return [WitnessPlace(f"http://w{number}.example/x/", each.verifier) for number, each in enumerate(witnesses)]


def _speak(witness: Witness) -> Callable[[bytes], tuple[int, str]]:
    def speak(raw: bytes) -> tuple[int, str]:
        answer = witness.add_checkpoint(raw, 1_800_000_000)
        return answer.status, answer.body

    return speak


@contextlib.contextmanager
def asking(data: Path, places: list[WitnessPlace], least: int, client: httpx.Client) -> Iterator[Quorum]:
    quorum = Quorum(LogReader(LogPlaces(data).source()), WitnessPolicy.at_least(least, places), client)
    yield quorum
    quorum.close()


def test_a_log_publishes_with_its_quorum(tmp_path: Path) -> None:
    keys = [SigningKey(bytes([number]) * 32) for number in (1, 2, 3)]
    witnesses = [Witness(tmp_path / f"{number}.db", f"w{number}.example", key, [VERIFIER]) for number, key in enumerate(keys)]
    down = {"w2.example": lambda _: (503, "down")}
    speak = {f"w{number}.example": _speak(each) for number, each in enumerate(witnesses)} | down
    places = _places(*witnesses)
    data = tmp_path / "data"
    with asking(data, places, 2, _client(speak)) as quorum, open_log(data, cosign=quorum) as writer:
        for count in (3, 300, 1):
            writer.append([leaf() for _ in range(count)])
            assert writer.health().published == writer.health().committed
        assert "503" in quorum.answers["w3"].problem
        assert not quorum.answers["w1"].problem
    # A new process does not know what the witnesses saw; it learns it from their answer.
    with asking(data, places, 2, _client(speak)) as quorum, open_log(data, cosign=quorum) as writer:
        writer.append([leaf()])
    verifiers = [VERIFIER, *(each.verifier for each in witnesses)]
    check = verify_log(LogReader.from_dir(data), verifiers)
    assert check.checkpoint.size == 305
    assert {name for name, _ in check.signers} == {ORIGIN, "w0.example", "w1.example"}
    for each in witnesses:
        each.close()


def test_acknowledged_is_committed_and_published_is_witnessed(tmp_path: Path, witness: Witness) -> None:
    """Witnesses go: entries are taken, and kept over a crash, but not shown; witnesses come back: all is shown, cosigned."""
    data, up = tmp_path / "data", [True]
    speak = _speak(witness)
    client = {"w0.example": lambda raw: speak(raw) if up[0] else (503, "down")}

    def shown() -> int:
        return Checkpoint.parse(Note.parse(LogReader.from_dir(data).checkpoint()).text).size

    with asking(data, _places(witness), 1, _client(client)) as quorum:
        with open_log(data, cosign=quorum) as writer:
            writer.append([leaf() for _ in range(300)])
            assert shown() == 300
            up[0] = False
            kept = [leaf() for _ in range(600)]
            for start in range(0, 600, 100):
                assert writer.append(kept[start : start + 100])[0] == 300 + start
            assert writer.append(kept[:1]) == [300]
            health = writer.health()
            assert (health.committed, health.published, shown()) == (900, 300, 300)
            assert health.waiting_seconds > 0
            assert "503" in health.problem
        shutil.copytree(data, tmp_path / "restored")
        with open_log(data, cosign=quorum) as writer:
            assert (writer.health().committed, shown()) == (900, 300)
            assert writer.append(kept[299:301]) == [599, 600]
            up[0] = True
            eventually(lambda: shown() == 900)
            eventually(lambda: writer.health().waiting_seconds == 0)
            assert [raw for _, raw in LogReader.from_dir(data).entries(300, 900)] == kept
            writer.append([leaf()])
    assert verify_log(LogReader.from_dir(data), [VERIFIER, witness.verifier]).checkpoint.size == 901
    # Of a restored copy, from before the witnesses came back, the witness signs nothing more: it knows the log to be further.
    with asking(data, _places(witness), 1, _client(client)) as quorum, open_log(tmp_path / "restored", cosign=quorum) as writer:
        writer.append([leaf()])
        assert writer.health().published == 300
        assert "409" in writer.health().problem


def test_tiles_that_wait_for_witnesses_come_back(tmp_path: Path) -> None:
    """The public folder of before the witnesses went is restored: what was acknowledged since is written anew from the entries."""

    def refuse(_note: str) -> list[str]:
        raise QuorumError("no witness", rule="quorum", seen="0", wanted="1")

    make_log(tmp_path / "data", 300)
    shutil.copytree(tmp_path / "data" / "log", tmp_path / "old")
    with open_log(tmp_path / "data", cosign=refuse) as writer:
        for _ in range(3):
            writer.append([leaf() for _ in range(200)])
    shutil.rmtree(tmp_path / "data" / "log")
    shutil.copytree(tmp_path / "old", tmp_path / "data" / "log")
    open_log(tmp_path / "data").close()
    assert verify_log(LogReader.from_dir(tmp_path / "data"), VERIFIER).checkpoint.size == 900


LIES: list[Callable[[bytes], tuple[int, str]]] = [
    lambda _: (200, ""),
    lambda _: (200, "x" * 200_000),
    lambda _: (200, "— other.example AAAAAAAA\n"),
    lambda _: (409, "many\n"),
    lambda _: (409, "99999\n"),
    lambda _: (409, "1\n"),
    lambda _: (409, "²\n"),
    lambda _: (409, " " * 30 + "1\n"),
    lambda _: (409, "1" * 5000 + "\n"),
    lambda _: (422, ""),
    lambda _: (1 // 0, ""),
]


@pytest.mark.parametrize("lie", LIES)
def test_a_witness_that_lies_does_not_undo_the_others(tmp_path: Path, witness: Witness, lie: Callable[[bytes], tuple[int, str]]) -> None:
    places = [*_places(witness), WitnessPlace("http://w.example", NoteVerifier("w.example", KEY.public, 4))]
    client = _client({"w0.example": _speak(witness), "w.example": lie})
    data = tmp_path / "data"
    with asking(data, places, 1, client) as quorum, open_log(data, cosign=quorum) as writer:
        for size in (1, 2):
            writer.append([leaf()])
            assert writer.health().published == size
        eventually(lambda: "w2" in quorum.answers and bool(quorum.answers["w2"].problem))
        assert "ValueError" not in quorum.answers["w2"].problem  # what it said is told, not how it was read


def test_an_endless_answer_is_not_read(tmp_path: Path, witness: Witness) -> None:
    """What a witness sends is read as it comes, as bytes, and no further than an answer may reach."""
    read = 0

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            nonlocal read
            while read < 50 * MAX_BODY_BYTES:
                read += 1000
                yield b"x" * 1000

    client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless())))
    data = tmp_path / "data"
    with asking(data, _places(witness), 1, client) as quorum, open_log(data, cosign=quorum) as writer:
        writer.append([leaf()])
        assert "a witness answered too much" in quorum.answers["w1"].problem
    assert read < 4 * MAX_BODY_BYTES


@pytest.mark.parametrize("lie", LIES)
def test_a_witness_that_lies_is_not_counted(tmp_path: Path, lie: Callable[[bytes], tuple[int, str]]) -> None:
    place = WitnessPlace("http://w.example", NoteVerifier("w.example", OTHER_KEY.public, 4))
    data = tmp_path / "data"
    with asking(data, [place], 1, _client({"w.example": lie})) as quorum, open_log(data, cosign=quorum) as writer:
        writer.append([leaf()])
        assert writer.health().problem.startswith("too few witnesses cosigned")
        assert LogReader.from_dir(data).vkey() == VERIFIER.text
        assert not (data / "log" / "checkpoint").exists()
    with asking(data, [place], 0, _client({"w.example": lie})) as quorum:
        open_log(data, cosign=quorum).close()
    assert verify_log(LogReader.from_dir(data), VERIFIER).checkpoint.size == 1


def test_a_slow_witness_keeps_nobody_waiting(tmp_path: Path, witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attestation.log.writer.PATIENCE_SECONDS", LONG)
    slow = Witness(tmp_path / "slow.db", "slow.example", SigningKey(b"\x05" * 32), [VERIFIER])
    wake = threading.Event()

    def sleep(raw: bytes) -> tuple[int, str]:
        wake.wait(LONG)
        return _speak(slow)(raw)

    data = tmp_path / "data"
    client = _client({"w0.example": _speak(witness), "w1.example": sleep})
    with asking(data, _places(witness, slow), 1, client) as quorum, open_log(data, cosign=quorum) as writer:
        start = time.monotonic()
        for _ in range(3):
            writer.append([leaf()])
        assert writer.health().published == 3
        assert time.monotonic() - start < LONG
        wake.set()
        eventually(lambda: all(future.done() for future in quorum._busy.values()))
        writer.append([leaf()])
        assert {name for name, _ in verify_log(LogReader.from_dir(data), [VERIFIER, witness.verifier, slow.verifier]).signers} == {
            ORIGIN, NAME, "slow.example"
        }  # fmt: skip
    slow.close()


def test_over_real_http(witness: Witness) -> None:
    lines: list[str] = []
    server = witness_server(witness, ("127.0.0.1", 0), lines.append)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    prefix = f"http://127.0.0.1:{server.server_port}"
    try:
        with httpx.Client() as client:
            assert client.get(f"{prefix}/vkey").text.strip() == witness.verifier.text
            assert client.get(f"{prefix}/other").status_code == 404
            assert client.post(f"{prefix}/other", content=b"").status_code == 404
            answer = client.post(f"{prefix}/add-checkpoint", content=body(0, 5))
            assert answer.status_code == 200
            assert answer.text.startswith("— witness.example/w1 ")
            conflict = client.post(f"{prefix}/add-checkpoint", content=body(0, 7))
            assert (conflict.status_code, conflict.headers["content-type"]) == (409, "text/x.tlog.size")
            assert client.post(f"{prefix}/add-checkpoint", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
            assert client.post(f"{prefix}/add-checkpoint", content=iter([b"x"])).status_code == 411
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)) as plain:
                plain.request("POST", "/add-checkpoint", headers={"Content-Length": f"{'0' * 8}1{'0' * 9}"})
                assert plain.getresponse().status == 413
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert any("add-checkpoint" in line for line in lines)
