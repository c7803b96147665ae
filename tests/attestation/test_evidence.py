"""Evidence: one spelling, and a binding that covers every field but the quotes that carry it."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attestation.canonical import canonical_json
from attestation.errors import AttestationError, FormatError
from attestation.evidence import DeviceCounts, Evidence, GpuFact, PostureFact, TeeEvidence
from tests.attestation.leases import AT, OTHER_KEY, RUNNER, evidence


def test_payload_reads_back():
    whole = evidence(tee=(TeeEvidence(kind="tpm", target="node", parts={"quote": "AAAA"}),))
    assert Evidence.from_payload(whole.to_payload()) == whole


CHANGES = {
    "lease": "lease-" + "1" * 32,
    "node": "node-" + "1" * 32,
    "node_key": OTHER_KEY.public.text,
    "nonce": "00" * 32,
    "lease_public_key": "AAAA",
    "job_digest": RUNNER,
    "image": RUNNER,
    "policy_digest": RUNNER,
    "plan_digest": RUNNER,
    "runner_digest": "sha256:" + "0" * 64,
    "runner_version": "0.1.1",
    "posture": (PostureFact(id="swap-off", seen="no swap", wanted="no swap", result="unknown"),),
    "gpus": (GpuFact(uuid="GPU-1", name="x", memory=1),),
    "device_counts": DeviceCounts(pci=1),
    "previous_wipes": {"node": 0},
    "made_at": AT + timedelta(milliseconds=1),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_binding_covers_each_field(name):
    assert evidence(**{name: CHANGES[name]}).binding() != evidence().binding()


def test_every_field_is_in_the_table_of_changes():
    assert set(Evidence.model_fields) == set(CHANGES) | {"v", "tee"}


def test_binding_leaves_out_only_the_quotes():
    assert evidence(tee=(TeeEvidence(kind="tpm", target="node", parts={"quote": "AAAA"}),)).binding() == evidence().binding()


def test_binding_is_what_the_documentation_says():
    """Recomputed by hand, so that another implementation can follow docs/attestation.md."""
    tree = evidence().model_dump(mode="json", exclude={"tee"})
    state = hashlib.sha256()
    for part in [b"sealrig/evidence/v1", *(item for name in sorted(tree) for item in (name.encode(), canonical_json(tree[name])))]:
        state.update(len(part).to_bytes(8, "big") + part)
    assert evidence().binding() == state.digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"v":1', b'"v":2'),
        (b'"v":1', b'"v":1,"w":1'),
        (b'"tee":null,', b""),
        (b'"nonce":"5a', b'"nonce":"5A'),
        (b'"nonce":"5a', b'"nonce":"'),
        (b'"node":null', b'"node":-1'),
        (b'"node":null', b'"node":1.5'),
        (b'"made_at":"2026-03-01T12:00:00.000Z"', b'"made_at":"2026-03-01T12:00:00Z"'),
        (b'"made_at":"2026-03-01T12:00:00.000Z"', b'"made_at":"2026-03-01T13:00:00.000+01:00"'),
        (b'"v":1}', b'"v":1} '),
        (b'"v":1}', b'"v":1,"v":1}'),
        (b'"lease_public_key":"', b'"lease_public_key":"='),
    ],
)
def test_another_spelling_or_type_is_refused(old, new):
    raw = evidence().to_payload()
    assert old in raw
    with pytest.raises(FormatError):
        Evidence.from_payload(raw.replace(old, new, 1))


@given(st.binary(max_size=400))
def test_any_bytes_give_a_clear_error(raw):
    with pytest.raises(AttestationError):
        Evidence.from_payload(raw)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_a_changed_byte_never_reads_back_as_the_same(position, value):
    raw = bytearray(evidence().to_payload())
    position %= len(raw)
    if raw[position] == value:
        return
    raw[position] = value
    try:
        other = Evidence.from_payload(bytes(raw))
    except AttestationError:
        return
    assert other != evidence()
    assert other.to_payload() == bytes(raw)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValidationError, match="zone"):
        evidence(made_at=AT.replace(tzinfo=None))


@pytest.mark.parametrize("name", ["node", "cpu0", "", "GPU 1", "-"])
def test_a_gpu_has_a_name_of_its_own(name):
    """A GPU called ``node`` would share the node's place in the interlock."""
    with pytest.raises(ValidationError):
        GpuFact(uuid=name, name="x", memory=1)
