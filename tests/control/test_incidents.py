"""Incidents: signed by the node of the lease, bounded, in the history, the log and the receipt; they move no lease."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx

from attestation.incident import INCIDENT_PAYLOAD_TYPE, MAX_INCIDENTS, Incident
from attestation.log.leaf import Leaf
from attestation.log.reader import LogReader
from attestation.receipt import verify_receipt
from attestation.signing import Envelope, SigningKey, sign_envelope
from tests.control.actors import Node, code, ok, walk
from tests.control.conftest import House
from tests.control.test_story import admitted, trust_of

BUNDLE = "blake3:" + "b" * 64


def signed(node: Node, lease: str, key: SigningKey | None = None, **changes: Any) -> Envelope:
    fields: dict[str, Any] = {
        "lease": lease, "node": node.id, "at": datetime.now(UTC), "bundle": BUNDLE, "segment": 7, "code": "bundle-tampered",
    }  # fmt: skip
    return sign_envelope(Incident(**fields | changes).to_payload(), INCIDENT_PAYLOAD_TYPE, key or node.key)


def send(node: Node, lease: str, envelope: Envelope) -> httpx.Response:
    return node.post(f"/v1/nodes/{node.id}/leases/{lease}/incidents", {"incident": envelope.to_json()})


def test_an_incident_is_seen_in_the_history_the_log_and_the_receipt(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = admitted(house, customer)
    walk(customer, node, lease, "running")
    envelope = signed(node, lease)
    ok(send(node, lease, envelope))
    ok(send(node, lease, envelope))
    info = customer.lease(lease)
    assert info["state"] == "running"
    assert info["history"][-1]["detail"] == f"incident: input {BUNDLE}: segment 7 did not verify (bundle-tampered)"
    leaf = Leaf.from_bytes(dict(LogReader(house.control.log_files).entries(0, 1000))[info["history"][-1]["log_index"]])
    assert (leaf.type, leaf.outcome, leaf.actor_ref, leaf.resource_ref) == ("lease.incident", "input-unverified", node.id, lease)
    assert leaf.evidence is not None
    assert leaf.evidence.digest == envelope.digest
    ok(node.report(lease, "collecting"))
    run = node.run_record(lease, incidents=1)
    ok(node.report(lease, "wiping", outcome="succeeded", exit_code=0, documents=run))
    ok(node.report(lease, "closed", documents=node.wipe(lease)))
    checked = verify_receipt(customer.get(f"/v1/leases/{lease}/receipt").content, trust_of(house, node))
    assert checked.ok, [step for step in checked.steps if not step.ok]
    assert next(step for step in checked.steps if step.step == "log-incidents").seen == "1 incidents"


def test_a_receipt_without_the_incidents_that_the_run_record_counts_does_not_verify(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = admitted(house, customer)
    walk(customer, node, lease, "collecting")
    ok(node.report(lease, "wiping", outcome="succeeded", exit_code=0, documents=node.run_record(lease, incidents=1)))
    ok(node.report(lease, "closed", documents=node.wipe(lease)))
    checked = verify_receipt(customer.get(f"/v1/leases/{lease}/receipt").content, trust_of(house, node))
    assert [step.step for step in checked.steps if not step.ok] == ["log-incidents"]


def test_only_the_node_of_the_lease_reports_and_not_for_ever(house: House) -> None:
    customer, node, other = house.customer(), house.node(), house.node()
    lease = admitted(house, customer)
    walk(customer, node, lease, "running")
    assert code(send(other, lease, signed(other, lease))) == "not-found"
    assert send(node, lease, signed(node, lease, SigningKey.generate())).status_code >= 400
    assert code(send(node, lease, signed(node, "lease-" + "0" * 32))) == "bad-input"
    for number in range(MAX_INCIDENTS):
        ok(send(node, lease, signed(node, lease, segment=number)))
    assert send(node, lease, signed(node, lease, segment=MAX_INCIDENTS)).status_code == 413
    assert len([step for step in customer.lease(lease)["history"] if step["detail"]]) == MAX_INCIDENTS


def test_an_ended_lease_has_no_more_incidents(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = admitted(house, customer)
    walk(customer, node, lease, "closed")
    assert code(send(node, lease, signed(node, lease))) == "invalid-state"
