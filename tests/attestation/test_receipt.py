"""Receipts: a whole lease verifies offline; removing, swapping or editing any one part fails at the right step."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestation.canonical import canonical_json, sha256_digest
from attestation.certificate import CERTIFICATE_PAYLOAD_TYPE, build_certificate
from attestation.chain import ONWARD
from attestation.errors import FormatError, VerificationError
from attestation.log.keychain import read_handovers
from attestation.log.note import Checkpoint, NoteVerifier, cosign, sign_checkpoint
from attestation.log.places import LogPlaces
from attestation.log.reader import LogReader
from attestation.log.rotation import rotate_key
from attestation.log.writer import LogWriter
from attestation.receipt import build_receipt, verify_receipt, verify_receipt_or_raise
from attestation.run import RUN_PAYLOAD_TYPE, RunRecord
from attestation.signing import Envelope, b64decode, b64encode, sign_envelope
from sandbox.lifecycle import TRANSITIONS
from tests.attestation.leases import (
    AT,
    CUSTOMER_KEY,
    IMAGE,
    LEASE,
    LOG_KEY,
    NODE,
    NODE_KEY,
    ORIGIN,
    OTHER_KEY,
    PLAN,
    STORY,
    Story,
    append,
    documents,
    extract,
    job,
    receipt_of,
    trust,
    wipe_report,
)


@pytest.fixture(scope="module")
def lease(tmp_path_factory):
    """A lease's documents and its entries in a log with another lease's in between."""
    folder = tmp_path_factory.mktemp("log")
    found = documents()
    other = Story(found, resource="lease-" + "99" * 16)
    story = Story(found)
    head, rest = Story(found, STORY[:1]), Story(found, STORY[1:])
    first, _, second = append(folder, head, other, rest)
    assert len(story.leaves) == len(first + second)
    return found, extract(folder, first + second)


@pytest.fixture(scope="module")
def receipt(lease):
    return receipt_of(*lease)


def failed(raw, rules=None):
    return [step.step for step in verify_receipt(raw, rules or trust()).steps if not step.ok]


def edit(raw, change):
    tree = json.loads(raw)
    change(tree)
    return canonical_json(tree)


def test_a_whole_receipt_verifies(receipt):
    result = verify_receipt(receipt, trust())
    assert result.ok
    assert result.to_json()["level"] == "software"
    assert len(result.steps) > 50
    assert verify_receipt_or_raise(receipt, trust()).ok


def without_evidence(tmp_path, steps):
    """The receipt of a lease whose node made evidence that the server never got."""
    made = documents()
    kept = {kind: data for kind, data in made.items() if kind not in {"evidence", "plan", "grant"}}
    report = wipe_report()
    record = RunRecord(lease=LEASE, node=NODE, image=IMAGE, plan_digest=sha256_digest(PLAN), ended_at=AT, outcome="cancelled")
    made["run"] = kept["run"] = sign_envelope(record.to_payload(), RUN_PAYLOAD_TYPE, NODE_KEY).to_bytes()
    payload = build_certificate(
        lease=LEASE,
        node=NODE,
        documents={kind: sha256_digest(made[kind]) for kind in ("job", "policy", "evidence", "plan", "run", "wipe")},
        wipe=report,
        tool_version="0.1.0",
        at=AT + timedelta(minutes=6),
    )
    kept["certificate"] = sign_envelope(payload, CERTIFICATE_PAYLOAD_TYPE, NODE_KEY).to_bytes()
    story = Story({**kept, "evidence": made["evidence"], "grant": made["grant"]}, steps)
    (indexes,) = append(tmp_path, story)
    return receipt_of(kept, extract(tmp_path, indexes))


def test_a_lease_that_ended_before_its_evidence_arrived_verifies(tmp_path):
    early = (("submitted", "job"), ("admitted", "policy"), ("placed", "job"), ("wiping", "run"), ("cancelled", "certificate"))
    assert failed(without_evidence(tmp_path, early)) == []


def test_evidence_cannot_be_left_out_where_the_log_shows_it(tmp_path):
    assert "documents" in failed(without_evidence(tmp_path, STORY))


# Without the job there is no key to open the grant with; everything else is missed first by the document or entry that names it.
FIRST_FAILURE = {
    "job": "grant-signature",
    "policy": "evidence-policy",
    "evidence": "grant-evidence",
    "plan": "evidence-plan",
    "grant": "certificate-documents",
    "run": "certificate-documents",
    "wipe": "certificate-documents",
    "certificate": "log-closed",
}


@pytest.mark.parametrize("kind", sorted(FIRST_FAILURE))
def test_removing_a_document_fails(receipt, kind):
    steps = failed(edit(receipt, lambda tree: tree["documents"].pop(kind)))
    assert steps[0] == FIRST_FAILURE[kind]
    if kind != "run":
        assert "documents" in steps
    else:
        assert steps == ["certificate-documents"]


@pytest.mark.parametrize("kind", sorted(FIRST_FAILURE))
def test_editing_a_document_fails_at_that_document(receipt, kind):
    def change(tree):
        data = bytearray(b64decode(tree["documents"][kind]["data"]))
        if kind in {"policy", "plan"}:
            data[-2] ^= 1
        else:
            envelope = Envelope.from_bytes(bytes(data))
            payload = envelope.payload.replace(b'"v":1', b'"v":2').replace(b"Statement/v1", b"Statement/v2")
            assert payload != envelope.payload
            data = Envelope(payload, envelope.payload_type, envelope.signatures).to_bytes()
        tree["documents"][kind]["data"] = b64encode(bytes(data))

    first = failed(edit(receipt, change))[0]
    assert first == {"policy": "policy-digest", "plan": "plan-format"}.get(kind, f"{kind}-signature")


@pytest.mark.parametrize("kind", sorted(set(FIRST_FAILURE) - {"policy", "plan"}))
def test_another_signer_fails_at_that_document(receipt, kind):
    def change(tree):
        envelope = Envelope.from_bytes(b64decode(tree["documents"][kind]["data"]))
        tree["documents"][kind]["data"] = b64encode(sign_envelope(envelope.payload, envelope.payload_type, OTHER_KEY).to_bytes())

    assert failed(edit(receipt, change))[0] == f"{kind}-signature"


@pytest.mark.parametrize("kind", sorted(set(FIRST_FAILURE) - {"policy", "plan"}))
def test_the_same_document_with_another_key_id_is_not_the_one_in_the_log(receipt, kind):
    def change(tree):
        envelope = Envelope.from_bytes(b64decode(tree["documents"][kind]["data"]))
        renamed = Envelope(envelope.payload, envelope.payload_type, (("other", envelope.signatures[0][1]),))
        tree["documents"][kind]["data"] = b64encode(renamed.to_bytes())

    assert failed(edit(receipt, change))[0] == (FIRST_FAILURE | {"job": "evidence-job"})[kind]


@pytest.mark.parametrize("kind", sorted(set(FIRST_FAILURE) - {"policy", "plan"}))
def test_the_same_signers_document_of_another_lease_fails_at_its_lease(receipt, kind):
    def change(tree):
        envelope = Envelope.from_bytes(b64decode(tree["documents"][kind]["data"]))
        payload = envelope.payload.replace(LEASE.encode(), b"lease-" + b"99" * 16)
        key = CUSTOMER_KEY if kind in {"job", "grant"} else NODE_KEY
        tree["documents"][kind]["data"] = b64encode(sign_envelope(payload, envelope.payload_type, key).to_bytes())

    assert failed(edit(receipt, change))[0] == f"{kind}-lease"


# Of two documents that changed places, the one that is opened first; a plan is any canonical JSON, a policy any bytes.
FIRST_OF_SWAPPED = {
    "job": "job-signature",
    "policy": "wipe-signature",
    "evidence": "evidence-signature",
    "plan": "wipe-signature",
    "grant": "grant-signature",
    "run": "run-signature",
    "wipe": "run-signature",
    "certificate": "wipe-signature",
}


@pytest.mark.parametrize("one", sorted(FIRST_FAILURE))
def test_swapping_two_documents_fails(receipt, one):
    two = "wipe" if one != "wipe" else "run"

    def change(tree):
        tree["documents"][one]["data"], tree["documents"][two]["data"] = tree["documents"][two]["data"], tree["documents"][one]["data"]

    assert failed(edit(receipt, change))[0] == FIRST_OF_SWAPPED[one]


@pytest.mark.parametrize("number", range(len(STORY)))
def test_removing_an_entry_fails(receipt, number):
    first = failed(edit(receipt, lambda tree: tree["log"]["entries"].pop(number)))[0]
    # A lease may go from running to wiping; that it collected a result is what the run record tells.
    assert first == ("log-run" if STORY[number][0] == "collecting" else "log-states")


@pytest.mark.parametrize("number", range(len(STORY)))
def test_editing_an_entry_fails_at_that_entry(receipt, number):
    def change(tree):
        entry = tree["log"]["entries"][number]
        entry["leaf"] = b64encode(b64decode(entry["leaf"]).replace(b'"outcome":"done"', b'"outcome":"gone"'))

    index = json.loads(receipt)["log"]["entries"][number]["index"]
    assert failed(edit(receipt, change))[0] == f"entry-{index}"


def test_swapping_entries_fails(receipt):
    def change(tree):
        entries = tree["log"]["entries"]
        entries[2], entries[3] = entries[3], entries[2]

    assert failed(edit(receipt, change))[:2] == ["log-order", "log-states"]


def test_an_entry_of_another_lease_fails(lease, tmp_path):
    found, _ = lease
    foreign = Story(found, resource="lease-" + "99" * 16)
    [indexes] = append(tmp_path, foreign)
    assert failed(receipt_of(found, extract(tmp_path, indexes))) == ["log-lease"]


def test_another_index_origin_or_checkpoint_fails(receipt):
    def index(tree):
        tree["log"]["entries"][0]["index"] = 1

    def origin(tree):
        tree["log"]["origin"] = "log.example/other"

    def checkpoint(tree):
        lines = tree["log"]["checkpoint"].split("\n")
        lines[1] = str(int(lines[1]) + 1)
        tree["log"]["checkpoint"] = "\n".join(lines)

    assert failed(edit(receipt, index))[0] == "entry-1"
    assert failed(edit(receipt, origin)) == ["log-origin"]
    assert failed(edit(receipt, checkpoint))[0] == "log-checkpoint"


def test_a_log_with_another_key_fails(receipt):
    other = {"origin": trust().spec.log.origin, "key": NoteVerifier(trust().spec.log.origin, OTHER_KEY.public).text}
    assert failed(receipt, trust(log=other))[0] == "log-checkpoint"


def test_an_unlisted_node_fails_at_its_documents(receipt):
    steps = failed(receipt, trust(nodes={"node-" + "1" * 32: OTHER_KEY.public.text}))
    assert steps[:4] == ["evidence-signature", "run-signature", "wipe-signature", "certificate-signature"]


def test_an_unlisted_customer_fails_at_the_job(receipt):
    assert failed(receipt, trust(customers=[CUSTOMER_KEY.public.text])) == []
    assert failed(receipt, trust(customers=[OTHER_KEY.public.text]))[0] == "job-signature"


def test_a_higher_level_in_the_trust_file_fails_at_the_appraisal(receipt):
    assert failed(receipt, trust(level="measured")) == ["appraisal/level"]


def test_a_quorum_of_witnesses_is_counted(lease):
    found, log = lease
    name = "witness.example/w"
    vkey = NoteVerifier(name, OTHER_KEY.public, kind=4).text
    rules = trust(witnesses=[vkey], witnessQuorum=1)
    assert failed(receipt_of(found, log), rules) == ["log-witnesses"]
    text = log.checkpoint.split("\n\n")[0] + "\n"
    signed = log.checkpoint + cosign(text, name, OTHER_KEY, 1_700_000_000).line
    entries = tuple(entry._replace(proof=entry.proof.replace(log.checkpoint, signed)) for entry in log.entries)
    assert failed(receipt_of(found, replace(log, checkpoint=signed, entries=entries)), rules) == []


def test_a_receipt_survives_an_exchange_of_the_logs_key(lease, tmp_path):
    """With the old key, with the new one, and from before the exchange with the new key and the old one named as retired."""
    found, _ = lease
    (indexes,) = append(tmp_path, Story(found))
    before = receipt_of(found, extract(tmp_path, indexes))
    rotate_key(LogPlaces(tmp_path), origin=ORIGIN, old=LOG_KEY, new=OTHER_KEY, at=AT)
    LogWriter.open(LogPlaces(tmp_path), origin=ORIGIN, key=OTHER_KEY).close()
    handovers = tuple(read_handovers(LogReader.from_dir(tmp_path)))
    after = receipt_of(found, extract(tmp_path, indexes), handovers)
    old, new = (NoteVerifier(ORIGIN, key.public).text for key in (LOG_KEY, OTHER_KEY))
    with_new = trust(log={"origin": ORIGIN, "key": new})
    with_both = trust(log={"origin": ORIGIN, "key": new, "retired": [{"key": old, "size": len(indexes) + 1}]})
    assert [failed(before), failed(after), failed(after, with_new), failed(before, with_both), failed(after, with_both)] == [[]] * 5
    assert failed(before, with_new)[0] == "log-checkpoint"
    assert failed(edit(after, lambda tree: tree["log"]["handovers"].clear()))[0] == "log-checkpoint"
    assert failed(edit(after, lambda tree: tree["log"]["handovers"].append(1))) == ["format"]

    def forge(tree):
        note = tree["log"]["handovers"][0]
        tree["log"]["handovers"][0] = note.replace(f"\n{len(indexes) + 1}\n", f"\n{len(indexes) + 2}\n")

    assert failed(edit(after, forge))[0] == "log-keys"
    # What the old key signs after the exchange counts no more, even where it is the one that is trusted.
    late = sign_checkpoint(Checkpoint(ORIGIN, len(indexes) + 5, b"r" * 32), ORIGIN, LOG_KEY).whole
    assert failed(edit(after, lambda tree: tree["log"].update(checkpoint=late)))[0] == "log-checkpoint"
    # Nor does a whole log that a thief of the old key makes up, whether the note of the exchange is shown or left out.
    forged = tmp_path / "forged"
    _, stolen = append(forged, Story(found, resource="lease-" + "99" * 16), Story(found))
    for shown in ((), handovers):
        assert failed(receipt_of(found, extract(forged, stolen), shown), with_both)[0] == "log-checkpoint"


@pytest.mark.parametrize("change", ["remove", "value", "salt", "field", "twice", "of another"])
def test_an_opening_that_was_touched_fails_at_it(receipt, change):
    def touch(tree):
        entries = tree["log"]["entries"]
        opening = entries[1]["openings"][0]
        if change == "remove":
            entries[1]["openings"].clear()
        elif change == "twice":
            entries[1]["openings"].append(opening)
        elif change == "of another":
            entries[2]["openings"].append(opening)
        elif change == "salt":
            opening["salt"] = b64encode(b"\x01" * 32)
        else:
            opening[change] = "other"

    tree = json.loads(receipt)
    index = tree["log"]["entries"][2 if change == "of another" else 1]["index"]
    first = failed(edit(receipt, touch))[0]
    assert first == ("log-admitted" if change == "remove" else f"opening-{index}")


def test_a_quarantined_lease_is_a_true_receipt_of_a_failure(tmp_path):
    found = documents(proven=False)
    steps = (*STORY[:-1], ("quarantined", "certificate"))
    [indexes] = append(tmp_path, Story(found, steps))
    assert failed(receipt_of(found, extract(tmp_path, indexes))) == []
    [hidden] = append(tmp_path, Story(found, STORY))
    assert failed(receipt_of(found, extract(tmp_path, hidden))) == ["log-end"]


def test_a_lease_denied_by_policy_has_a_short_receipt(tmp_path):
    found = {kind: data for kind, data in documents().items() if kind in {"job", "policy"}}
    [indexes] = append(tmp_path, Story(found, (("submitted", "job"), ("denied", "policy"))))
    receipt = receipt_of(found, extract(tmp_path, indexes))
    assert failed(receipt) == []
    assert "documents" in failed(edit(receipt, lambda tree: tree["documents"].pop("policy")))


def test_a_lease_that_has_not_ended_has_no_receipt(tmp_path):
    found = {kind: data for kind, data in documents().items() if kind in {"job", "policy"}}
    [indexes] = append(tmp_path, Story(found, (("submitted", "job"), ("admitted", "policy"))))
    assert failed(receipt_of(found, extract(tmp_path, indexes))) == ["log-states"]


def test_states_are_the_ones_of_the_lifecycle():
    known = {str(state): {str(after) for after in onward} for state, onward in TRANSITIONS.items() if onward}
    assert {state: set(onward) for state, onward in ONWARD.items() if state} == known


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(v=2),
        lambda tree: tree.update(more=1),
        lambda tree: tree.pop("log"),
        lambda tree: tree["documents"].update(other={"mediaType": "x", "data": ""}),
        lambda tree: tree["documents"]["policy"].update(mediaType="application/json"),
        lambda tree: tree["documents"]["policy"].update(data="A"),
        lambda tree: tree["documents"].update(policy=1),
        lambda tree: tree["log"].update(entries=tree["log"]["entries"] * 65),
        lambda tree: tree["log"]["entries"][0].update(index=True),
        lambda tree: tree["log"]["entries"][0].update(proof=None),
    ],
)
def test_another_shape_fails_at_the_format(receipt, change):
    assert failed(edit(receipt, change)) == ["format"]


def test_another_spelling_fails_at_the_format(receipt):
    assert failed(receipt + b"\n") == ["format"]
    assert failed(receipt[:-1]) == ["format"]


def test_or_raise_names_the_first_failed_step(receipt):
    with pytest.raises(VerificationError) as caught:
        verify_receipt_or_raise(receipt, trust(level="measured"))
    assert caught.value.details["rule"] == "appraisal/level"
    assert caught.value.steps


def test_unknown_documents_are_not_built_in(lease):
    with pytest.raises(FormatError, match="not a document"):
        build_receipt(LEASE, {"diary": b""}, lease[1])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_no_flipped_bit_goes_unseen(receipt, position, bit):
    changed = bytearray(receipt)
    changed[position % len(changed)] ^= 1 << bit
    assert failed(bytes(changed))


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=300))
def test_any_bytes_give_one_failed_step(raw):
    assert failed(raw) == ["format"]


def test_job_bytes_are_those_that_were_signed():
    assert sha256_digest(job()) == Envelope.from_bytes(job()).digest
    assert NODE.startswith("node-")
