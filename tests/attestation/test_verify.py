"""Software evidence: each check refuses at its own step and names what it saw and wanted."""

from __future__ import annotations

import ast
from datetime import timedelta

import pytest

from attestation.appraisal import Level
from attestation.collect import collect
from attestation.errors import FormatError, VerificationError
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, DeviceCounts, GpuFact, PostureFact, TeeEvidence
from attestation.signing import Envelope, sign_envelope
from attestation.verify import NodeHistory, verify_evidence
from tests.attestation.leases import AT, NODE, NODE_KEY, OTHER_KEY, RUNNER, evidence, expected, trust
from tests.conftest import ROOT

GPU = GpuFact(uuid="GPU-1", name="Example", memory=2**30)


def verify(document=None, *, key=NODE_KEY, rules=None, at=AT, wanted=None):
    envelope = sign_envelope((document or evidence()).to_payload(), EVIDENCE_PAYLOAD_TYPE, key)
    return verify_evidence(envelope, trust=rules or trust(), expected=wanted or expected(), at=at)


def failed(call):
    with pytest.raises(VerificationError) as caught:
        call()
    error = caught.value
    assert error.steps
    assert {"rule", "seen", "wanted", "fix"} <= set(error.details)
    return [step.step for step in error.steps if not step.ok]


def test_good_evidence_is_software_and_says_why():
    result = verify()
    assert result.level is Level.SOFTWARE
    node = result.ear["submods"]["node"]
    assert node["ear_status"] == "warning"  # memory is open to the node's root: never better than that here
    assert node["ear_trustworthiness_vector"]["runtime-opaque"] == 32
    assert result.ear["eat_profile"] == "tag:ietf.org,2026:rats/ear#04"
    assert [step.step for step in result.steps][:3] == ["signature", "format", "node"]
    assert all(step.ok and step.seen and step.wanted for step in result.steps)


ANSWERS = {
    "lease": {"lease": "lease-" + "9" * 32},
    "nonce": {"nonce": "00" * 32},
    "job": {"job_digest": RUNNER},
    "image": {"image": "sha256:" + "1" * 64},
    "policy": {"policy_digest": RUNNER},
    "plan": {"plan_digest": RUNNER},
    "lease-key": {"lease_public_key": "AAAA"},
    "freshness": {"made_at": AT - timedelta(minutes=10, milliseconds=1)},
    "gpu-count": {"device_counts": DeviceCounts(pci=1, driver=0)},
    "interlock-named": {"previous_wipes": {}},
}


@pytest.mark.parametrize("step", sorted(ANSWERS))
def test_each_wrong_answer_fails_at_its_own_step(step):
    assert failed(lambda: verify(evidence(**ANSWERS[step]))) == [step]


def test_all_wrong_answers_are_listed_together():
    wrong = evidence(nonce="00" * 32, image="sha256:" + "1" * 64)
    assert failed(lambda: verify(wrong)) == ["nonce", "image"]


def test_another_plan_than_the_one_shown_is_refused():
    assert failed(lambda: verify(wanted=expected(plan=b"{}"))) == ["plan"]


def test_unlisted_key_is_refused_before_anything_is_read():
    assert failed(lambda: verify(key=OTHER_KEY)) == ["signature"]


def test_key_of_another_listed_node_is_refused():
    both = trust(nodes={NODE: NODE_KEY.public.text, "node-" + "1" * 32: OTHER_KEY.public.text})
    assert failed(lambda: verify(key=OTHER_KEY, rules=both)) == ["node"]
    assert failed(lambda: verify(evidence(node_key=OTHER_KEY.public.text), rules=both)) == ["node"]


def test_another_payload_type_is_refused():
    envelope = sign_envelope(evidence().to_payload(), "application/json", NODE_KEY)
    assert failed(lambda: verify_evidence(envelope, trust=trust(), expected=expected(), at=AT)) == ["signature"]


def test_signed_rubbish_is_refused_at_its_format():
    envelope = sign_envelope(b"{}", EVIDENCE_PAYLOAD_TYPE, NODE_KEY)
    assert failed(lambda: verify_evidence(envelope, trust=trust(), expected=expected(), at=AT)) == ["format"]


def test_evidence_from_the_future_is_refused_beyond_the_skew():
    assert verify(evidence(made_at=AT + timedelta(seconds=60)))
    assert failed(lambda: verify(evidence(made_at=AT + timedelta(seconds=61)))) == ["freshness"]


def test_only_listed_runners_where_some_are_listed():
    assert verify(rules=trust(runners=[RUNNER]))
    assert failed(lambda: verify(rules=trust(runners=["sha256:" + "0" * 64]))) == ["runner"]
    assert failed(lambda: verify(rules=trust(runners=[]))) == ["runner"]


@pytest.mark.parametrize("result", ["fail", "unknown"])
def test_wanted_posture_must_pass(result):
    fact = PostureFact(id="swap-off", seen="?", wanted="no swap", result=result)
    assert verify(evidence(posture=(fact,)))
    assert failed(lambda: verify(evidence(posture=(fact,)), rules=trust(posture=["swap-off"]))) == ["posture"]
    assert failed(lambda: verify(rules=trust(posture=["not-reported"]))) == ["posture"]


