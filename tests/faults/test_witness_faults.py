"""A witness under faults at every file system call: what it cosigned it knows afterwards, whatever became of its process or disk.

Also a fork that is shown again and again: its evidence is kept, and does not fill the disk.
"""

from __future__ import annotations

import http.client
import itertools
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from attestation.log.forks import MAX_FORKS, keep_fork
from attestation.log.history import ForkEvidence
from attestation.log.note import Note, NoteVerifier, cosign
from attestation.log.witness import Witness
from attestation.log.witness_server import witness_server
from attestation.merkle import leaf_hash
from tests.attestation.log.logs import KEY, OTHER_KEY, VERIFIER
from tests.attestation.log.test_witness import FORKED, HASHES, body
from tests.faults.tracing import LOOKS, Call, Driver, points_of, scratch, strike

SIZES = (0, 3, 8, 40)


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.store = self.folder / "witness.db"
        self.driver = Driver()

    def fresh(self) -> dict[str, object]:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        bodies = [body(old, new).decode() for old, new in itertools.pairwise(SIZES)]
        return {"witness": str(self.store), "bodies": bodies}

    def check(self, answer: dict) -> None:
        """Open it again: it knows at least what it cosigned, cosigns no other history, and goes on."""
        with closing(Witness(self.store, "w.example", OTHER_KEY, [VERIFIER])) as witness:
            told = witness.add_checkpoint(body(1, 40), 1)
            assert told.status == 409
            held = int(told.body)
            assert held in SIZES[answer["acked"] :][:2]
            if held:
                assert witness.add_checkpoint(body(held, 40, FORKED), 1).status in {409, 422}
            assert witness.add_checkpoint(body(held, 40), 1).status == 200


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    with scratch(tmp_path_factory) as folder:
        rig = Rig(folder)
        yield rig
        rig.driver.close()


@pytest.fixture(scope="module")
def calls(rig: Rig) -> list[Call]:
    calls = rig.driver.trace(rig.fresh(), rig.folder)
    rig.check({"acked": 3})
    assert {"openat", "pwrite64", "fdatasync"} <= {call.name for call in calls}
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO"])
def test_what_it_cosigned_it_knows(rig: Rig, calls: list[Call], fault: str) -> None:
    answers = []
    for name, number in points_of(call for call in calls if call.name not in LOOKS):
        answer = rig.driver.run(rig.fresh(), *strike(name, fault, number))
        rig.check(answer)
        answers.append(answer)
    assert len({answer["acked"] for answer in answers}) > 2 or fault == "error=EIO"
    assert all(answer["status"] == 9 if "KILL" in fault else answer["ended"] for answer in answers)
    assert fault != "error=EIO" or any("OperationalError" in answer["rules"] for answer in answers)


@pytest.mark.slow
def test_a_disk_that_stays_broken(rig: Rig, calls: list[Call]) -> None:
    acked = []
    for number in range(1, sum(call.name == "fdatasync" for call in calls) + 1):
        answer = rig.driver.run(rig.fresh(), *strike("fdatasync", "error=EIO", f"{number}+"))
        rig.check(answer)
        acked.append(answer["acked"])
    assert acked == sorted(acked)
    assert set(acked) == set(range(len(SIZES)))


def test_a_disk_that_fails_is_told_over_http(tmp_path: Path) -> None:
    lines: list[str] = []
    with closing(Witness(tmp_path / "w.db", "w.example", OTHER_KEY, [VERIFIER])) as witness:
        server = witness_server(witness, ("127.0.0.1", 0), lines.append)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)) as client:

            def ask() -> int:
                client.request("POST", "/add-checkpoint", body(0, 3))
                answer = client.getresponse()
                answer.read()
                return answer.status

            with closing(sqlite3.connect(tmp_path / "w.db", isolation_level=None)) as other:
                other.execute("DROP TABLE seen")
                assert ask() == 500
            assert "could not be kept" in "\n".join(lines)
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_fork_that_is_shown_again_does_not_fill_the_disk(tmp_path: Path) -> None:
    """Neither the same fork with other signatures beside, nor ever new ones; another log's is still kept."""

    def catch(evidence: ForkEvidence) -> None:
        evidence.verify([VERIFIER, other])
        keep_fork(tmp_path, evidence)

    other = NoteVerifier("log.example/other", KEY.public)
    with closing(Witness(tmp_path / "w.db", "w.example", OTHER_KEY, [VERIFIER, other], on_fork=catch)) as witness:
        assert witness.add_checkpoint(body(0, 7), 1).status == 200
        shown = body(7, 20, FORKED)
        text = Note.parse(shown.partition(b"\n\n")[2]).text
        for number in range(5):
            beside = cosign(text, "x.example", OTHER_KEY, number).line.encode()
            assert witness.add_checkpoint(shown + beside, 1).status == 422
        (first,) = tmp_path.glob("fork-*.json")
        assert ForkEvidence.from_text(first.read_text()).verify([VERIFIER])[0].size == 7
        for number in range(2 * MAX_FORKS):
            assert witness.add_checkpoint(body(7, 20, [leaf_hash(b"forked %d" % number), *HASHES[1:]]), 1).status == 422
        assert len(list(tmp_path.glob("fork-*.json"))) == MAX_FORKS
        assert first.exists()
        assert witness.add_checkpoint(body(0, 7, origin=other.name), 1).status == 200
        assert witness.add_checkpoint(body(7, 20, FORKED, origin=other.name), 1).status == 422
        assert len(list(tmp_path.glob("fork-*.json"))) == MAX_FORKS + 1
