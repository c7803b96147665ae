"""The journal tells the truth after any cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node.journal import Journal
from sandbox.node.layout import NodeFolder


def _journal(tmp_path) -> Journal:
    return Journal.create(NodeFolder(tmp_path).lease("lease-" + "a" * 32))


def _full(journal: Journal) -> None:
    journal.write("state", state=LeaseState.PLACED, job="x")
    journal.write("state", state=LeaseState.ATTESTED, kind="fscrypt", gpus=["GPU-1"])
    journal.write("state", state=LeaseState.RUNNING, container="abc")
    journal.write("state", state=LeaseState.WIPING, outcome=Outcome.FAILED, exit_code=3, detail="d")


def test_recall(tmp_path):
    journal = _journal(tmp_path)
    _full(journal)
    recalled = journal.recall()
    assert (recalled.state, recalled.outcome, recalled.exit_code, recalled.torn) == (LeaseState.RUNNING, Outcome.FAILED, 3, False)
    assert recalled.facts["kind"] == "fscrypt"
    assert recalled.facts["gpus"] == ["GPU-1"]


def test_cut_at_every_byte_it_tells_a_prefix(tmp_path):
    journal = _journal(tmp_path)
    _full(journal)
    raw = journal.folder.journal.read_bytes()
    whole = [event["event"] for event in journal.events()]
    for cut in range(len(raw)):
        journal.folder.journal.write_bytes(raw[:cut])
        events = [event["event"] for event in journal.events()]
        assert events == whole[: len(events)]
        assert len(events) in (raw[:cut].count(b"\n"), raw[:cut].count(b"\n") + 1)
        journal.recall()


def test_a_line_after_a_torn_one_is_read(tmp_path):
    journal = _journal(tmp_path)
    journal.write("scratch", kind="tmpfs")
    with journal.folder.journal.open("ab") as file:
        file.write(b'{"event": "cr')
    journal.write("state", state=LeaseState.WIPING, outcome=Outcome.NODE_FAILURE)
    assert [event["event"] for event in journal.events()] == ["scratch", "state"]
    assert journal.recall().torn


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_at_all_can_be_recalled(tmp_path_factory, raw):
    journal = _journal(tmp_path_factory.mktemp("j"))
    journal.folder.journal.write_bytes(raw)
    journal.recall()


def test_a_lost_journal_is_the_first_state(tmp_path):
    journal = _journal(tmp_path)
    journal.folder.journal.unlink()
    recalled = journal.recall()
    assert recalled.state is LeaseState.PLACED
    assert recalled.torn


def test_documents_come_back_byte_for_byte(tmp_path):
    journal = _journal(tmp_path)
    journal.keep("job", b"\x00\xff")
    journal.keep("job", b"again")
    assert journal.documents() == {"job": b"again"}
    assert journal.folder.journal.stat().st_mode & 0o777 == 0o600
    assert (journal.folder.documents / "job").stat().st_mode & 0o777 == 0o600
