"""The interlock's history of a node, read from a real log."""

from __future__ import annotations

from datetime import timedelta

import pytest

from attestation.errors import LogError
from attestation.history import LogHistory, node_history, noted_end
from attestation.log.leaf import DocumentRef, Leaf
from attestation.log.note import COSIGNATURE, Note, NoteVerifier, cosign
from attestation.log.places import LogPlaces
from attestation.log.reader import LogReader
from attestation.log.writer import LogWriter
from attestation.signing import SigningKey
from tests.attestation.leases import AT, DSSE, LEASE, LOG_KEY, NODE, ORIGIN, OTHER_KEY, TOKEN, trust

OTHER_NODE = "node-" + "1" * 32
PROOF = DocumentRef("sha256:" + "1" * 64, DSSE)


def leaf(kind, number=0, *, actor=NODE, resource=LEASE, evidence=PROOF, outcome="done"):
    at = AT + timedelta(seconds=number)
    return Leaf(
        type=kind,
        occurred_at=at,
        recorded_at=at,
        actor_ref=actor,
        resource_ref=resource,
        action=kind.partition(".")[2],
        outcome=outcome,
        evidence=evidence,
    )


def history(*leaves):
    facts = [noted_end(index, each.to_bytes()) for index, each in enumerate(leaves)]
    return node_history([fact for fact in facts if fact is not None], NODE, len(leaves))


@pytest.mark.parametrize("end", ["closed", "cancelled", "denied", "expired"])
def test_proven_ends_by_the_node_are_wipes(end):
    assert list(history(leaf("lease.submitted", actor=TOKEN), leaf(f"lease.{end}", 1)).wipes.items()) == [(1, AT + timedelta(seconds=1))]


def test_ends_by_others_and_other_states_are_not():
    found = history(
        leaf("lease.cancelled", actor=TOKEN), leaf("lease.closed", actor=OTHER_NODE), leaf("lease.wiping"), leaf("lease.running")
    )
    assert (dict(found.wipes), found.unproven) == ({}, ())


def test_a_quarantine_stays_until_the_node_itself_proves_the_wipe():
    bad = leaf("lease.quarantined")
    word = leaf("node.restored", actor=TOKEN, resource=NODE, evidence=None)
    lent = leaf("node.restored", actor=TOKEN, resource=NODE)
    good = leaf("node.restored", 5, actor=NODE, resource=NODE)
    assert history(bad).unproven == (0,)
    assert history(bad, word).unproven == (0,)
    assert history(bad, lent).unproven == (0,)
    found = history(bad, word, good)
    assert (found.unproven, list(found.wipes)) == ((), [2])
    assert history(bad, bad, good).unproven == (1,)  # one proof settles one end
    assert history(good, bad).unproven == (1,)


@pytest.fixture
def log(tmp_path):
    writer = LogWriter.open(LogPlaces(tmp_path), origin=ORIGIN, key=LOG_KEY)
    writer.append([leaf("lease.closed", number, actor=NODE if number % 3 == 0 else OTHER_NODE).to_bytes() for number in range(600)])
    writer.close()
    return tmp_path


def test_reading_a_log_proves_it_first(log):
    found = LogHistory(trust()).of(NODE, LogReader.from_dir(log))
    assert (found.node, found.size, len(found.wipes)) == (NODE, 600, 200)


def test_a_log_by_another_key_or_with_a_changed_entry_is_refused(log):
    foreign = trust(log={"origin": ORIGIN, "key": NoteVerifier(ORIGIN, OTHER_KEY.public).text})
    with pytest.raises(LogError):
        LogHistory(foreign).of(NODE, LogReader.from_dir(log))
    bundle = next(path for path in (log / "log" / "tile" / "entries").rglob("*") if path.is_file())
    raw = bundle.read_bytes()
    bundle.chmod(0o644)
    bundle.write_bytes(raw.replace(OTHER_NODE.encode(), NODE.encode(), 1))
    with pytest.raises(LogError):
        LogHistory(trust()).of(NODE, LogReader.from_dir(log))


def test_the_witnesses_that_the_trust_file_wants_must_have_cosigned(log):
    """Without them the log's own key could show this customer another history than everybody else."""
    one = NoteVerifier("w.example", OTHER_KEY.public, COSIGNATURE)
    wanted = trust(witnesses=[one.text], witnessQuorum=1)
    with pytest.raises(LogError) as caught:
        LogHistory(wanted).of(NODE, LogReader.from_dir(log))
    assert caught.value.details["rule"] == "log-witnesses"
    place = log / "log" / "checkpoint"
    note = Note.parse(place.read_text())
    place.chmod(0o644)
    place.write_text(Note(note.text, (*note.signatures, cosign(note.text, "w.example", OTHER_KEY, 5000))).whole)
    assert len(LogHistory(wanted).of(NODE, LogReader.from_dir(log)).wipes) == 200
    stranger = NoteVerifier("w.example", SigningKey.generate().public, COSIGNATURE)
    with pytest.raises(LogError):
        LogHistory(trust(witnesses=[stranger.text], witnessQuorum=1)).of(NODE, LogReader.from_dir(log))


def test_what_was_read_is_kept_between_runs(log, tmp_path):
    file = tmp_path / "state" / "log.db"
    first = LogHistory(trust(), file)
    before = first.of(NODE, LogReader.from_dir(log))
    first.close()
    assert LogHistory(trust(), file).of(NODE, LogReader.from_dir(log)) == before
