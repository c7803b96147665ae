"""Leases that want memory of a GPU: placed where a free card has it, by the node's word and by what was placed since."""

from __future__ import annotations

import dataclasses

import pytest

from attestation.canonical import sha256_digest
from attestation.signing import b64encode
from tests.control.actors import POLICY, Customer, Node, ok
from tests.control.conftest import House

GIB = 2**30
ALLOWS = POLICY.replace(b"resources: {", b"resources: {gpus: {max: 2}, gpuMemory: {max: 80Gi}, ")
SMALL, LARGE = "GPU-small", "GPU-large"


@dataclasses.dataclass
class Rig:
    """A customer who may use GPUs, and a node with one of 10 GiB and one of 24 GiB."""

    customer: Customer
    node: Node

    def submit(self, memory: str = "0", gpus: int = 1) -> str:
        spec = {"resources": {"gpus": gpus, "gpuMemory": memory}}
        return ok(self.customer.submit(self.customer.job(spec=spec, policyDigest=sha256_digest(ALLOWS))))["id"]

    def poll(self, **held: list[str]) -> list[str]:
        """Poll, with who holds which card; return the leases that the node has to do with."""
        cards = ((LARGE, 24 * GIB), (SMALL, 10 * GIB))
        gpus = [{"uuid": uuid, "memory": memory, "leases": held.get(uuid.removeprefix("GPU-"), [])} for uuid, memory in cards]
        return [each["lease"] for each in self.node.poll(gpus=gpus)["assignments"]]

    def end(self, lease: str) -> None:
        ok(self.node.report(lease, "wiping", outcome="node-failure"))
        ok(self.node.report(lease, "closed", documents=self.node.wipe(lease)))


@pytest.fixture
def rig(house: House) -> Rig:
    customer = house.customer()
    ok(house.person("operator").put("/v1/policies/lab", {"raw": b64encode(ALLOWS)}))
    return Rig(customer, house.node(slots=5, gpus=[SMALL, LARGE]))


def test_a_job_waits_for_the_card_that_is_large_enough(rig: Rig) -> None:
    first, second = rig.submit("20Gi"), rig.submit("20Gi")
    assert rig.poll() == [first]
    assert rig.poll(large=[first]) == [first]
    third = rig.submit("10Gi")
    assert rig.poll(large=[first]) == [first, third]
    rig.end(first)
    # The word of a poll that was asked before: the card is held for a lease that the server knows to be over.
    assert rig.poll(large=[first], small=[third]) == [second, third]


def test_what_is_placed_but_not_yet_taken_takes_the_smallest_card(rig: Rig) -> None:
    any_card, large, late = rig.submit(), rig.submit("20Gi"), rig.submit()
    assert rig.poll() == [any_card, large]
    rig.end(any_card)
    second = rig.submit("20Gi")
    assert rig.poll() == [large, late]
    rig.end(late)
    assert rig.poll() == [large]
    assert rig.poll(small=[large]) == [large, second]


def test_two_cards_are_wanted_at_once(rig: Rig) -> None:
    rig.submit("20Gi", gpus=2)
    both = rig.submit("10Gi", gpus=2)
    assert rig.poll() == [both]
    assert rig.poll(small=[both], large=[both]) == [both]


def test_a_card_that_is_held_for_a_lease_nobody_knows_is_not_free(rig: Rig) -> None:
    lost = "lease-" + "f" * 32
    waiting = rig.submit("20Gi")
    assert rig.poll(large=[lost]) == []
    assert rig.poll(small=[lost]) == [waiting]


def test_a_node_that_does_not_tell_of_its_cards_gets_leases_by_their_number(rig: Rig) -> None:
    leases = [rig.submit("20Gi") for _ in range(3)]
    assert [each["lease"] for each in rig.node.poll()["assignments"]] == leases[:2]
