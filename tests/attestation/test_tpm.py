"""TPM quotes: a public one, and real ones by a software TPM, each altered in every way that matters."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.appraisal import Level
from attestation.collect import collect
from attestation.collect.tpm import TpmSource
from attestation.errors import AttestationError, FormatError, VerificationError
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.signing import b64decode, b64encode, sign_envelope
from attestation.steps import Steps
from attestation.verify import verify_evidence
from attestation.verify.single import verify_single
from attestation.verify.tee import tpm_evidence
from attestation.verify.tpm import TpmEvidence, parse_quote, verify_tpm
from attestation.verify.tpm_rules import TpmRules
from tests.attestation.leases import AT, NODE, NODE_KEY, evidence, expected, trust
from tests.attestation.software_tpm import HANDLE, Tpm, software_tpm
from tests.conftest import VECTORS

SAMPLE = VECTORS / "tpm" / "tpm_evidence.json"
public = pytest.mark.skipif(not SAMPLE.exists(), reason="the public TPM vector is not here")


def sample():
    tree = json.loads(SAMPLE.read_text())
    quote = tree["tpm_quote"]
    pcrs = {index: bytes.fromhex(text) for index, text in enumerate(quote["pcrs"])}
    return TpmEvidence(b64decode(quote["message"]), b64decode(quote["signature"]), pcrs, b64decode(tree["ak_public"]))


def check(evidence, **changes):
    steps = Steps("the quote")
    known = {"nonce": None, "keys": [evidence.key], "accepted": {}} | changes
    rules = known.pop("rules", None) or TpmRules(pcrs=known["accepted"])
    del known["accepted"]
    submod = verify_tpm(evidence, **known, rules=rules, steps=steps)
    steps.finish()
    return submod


def failed(evidence, **changes):
    with pytest.raises(VerificationError) as caught:
        check(evidence, **changes)
    return [step.step for step in caught.value.steps if not step.ok]


@public
def test_the_public_quote_verifies():
    quote = parse_quote(sample().message)
    assert quote.pcrs == tuple(range(24))
    submod = check(sample(), nonce=quote.nonce, accepted={0: [sample().pcrs[0]]})
    assert submod.claims == {"hardware": 2, "executables": 3}


@public
def test_without_nonce_key_or_pcrs_nothing_is_claimed():
    nonce = parse_quote(sample().message).nonce
    assert check(sample()).claims == {"hardware": 0, "executables": 0}
    assert check(sample(), keys=None, nonce=nonce).claims == {"hardware": 0, "executables": 0}
    assert check(sample(), nonce=nonce).claims == {"hardware": 2, "executables": 0}


@public
def test_each_flipped_byte_fails_at_its_step():
    good = sample()
    for position in range(len(good.message)):
        assert failed(replace(good, message=_flip(good.message, position))) == ["tpm-signature"]
    for position in range(len(good.signature)):
        assert failed(replace(good, signature=_flip(good.signature, position))) == ["tpm-signature"]
    for index in range(24):
        for position in (0, 31):
            pcrs = good.pcrs | {index: _flip(good.pcrs[index], position)}
            assert failed(replace(good, pcrs=pcrs)) == ["tpm-pcr-digest"]


@public
def test_a_key_that_is_not_trusted_fails_first():
    assert failed(sample(), keys=[b"other"]) == ["tpm-key"]


@public
def test_wrong_nonce_and_wrong_or_unquoted_pcrs_fail():
    assert failed(sample(), nonce=bytes(32)) == ["tpm-nonce"]
    assert failed(sample(), accepted={0: [b"\1" * 32]}) == ["tpm-pcr-0"]
    assert failed(sample(), accepted={0: [b""], 24: [b""]})[-1] == "tpm-pcr-24" or failed(sample(), accepted={24: [b"x"]}) == ["tpm-pcr-24"]


@public
def test_missing_or_short_pcr_values_fail():
    pcrs = dict(sample().pcrs)
    del pcrs[5]
    assert failed(replace(sample(), pcrs=pcrs)) == ["tpm-pcr-digest"]


@public
def test_the_public_sample_file_stands_alone():
    raw, nonce = SAMPLE.read_bytes(), parse_quote(sample().message).nonce
    result = verify_single("tpm", raw, at=AT)
    assert result.to_json()["ok"]
    assert result.level.label == "software"  # without nonce, key and PCRs it proves no more
    assert verify_single("tpm", raw, at=AT, nonce=nonce, roots=[sample().key])
    with pytest.raises(VerificationError):
        verify_single("tpm", raw, at=AT, nonce=bytes(32))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_clear_error(raw):
    with pytest.raises(AttestationError):
        parse_quote(raw)
    with pytest.raises(AttestationError):
        parse_quote(b"\xff\x54\x43\x47\x80\x18" + raw)


@public
def test_trailing_bytes_are_refused():
    with pytest.raises(FormatError, match="after its end"):
        parse_quote(sample().message + b"\0")


def _flip(data, position):
    return data[:position] + bytes([data[position] ^ 0x01]) + data[position + 1 :]


# ---- a software TPM, driven by the same tools as a real one


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    device = Tpm(tmp_path_factory.mktemp("tpm"))
    device.start()
    try:
        device.make_key()
        yield device
    finally:
        device.stop()


BINDING = hashlib.sha256(b"binding").digest()
RUNNER = hashlib.sha256(b"runner").hexdigest()


@software_tpm
def test_enrolment_to_quote_to_refusal(tpm):
    """One TPM's life: measured runner, good quote, replay, another measurement, reboot."""
    tpm.tool("tpm2_pcrextend", f"14:sha256={RUNNER}")
    good = tpm_evidence(tpm.quote(BINDING))
    runner_pcr = hashlib.sha256(bytes(32) + bytes.fromhex(RUNNER)).digest()
    accepted = {14: [runner_pcr]}
    assert check(good, nonce=BINDING, accepted=accepted).claims == {"hardware": 2, "executables": 3}

    # replayed for another question
    assert failed(good, nonce=hashlib.sha256(b"another").digest(), accepted=accepted) == ["tpm-nonce"]
    # altered: the values of an accepted runner under another quote
    tpm.tool("tpm2_pcrextend", f"14:sha256={RUNNER}")
    tampered = tpm_evidence(tpm.quote(BINDING))
    assert failed(tampered, nonce=BINDING, accepted=accepted) == ["tpm-pcr-14"]
    assert failed(replace(tampered, pcrs=good.pcrs), nonce=BINDING, accepted=accepted) == ["tpm-pcr-digest"]
    # the accepted PCR was not asked for
    assert failed(tpm_evidence(tpm.quote(BINDING, (0,))), nonce=BINDING, accepted=accepted) == ["tpm-pcr-14"]
    # rebooted without measuring the runner: PCR 14 is empty again
    before = parse_quote(tampered.message)
    tpm.stop()
    tpm.start()
    rebooted = tpm_evidence(tpm.quote(BINDING))
    assert parse_quote(rebooted.message).reset_count > before.reset_count
    assert failed(rebooted, nonce=BINDING, accepted=accepted) == ["tpm-pcr-14"]


