"""All pairs of lease states, valid and invalid, against the table in the contract."""

from __future__ import annotations

import itertools

import pytest

from sandbox.errors import StateError
from sandbox.lifecycle import BEFORE_NODE, KEY_MAY_BE_OUT, ON_NODE, TERMINAL, LeaseState, Outcome, check_transition, end_state

S = LeaseState
VALID = {
    ("submitted", "admitted"), ("submitted", "denied"), ("submitted", "cancelled"), ("submitted", "expired"),
    ("admitted", "placed"), ("admitted", "denied"), ("admitted", "cancelled"), ("admitted", "expired"),
    ("placed", "attested"), ("placed", "wiping"),
    ("attested", "unlocked"), ("attested", "wiping"),
    ("unlocked", "running"), ("unlocked", "wiping"),
    ("running", "collecting"), ("running", "wiping"),
    ("collecting", "wiping"),
    ("wiping", "closed"), ("wiping", "quarantined"), ("wiping", "denied"), ("wiping", "cancelled"), ("wiping", "expired"),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "wanted"), list(itertools.product(LeaseState, LeaseState)))
def test_every_pair_of_states(seen: LeaseState, wanted: LeaseState) -> None:
    if (seen.value, wanted.value) in VALID:
        check_transition("lease-x", seen, wanted)
    else:
        with pytest.raises(StateError) as caught:
            check_transition("lease-x", seen, wanted)
        assert caught.value.details["seen"] == seen.value
        assert wanted.value in str(caught.value)


def test_once_a_key_may_be_out_every_way_leads_through_the_wipe() -> None:
    for state in KEY_MAY_BE_OUT:
        onward = {wanted.value for seen, wanted in itertools.product([state], LeaseState) if (seen.value, wanted.value) in VALID}
        assert not onward & {end.value for end in TERMINAL}


def test_the_groups_of_states_are_a_partition() -> None:
    assert set(LeaseState) == BEFORE_NODE | ON_NODE | TERMINAL
    assert not BEFORE_NODE & ON_NODE
    assert not ON_NODE & TERMINAL


@pytest.mark.parametrize("seen", sorted(ON_NODE - {S.WIPING}))
@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_unproven_wipe_is_quarantine_whatever_else_happened(seen: LeaseState, outcome: Outcome) -> None:
    assert end_state(seen, outcome, proven=False) is S.QUARANTINED
    assert end_state(seen, outcome, proven=True) in TERMINAL - {S.QUARANTINED}


def test_an_early_end_keeps_its_name_and_a_late_one_is_closed() -> None:
    assert end_state(S.PLACED, Outcome.CANCELLED, proven=True) is S.CANCELLED
    assert end_state(S.ATTESTED, Outcome.EXPIRED, proven=True) is S.EXPIRED
    assert end_state(S.ATTESTED, Outcome.DENIED, proven=True) is S.DENIED
    assert end_state(S.RUNNING, Outcome.CANCELLED, proven=True) is S.CLOSED
    assert end_state(S.UNLOCKED, Outcome.REVOKED, proven=True) is S.CLOSED