def test_a_posture_check_twice_is_refused():
    fact = PostureFact(id="swap-off", seen="?", wanted="no swap", result="pass")
    assert failed(lambda: verify(evidence(posture=(fact, fact)))) == ["posture"]


@pytest.mark.parametrize("level", ["measured", "confidential", "confidential-gpu"])
def test_software_never_passes_for_more(level):
    assert failed(lambda: verify(rules=trust(level=level))) == ["level"]


def test_each_byte_of_the_envelope_counts():
    envelope = sign_envelope(evidence().to_payload(), EVIDENCE_PAYLOAD_TYPE, NODE_KEY)
    for position in range(0, len(envelope.payload), 7):
        changed = bytearray(envelope.payload)
        changed[position] ^= 1
        forged = Envelope(bytes(changed), envelope.payload_type, envelope.signatures)
        assert failed(lambda forged=forged: verify_evidence(forged, trust=trust(), expected=expected(), at=AT)) == ["signature"]


# ---- interlock


def history(**changes):
    return NodeHistory(**({"node": NODE, "size": 10, "wipes": {}, "unproven": ()} | changes))


def locked(document, past):
    return verify(document, rules=trust(interlock="log"), wanted=expected(history=past))


def test_first_lease_passes_where_the_log_shows_none():
    assert locked(evidence(), history())


def test_without_the_log_nothing_passes_unless_the_trust_file_says_so():
    assert failed(lambda: locked(evidence(), None)) == ["interlock-log"]
    assert verify(rules=trust(interlock="claimed"))


def test_claiming_a_first_lease_after_a_wipe_is_refused():
    assert failed(lambda: locked(evidence(), history(wipes={4: AT - timedelta(hours=1)}))) == ["interlock-first"]


def test_a_wipe_by_a_concurrent_lease_after_the_evidence_changes_nothing():
    assert locked(evidence(), history(wipes={4: AT + timedelta(seconds=1)}))


def test_the_named_entry_must_be_a_wipe_by_this_node():
    past = history(wipes={4: AT - timedelta(hours=1)})
    assert locked(evidence(previous_wipes={"node": 4}), past)
    assert failed(lambda: locked(evidence(previous_wipes={"node": 5}), past)) == ["interlock-wipes"]


def test_an_unproven_end_blocks_the_node():
    past = history(wipes={4: AT - timedelta(hours=1)}, unproven=(7,))
    assert failed(lambda: locked(evidence(previous_wipes={"node": 4}), past)) == ["interlock-unproven"]


def test_the_history_of_another_node_does_not_count():
    assert failed(lambda: locked(evidence(), history(node="node-" + "1" * 32))) == ["interlock-history"]


def test_each_leased_gpu_needs_its_own_entry():
    counts = DeviceCounts(pci=1, driver=1)
    assert failed(lambda: verify(evidence(gpus=(GPU,), device_counts=counts))) == ["interlock-named"]
    assert verify(evidence(gpus=(GPU,), device_counts=counts, previous_wipes={"node": None, "GPU-1": None}))
    free = GPU.model_copy(update={"leased": False})
    assert verify(evidence(gpus=(free,), device_counts=counts))


def test_two_gpus_of_one_uuid_are_refused():
    counts = DeviceCounts(pci=2, driver=2)
    wipes = {"node": None, "GPU-1": None}
    assert failed(lambda: verify(evidence(gpus=(GPU, GPU), device_counts=counts, previous_wipes=wipes))) == ["gpu-count"]


# ---- collecting


def test_collect_signs_with_the_named_key_only():
    envelope = collect(evidence(), NODE_KEY)
    assert verify_evidence(envelope, trust=trust(), expected=expected(), at=AT).level is Level.SOFTWARE
    with pytest.raises(FormatError, match="another node key"):
        collect(evidence(), OTHER_KEY)


def test_collect_gives_devices_the_binding_and_keeps_their_answers():
    class Device:
        def quote(self, binding):
            assert binding == evidence().binding()
            return TeeEvidence(kind="tpm", target="node", parts={"quote": "AAAA"})

    payload = collect(evidence(), NODE_KEY, devices=[Device()]).payload
    assert b'"quote":"AAAA"' in payload
    with pytest.raises(FormatError, match="quotes already"):
        collect(type(evidence()).from_payload(payload), NODE_KEY)


def test_every_check_that_can_fail_has_a_way_out():
    """Read in the source: tests reach each step, but not each of its failures beside all others."""
    bare = []
    for path in (ROOT / "attestation" / "verify").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"check", "need"}:
                given = {word.arg: word.value for word in node.keywords}
                holds = isinstance(given.get("ok"), ast.Constant) and given["ok"].value is True
                if "ok" in given and not holds and "fix" not in given:
                    bare.append(f"{path.name}:{node.lineno}")
    assert bare == []


def test_every_failed_step_says_what_to_change():
    made = evidence(runner_digest="sha256:" + "9" * 64, made_at=AT - timedelta(hours=1))
    with pytest.raises(VerificationError) as caught:
        verify_evidence(collect(made, NODE_KEY), trust=trust(runners=[RUNNER]), expected=expected(), at=AT)
    fixes = {step.step: step.fix for step in caught.value.steps if not step.ok}
    assert set(fixes) == {"runner", "freshness"}
    assert "'runners'" in fixes["runner"]
    assert "clocks" in fixes["freshness"]
    assert not any(step.fix for step in caught.value.steps if step.ok)
