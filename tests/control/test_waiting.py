"""What waits for a customer's release agent, and that asking costs nothing while nothing does."""

from __future__ import annotations

import threading
import time

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