@software_tpm
def test_a_foreign_tpm_is_refused(tpm, tmp_path):
    other = Tpm(tmp_path)
    other.start()
    try:
        other.make_key()
        foreign = tpm_evidence(other.quote(BINDING))
    finally:
        other.stop()
    own = tpm_evidence(tpm.quote(BINDING))
    assert failed(foreign, nonce=BINDING, keys=[own.key]) == ["tpm-key"]
    assert failed(replace(foreign, key=own.key), nonce=BINDING, keys=[own.key]) == ["tpm-signature"]


@software_tpm
def test_a_tpm_that_refuses_gives_a_clear_error(tpm):
    with pytest.raises(AttestationError) as caught:
        TpmSource("0x81010009", (0,), tpm.tcti).quote(BINDING)
    assert caught.value.details["rule"] == "tpm-refused"


@software_tpm
def test_a_node_with_a_tpm_reaches_measured_and_no_more(tpm):
    """The whole way: collected by the node's code, bound to the evidence, appraised by the customer's."""
    source = TpmSource(HANDLE, (0, 16), tpm.tcti)
    probe = tpm_evidence(source.quote(BINDING))
    rules = {"level": "measured", "tpm": {"keys": {NODE: b64encode(probe.key)}, "pcrs": {"16": [probe.pcrs[16].hex()]}}}
    signed = collect(evidence(), NODE_KEY, devices=[source])
    result = verify_evidence(signed, trust=trust(**rules), expected=expected(), at=AT)
    assert result.level is Level.MEASURED
    assert result.ear["submods"]["node"]["ear_trustworthiness_vector"]["runtime-opaque"] == 32

    def refused(envelope, **changes):
        with pytest.raises(VerificationError) as caught:
            verify_evidence(envelope, trust=trust(**(rules | changes)), expected=expected(), at=AT)
        return [step.step for step in caught.value.steps if not step.ok]

    assert refused(signed, level="confidential") == ["level"]
    assert refused(signed, tpm=rules["tpm"] | {"keys": {}}) == ["tpm-key"]
    assert refused(signed, tpm=rules["tpm"] | {"pcrs": {}}) == ["level"]  # a boot that nobody judged is not measured
    assert refused(signed, tpm=rules["tpm"] | {"pcrs": {"16": ["ff" * 32]}}) == ["tpm-pcr-16", "level"]
    # a quote made for other evidence of the same node
    other = evidence(lease_public_key="AAAA" * 16)
    lent = Evidence.from_payload(signed.payload).tee
    moved = Evidence.model_validate({name: getattr(other, name) for name in Evidence.model_fields} | {"tee": lent})
    assert refused(sign_envelope(moved.to_payload(), EVIDENCE_PAYLOAD_TYPE, NODE_KEY)) == ["tpm-nonce"]
