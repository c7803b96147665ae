"""Ends, races, time, and the audit log's outbox."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from attestation.log.errors import LogStoreError
from attestation.log.leaf import DocumentRef, Leaf
from attestation.log.reader import LogReader
from sandbox.control.database.models import EventRow, LeaseRow
from sandbox.control.sweeper import sweep_leases, sweep_nodes
from sandbox.control.transitions import advance
from sandbox.errors import StateError
from sandbox.lifecycle import TRANSITIONS, LeaseState
from tests.control.actors import code, nonce, ok, walk
from tests.control.conftest import House, open_house

S = LeaseState
REF = DocumentRef("sha256:" + "0" * 64, "application/json")


def lease_of(house: House) -> tuple:
    customer, node = house.customer(), house.node()
    return customer, node, ok(customer.submit(customer.job()))["id"]


# ---- every pair of states


def undo() -> None:
    raise StateError("undo")


@pytest.mark.parametrize("seen", list(LeaseState))
def test_only_the_lifecycles_steps_exist(house: House, seen: LeaseState) -> None:
    _, _, lease = lease_of(house)
    for wanted in LeaseState:
        try:
            with house.control.database.write() as session:
                row = session.get_one(LeaseRow, lease)
                row.state = seen.value
                session.flush()
                advance(house.control, session, row, wanted, actor="server", evidence=REF)
                undo()
        except StateError as error:
            moved = error.message == "undo"
        assert moved is (wanted in TRANSITIONS[seen]), (seen, wanted)


def test_one_of_many_racers_moves_a_lease(house: House) -> None:
    _, _, lease = lease_of(house)
    won, lost = [], []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        with house.control.database.read() as session:
            row = session.get_one(LeaseRow, lease)
        start.wait()
        try:
            with house.control.database.write() as session:
                session.add(row)
                advance(house.control, session, row, S.CANCELLED if number % 2 else S.EXPIRED, actor="server", evidence=REF)
            won.append(number)
        except StateError as error:
            lost.append(error.details["rule"])

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert lost == ["lease-race"] * 7
    house.control.journal.settle()
    with house.control.database.read() as session:
        ends = list(
            session.scalars(
                select(EventRow.type).where(EventRow.resource == lease, EventRow.type.in_(["lease.cancelled", "lease.expired"]))
            )
        )
    assert len(ends) == 1


def test_many_nodes_polling_at_once_place_each_lease_once(house: House) -> None:
    customer = house.customer()
    nodes = [house.node(slots=3) for _ in range(4)]
    leases = {ok(customer.submit(customer.job()))["id"] for _ in range(8)}
    got: list[str] = []

    def poll(node) -> None:
        got.extend(each["lease"] for each in node.poll()["assignments"])

    threads = [threading.Thread(target=poll, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(leases)


# ---- placement


def test_a_node_gets_what_fits_until_the_wipe_is_proven(house: House) -> None:
    customer = house.customer()
    node = house.node(slots=5, memory=3 * 2**30)
    small = [ok(customer.submit(customer.job(spec={"resources": {"memory": "2Gi"}})))["id"], ok(customer.submit(customer.job()))["id"]]
    late = ok(customer.submit(customer.job()))["id"]
    assert [each["lease"] for each in node.poll()["assignments"]] == small
    assert [each["lease"] for each in node.poll()["assignments"]] == small
    ok(node.report(small[0], "wiping", outcome="node-failure"))
    assert late not in [each["lease"] for each in node.poll()["assignments"]]
    ok(node.report(small[0], "closed", documents=node.wipe(small[0])))
    assert [each["lease"] for each in node.poll()["assignments"]] == [small[1], late]


def test_isolation_gpus_and_willingness_decide(house: House) -> None:
    customer = house.customer()
    lease = ok(customer.submit(customer.job(spec={"isolation": "gvisor"})))["id"]
    plain, strong = house.node(), house.node(isolation=["container", "gvisor"])
    assert plain.poll()["assignments"] == []
    assert strong.poll(accepting=False)["assignments"] == []
    assert [each["lease"] for each in strong.poll()["assignments"]] == [lease]


def test_a_quarantined_node_gets_nothing_until_it_is_restored(house: House) -> None:
    customer, node, lease = lease_of(house)
    operator = house.person("operator")
    walk(customer, node, lease, "wiping")
    ok(node.report(lease, "quarantined", documents=node.wipe(lease, proven=False)))
    waiting = ok(customer.submit(customer.job()))["id"]
    answer = node.poll()
    assert (answer["assignments"], answer["node_state"]) == ([], "quarantined")
    info = ok(operator.get(f"/v1/nodes/{node.id}"))
    assert (info["state"], lease in info["detail"]) == ("quarantined", True)
    assert ok(operator.post(f"/v1/nodes/{node.id}/restore"))["state"] == "ready"
    answer = node.poll()
    assert ([each["lease"] for each in answer["assignments"]], answer["node_state"]) == ([waiting], "ready")
    assert [row["type"] for row in ok(operator.get(f"/v1/log/entries?resource={node.id}"))["entries"]] == [
        "node.registered",
        "node.quarantined",
        "node.restored",
    ]


def test_a_later_proven_wipe_is_logged_once_the_operator_has_lifted_the_quarantine(house: House) -> None:
    customer, node, lease = lease_of(house)
    operator = house.person("operator")
    walk(customer, node, lease, "wiping")
    failed = node.wipe(lease, proven=False)
    proven = node.wipe(lease)
    ok(node.report(lease, "quarantined", documents=failed))
    entries = f"/v1/log/entries?resource={node.id}&type=node.restored"
    ok(node.report(lease, "quarantined", documents=proven))
    assert ok(operator.get(entries))["entries"] == []
    ok(operator.post(f"/v1/nodes/{node.id}/restore"))
    ok(node.report(lease, "quarantined", documents=failed))
    assert len(ok(operator.get(entries))["entries"]) == 1
    for _ in range(2):
        ok(node.report(lease, "quarantined", documents=proven))
        rows = ok(operator.get(entries))["entries"]
        assert [row["actor"] for row in rows][1:] == [node.id]
    assert customer.lease(lease)["state"] == "quarantined"


def test_the_operators_quarantine(house: House) -> None:
    operator, node = house.person("operator"), house.node()
    for _ in range(2):
        assert ok(operator.post(f"/v1/nodes/{node.id}/quarantine"))["state"] == "quarantined"
    assert len(ok(operator.get("/v1/log/entries?type=node.quarantined"))["entries"]) == 1
    assert code(operator.post("/v1/nodes/node-" + "0" * 32 + "/quarantine")) == "not-found"


# ---- ends


def test_cancelling_before_a_node_was_touched_ends_at_once(house: House) -> None:
    customer, node, lease = lease_of(house)
    for _ in range(2):
        assert ok(customer.post(f"/v1/leases/{lease}/cancel"))["state"] == "cancelled"
    assert node.poll()["assignments"] == []
    assert customer.get(f"/v1/leases/{lease}/receipt").status_code == 200


@pytest.mark.parametrize(
    ("state", "asked", "end"),
    [
        ("placed", "cancelled", "cancelled"),
        ("attested", "cancelled", "cancelled"),
        ("unlocked", "cancelled", "closed"),
        ("running", "cancelled", "closed"),
    ],
)
def test_cancelling_on_a_node_goes_through_the_wipe(house: House, state: str, asked: str, end: str) -> None:
    customer, node, lease = lease_of(house)
    walk(customer, node, lease, state)
    for _ in range(2):
        assert ok(customer.post(f"/v1/leases/{lease}/cancel"))["state"] == state
    assert node.assignment(lease)["end"] == asked
    documents = node.run_record(lease, outcome=asked) if state in {"unlocked", "running"} else {}
    ok(node.report(lease, "wiping", outcome=asked, documents=documents))
    info = ok(node.report(lease, end, documents=node.wipe(lease)))
    assert (info["state"], info["outcome"]) == (end, asked)
    if end != "cancelled":
        assert code(customer.post(f"/v1/leases/{lease}/cancel")) == "invalid-state"


def test_a_lease_that_is_being_wiped_cannot_be_cancelled(house: House) -> None:
    customer, node, lease = lease_of(house)
    walk(customer, node, lease, "wiping")
    assert code(customer.post(f"/v1/leases/{lease}/cancel")) == "invalid-state"


def test_revoking_takes_the_keys_back(house: House) -> None:
    customer, node, lease = lease_of(house)
    walk(customer, node, lease, "running")
    ok(customer.post(f"/v1/leases/{lease}/revoke"))
    assert node.assignment(lease)["end"] == "revoked"


def test_a_lease_nobody_takes_and_one_nobody_releases_expire(house: House) -> None:
    customer, node, lease = lease_of(house)
    walk(customer, node, lease, "attested")
    waiting = ok(customer.submit(customer.job(spec={"isolation": "gvisor"})))["id"]
    sweep_leases(house.control)
    assert (customer.lease(waiting)["state"], node.assignment(lease)["end"]) == ("admitted", None)
    house.clock.ahead += timedelta(seconds=901)
    sweep_leases(house.control)
    assert node.assignment(lease)["end"] == "expired"
    assert code(customer.unlock(lease)) == "invalid-state"
    ok(node.report(lease, "wiping", outcome="expired"))
    assert ok(node.report(lease, "expired", documents=node.wipe(lease)))["state"] == "expired"
    house.clock.ahead += timedelta(days=1)
    sweep_leases(house.control)
    assert customer.lease(waiting)["state"] == "expired"


def test_loss_of_contact_ends_nothing(house: House) -> None:
    customer, node, lease = lease_of(house)
    walk(customer, node, lease, "running")
    house.clock.ahead += timedelta(days=30)
    sweep_leases(house.control)
    sweep_nodes(house.control)
    info = customer.lease(lease)
    assert info["state"] == "running"
    operator = house.person("operator")
    assert "not heard of" in ok(operator.get(f"/v1/nodes/{node.id}"))["detail"]
    assert node.assignment(lease)["end"] is None
    assert ok(operator.get(f"/v1/nodes/{node.id}"))["detail"] == ""
    ok(node.report(lease, "collecting"))


# ---- output


def test_log_chunks_are_idempotent_bounded_and_final_when_all_are_there(house: House) -> None:
    customer, node, lease = lease_of(house)

    def put(seq: int, data: bytes):
        return node.call("PUT", f"/v1/nodes/{node.id}/leases/{lease}/logs/{seq}", content=data)

    walk(customer, node, lease, "running")
    assert put(0, b"zero").status_code == 204
    assert put(0, b"zero").status_code == 204
    assert code(put(0, b"other")) == "invalid-state"
    assert code(put(1, bytes(256 * 1024 + 1))) == "limit-exceeded"
    assert put(2, b"two").status_code == 204
    page = ok(customer.get(f"/v1/leases/{lease}/logs"))
    assert ([chunk["seq"] for chunk in page["chunks"]], page["final"]) == ([0], False)
    assert ok(customer.get(f"/v1/leases/{lease}/logs?after=1&wait=0.1")) == {"chunks": [], "final": False}
    ok(node.report(lease, "wiping", outcome="succeeded", exit_code=0, documents=node.run_record(lease, log_chunks=3)))
    assert put(1, b"one").status_code == 204
    page = ok(customer.get(f"/v1/leases/{lease}/logs"))
    assert ([chunk["seq"] for chunk in page["chunks"]], page["final"]) == ([0, 1, 2], True)
    ok(node.report(lease, "closed", documents=node.wipe(lease)))
    assert code(put(3, b"late")) == "invalid-state"
    assert ok(customer.get(f"/v1/leases/{lease}/logs?after=3"))["final"]


# ---- long polls


def test_long_polls_answer_when_something_happens(house: House) -> None:
    customer, node, lease = lease_of(house)
    later = threading.Timer(0.3, lambda: customer.post(f"/v1/leases/{lease}/cancel"))
    later.start()
    assert ok(customer.get(f"/v1/leases/{lease}?wait=20&since=admitted"))["state"] == "cancelled"
    later.join()
    later = threading.Timer(0.3, lambda: customer.submit(customer.job()))
    later.start()
    assert len(node.poll(wait=20)["assignments"]) == 1
    later.join()


def test_a_node_that_knows_its_work_waits_for_news_of_it(house: House) -> None:
    customer, node, lease = lease_of(house)
    node.poll()
    later = threading.Timer(0.3, lambda: nonce(customer, lease))
    later.start()
    answer = node.poll((lease,), wait=20)
    assert answer["assignments"][0]["nonce"] == "5a" * 32
    later.join()


# ---- the outbox


class BrokenLog:
    """A log that refuses, or takes the leaves and loses the answer."""

    def __init__(self, house: House) -> None:
        self.inner, self.refuse, self.lose = house.control.journal._log, 0, 0
        house.control.journal._log = self

    def append(self, leaves: Sequence[bytes]) -> list[int]:
        if self.refuse:
            self.refuse -= 1
            raise LogStoreError("the disk is full")
        indexes = self.inner.append(leaves)
        if self.lose:
            self.lose -= 1
            raise LogStoreError("the answer got lost")
        return indexes


@pytest.mark.parametrize("fault", ["refuse", "lose"])
def test_nothing_is_acknowledged_that_is_not_in_the_log(house: House, fault: str) -> None:
    customer, _, _ = lease_of(house)
    broken = BrokenLog(house)
    setattr(broken, fault, 1)
    job = customer.job()
    answer = customer.submit(job)
    assert (answer.status_code, code(answer)) == (503, "log-store")
    again = customer.submit(job)
    assert again.status_code == 200
    history = again.json()["history"]
    assert [step["state"] for step in history] == ["submitted", "admitted"]
    logged = [raw for _, raw in LogReader(house.control.log_files).entries(0, 10**6)]
    assert sum(again.json()["id"].encode() in raw for raw in logged) == 2
    assert all(again.json()["id"].encode() in logged[step["log_index"]] for step in history)


def test_what_a_crash_left_in_the_outbox_is_logged_at_the_next_start(folder: Path) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer, _, lease = lease_of(house)
        BrokenLog(house).refuse = 10**6
        assert customer.post(f"/v1/leases/{lease}/cancel").status_code == 503
        with house.control.database.read() as session:
            assert session.scalars(select(EventRow.type).where(EventRow.log_index.is_(None))).all() == ["lease.cancelled"]
    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer.http = house.http
        info = customer.lease(lease)
        assert info["state"] == "cancelled"
        assert all(step["log_index"] is not None for step in info["history"])


def test_the_logs_order_is_the_order_of_events(house: House) -> None:
    customer = house.customer()
    threads = [threading.Thread(target=lambda: ok(customer.submit(customer.job()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with house.control.database.read() as session:
        indexes = list(session.scalars(select(EventRow.log_index).order_by(EventRow.id)))
    assert indexes == list(range(len(indexes)))


def test_when_a_node_says_that_it_happened_is_bounded_by_what_the_server_knows(house: House) -> None:
    customer, node, lease = lease_of(house)
    walk(customer, node, lease, "unlocked")
    before = datetime.fromisoformat(customer.lease(lease)["updated_at"])
    time.sleep(0.01)
    said = before + timedelta(milliseconds=5)
    ok(node.report(lease, "running", at=said.isoformat()))
    ok(node.report(lease, "collecting", at=(before - timedelta(days=1)).isoformat()))
    future = (before + timedelta(days=1)).isoformat()
    ok(node.report(lease, "wiping", outcome="succeeded", exit_code=0, documents=node.run_record(lease), at=future))
    leaves = [Leaf.from_bytes(raw) for _, raw in LogReader(house.control.log_files).entries(0, 10**6)]
    unlocked, running, collecting, wiping = [leaf for leaf in leaves if leaf.resource_ref == lease][-4:]
    assert unlocked.occurred_at == unlocked.recorded_at
    assert running.occurred_at == said.replace(microsecond=said.microsecond // 1000 * 1000) < running.recorded_at
    assert running.recorded_at == collecting.occurred_at <= collecting.recorded_at
    assert collecting.recorded_at <= wiping.occurred_at <= wiping.recorded_at
    rows = ok(house.person("auditor").get(f"/v1/log/entries?lease={lease}&type=lease.running"))["entries"]
    assert [datetime.fromisoformat(row["at"]) for row in rows] == [running.occurred_at]
