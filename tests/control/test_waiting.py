"""What waits for a customer's release agent, where nodes stand, and that asking costs nothing while there is no news."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

from sandbox.control.sweeper import sweep_nodes
from sandbox.wire import MAX_WAIT_SECONDS
from tests.control.actors import nonce, ok
from tests.control.conftest import House


def waiting(person, **params):
    return ok(person.get("/v1/leases/waiting", **({"params": params} if params else {})))


def test_a_lease_waits_from_placement_to_the_decision(house: House) -> None:
    customer, node = house.customer(), house.node()
    first = waiting(customer)
    assert first["leases"] == []
    lease = ok(customer.submit(customer.job()))["id"]
    assert waiting(customer)["mark"] == first["mark"]  # admitted: nobody can be asked yet
    node.poll()
    placed = waiting(customer)
    assert [info["id"] for info in placed["leases"]] == [lease]
    ok(nonce(customer, lease))
    assert waiting(customer)["mark"] == placed["mark"]  # asked, and not answered
    ok(node.attest(lease))
    attested = waiting(customer)
    assert [info["state"] for info in attested["leases"]] == ["attested"]
    assert attested["mark"] not in {first["mark"], placed["mark"]}
    ok(customer.unlock(lease))
    assert waiting(customer) == first


def test_other_tenants_and_ending_leases_do_not_wait(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = ok(customer.submit(customer.job()))["id"]
    node.poll()
    assert waiting(house.customer("other"))["leases"] == []
    assert house.person("operator").get("/v1/leases/waiting").status_code == 403
    ok(customer.post(f"/v1/leases/{lease}/cancel"))
    assert waiting(customer)["leases"] == []


def test_the_question_is_held_until_there_is_something(house: House) -> None:
    customer, node = house.customer(), house.node()
    mark = waiting(customer)["mark"]
    lease = ok(customer.submit(customer.job()))["id"]
    started = time.monotonic()
    timer = threading.Timer(0.5, node.poll)
    timer.start()
    found = waiting(customer, mark=mark, wait=20)
    timer.join()
    assert [info["id"] for info in found["leases"]] == [lease]
    assert time.monotonic() - started < 10


def test_nodes_are_held_until_one_of_them_stands_elsewhere(house: House) -> None:
    operator, node = house.person("operator"), house.node()
    first = operator.get("/v1/nodes", params={"mark": "", "wait": 20})
    mark = first.headers["etag"].strip('"')
    assert [info["id"] for info in ok(first)] == [node.id]
    assert operator.get("/v1/nodes", params={"mark": mark, "wait": 0}).headers["etag"] == first.headers["etag"]
    changed = held_until(operator, mark, lambda: operator.post(f"/v1/nodes/{node.id}/quarantine"))
    assert [info["state"] for info in ok(changed)] == ["quarantined"]
    assert changed.headers["etag"] != first.headers["etag"]


def test_a_silent_node_that_is_back_is_news(house: House) -> None:
    operator, node = house.person("operator"), house.node()
    house.clock.ahead = timedelta(seconds=1000)
    sweep_nodes(house.control)
    answer = operator.get("/v1/nodes")
    assert "not heard of" in ok(answer)[0]["detail"]
    back = held_until(operator, answer.headers["etag"].strip('"'), node.poll)
    assert ok(back)[0]["detail"] == ""


def held_until(operator, mark, deed):
    """Return the answer to a held question for nodes during which something is done; it must come before the question is over."""
    started = time.monotonic()
    timer = threading.Timer(0.3, deed)
    timer.start()
    answer = operator.get("/v1/nodes", params={"mark": mark, "wait": MAX_WAIT_SECONDS})
    timer.join()
    assert time.monotonic() - started < MAX_WAIT_SECONDS - 1
    return answer
