"""What a held poll waits for: anything that is other than what the node was told last, also where it came between two polls."""

from __future__ import annotations

import time

from tests.control.actors import nonce, ok
from tests.control.conftest import House
from tests.control.test_lifecycle_server import lease_of

LONG, SHORT = 20.0, 1.0


def timed(node, lease: str, wait: float) -> tuple[dict, float]:
    started = time.monotonic()
    (assignment,) = node.poll((lease,), wait=wait)["assignments"]
    return assignment, time.monotonic() - started


def test_what_came_between_two_polls_is_told_at_once(house: House) -> None:
    customer, node, lease = lease_of(house)
    (placed,) = node.poll()["assignments"]
    assert placed["nonce"] is None
    ok(nonce(customer, lease))
    told, seconds = timed(node, lease, LONG)
    assert told["nonce"] == "5a" * 32
    assert seconds < LONG / 2, "the node would have learned of it only with the next change"


def test_what_the_node_was_told_already_is_not_told_again_until_the_time_is_up(house: House) -> None:
    _, node, lease = lease_of(house)
    (placed,) = node.poll()["assignments"]
    told, seconds = timed(node, lease, SHORT)
    assert told == placed
    assert seconds >= SHORT
