"""The server's clock jumps by a day, there and back, in the middle of a lease: nothing ends, log and receipt still verify."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from attestation.log.leaf import Leaf
from attestation.log.note import NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from attestation.receipt import verify_receipt
from sandbox.control.sweeper import sweep_leases, sweep_nodes
from tests.control.actors import Customer, Node, ok, walk
from tests.control.conftest import House, folder, open_house
from tests.control.test_story import admitted, trust_of

__all__ = ["folder"]
DAY = timedelta(days=1)
LAST = ("running", "collecting", "wiping", "closed")


def report(node: Node, lease: str, state: str) -> None:
    fields: dict[str, object] = {}
    if state == "wiping":
        fields = {"outcome": "succeeded", "exit_code": 0, "documents": node.run_record(lease)}
    if state == "closed":
        fields = {"documents": node.wipe(lease)}
    ok(node.report(lease, state, **fields))


@pytest.mark.parametrize("restarts", [False, True], ids=["the same server", "a server started anew at each jump"])
@pytest.mark.parametrize("ahead", [(DAY, -DAY, DAY, 0 * DAY), (-DAY, 0 * DAY, DAY, -DAY)], ids=["forward", "back"])
def test_a_clock_that_jumps_in_mid_lease(folder: Path, ahead: tuple[timedelta, ...], *, restarts: bool) -> None:
    with ExitStack() as stack:
        running = stack.enter_context(ExitStack())
        house = open_house(running, folder)
        customer, node = house.customer(), house.node()
        lease = admitted(house, customer)
        walk(customer, node, lease, "unlocked")
        for state, jump in zip(LAST, ahead, strict=True):
            if restarts:
                running.close()
                house = open_house(running, folder)
                customer.http = node.http = house.http
            house.clock.ahead = jump
            sweep_leases(house.control)
            sweep_nodes(house.control)
            report(node, lease, state)
            assert customer.lease(lease)["state"] == state
        _holds(house, customer, node, lease, ahead)


def _holds(house: House, customer: Customer, node: Node, lease: str, ahead: tuple[timedelta, ...]) -> None:
    reader = LogReader(house.control.log_files)
    size = verify_log(reader, NoteVerifier.from_text(house.control.vkey)).checkpoint.size
    leaves = [Leaf.from_bytes(raw) for _, raw in reader.entries(0, size)]
    told = [leaf for leaf in leaves if leaf.resource_ref == lease]
    assert [leaf.action for leaf in told][-len(LAST) :] == list(LAST)
    now = datetime.now(told[0].recorded_at.tzinfo)
    assert [round((leaf.recorded_at - now) / DAY) for leaf in told[-len(LAST) :]] == [jump // DAY for jump in ahead]
    assert all(leaf.occurred_at <= leaf.recorded_at for leaf in leaves)
    assert [step["log_index"] for step in customer.lease(lease)["history"]] == [leaves.index(leaf) for leaf in told]
    checked = verify_receipt(customer.get(f"/v1/leases/{lease}/receipt").content, trust_of(house, node))
    assert checked.ok, [step for step in checked.steps if not step.ok]
