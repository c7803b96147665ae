"""Every refusal of the lease story: its own status and code, and nothing changed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from attestation.canonical import canonical_json, sha256_digest
from attestation.signing import SigningKey, b64encode, sign_envelope
from sandbox.job import JOB_PAYLOAD_TYPE
from sandbox.model import new_id
from sandbox.sealing.keys import Identity
from tests.control.actors import Customer, Node, Person, code, nonce, ok, walk
from tests.control.conftest import House


def admitted(customer: Customer, **changes: Any) -> str:
    answer = customer.submit(customer.job(**changes))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def no_lease(customer: Customer) -> None:
    assert ok(customer.get("/v1/leases")) == []


# ---- submission


def test_a_job_signed_by_an_identity_that_is_not_enrolled(house: House) -> None:
    stranger = Customer(house.http, house.token("customer", "lab"), "lab")
    assert code(stranger.submit(stranger.job())) == "bad-job"
    no_lease(stranger)


def test_a_job_signed_with_another_key_than_the_identity_it_names(house: House) -> None:
    customer = house.customer()
    forged = sign_envelope(customer.job().payload, JOB_PAYLOAD_TYPE, SigningKey.generate())
    assert code(customer.submit(forged)) == "bad-signature"
    no_lease(customer)


def test_a_job_changed_after_signing(house: House) -> None:
    customer = house.customer()
    tree = customer.job().to_json()
    tree["payload"] = tree["payload"][:-8] + ("AAAAAAA=" if tree["payload"][-1] == "=" else "AAAAAAAA")
    answer = customer.post("/v1/leases", {"job": tree})
    assert code(answer) in {"bad-signature", "bad-format"}
    no_lease(customer)


def test_a_job_for_another_tenant(house: House) -> None:
    customer = house.customer()
    assert code(customer.submit(customer.job(tenant="other"))) == "bad-job"


def test_another_tenants_identity_does_not_count(house: House) -> None:
    lab, works = house.customer("lab"), house.customer("works")
    lab.identity = works.identity
    assert code(lab.submit(lab.job())) == "bad-job"


def test_a_policy_that_is_not_the_present_one_is_told_with_both_digests(house: House) -> None:
    customer = house.customer()
    answer = customer.submit(customer.job(policyDigest="sha256:" + "0" * 64))
    assert (answer.status_code, code(answer)) == (409, "invalid-state")
    details = answer.json()["details"]
    assert details["seen"] == "sha256:" + "0" * 64
    assert details["wanted"] == house.control.settings.policy.digest


def test_a_bundle_that_was_never_pushed_or_is_another_tenants(house: House) -> None:
    lab, works = house.customer("lab"), house.customer("works")
    foreign = house.bundle(works).digest
    for digest in ("blake3:" + "0" * 64, foreign):
        assert code(lab.submit(lab.job(inputs=[digest]))) == "bad-job"
    no_lease(lab)


def test_a_denied_job_names_every_reason_and_stays_denied(house: House) -> None:
    customer = house.customer()
    job = customer.job(spec={"resources": {"memory": "64Gi", "cpus": 64}})
    for _ in range(2):
        answer = customer.submit(job)
        assert (answer.status_code, code(answer)) == (403, "denied")
        details = answer.json()["details"]
        assert {reason["rule"] for reason in details["reasons"]} == {"memory-max", "cpus-max"}
        assert all(reason["seen"] and reason["wanted"] and reason["fix"] for reason in details["reasons"])
    info = customer.lease(details["lease"])
    assert (info["state"], info["outcome"], len(info["denials"])) == ("denied", "denied", 2)
    assert [step["state"] for step in info["history"]] == ["submitted", "denied"]


def test_the_same_job_twice_is_one_lease(house: House) -> None:
    customer = house.customer()
    job = customer.job()
    first, second = customer.submit(job), customer.submit(job)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert len(ok(customer.get("/v1/leases"))) == 1


@pytest.mark.parametrize("tenant", ["lab", "works"])
def test_a_lease_id_is_used_once(house: House, tenant: str) -> None:
    customer = house.customer("lab")
    lease = admitted(customer)
    other = house.customer(tenant)
    answer = other.submit(other.job(lease=lease))
    assert code(answer) == "invalid-state"


def test_duplicate_keys_in_a_signed_job(house: House) -> None:
    customer = house.customer()
    payload = customer.job().payload[:-1] + b',"tenant":"works"}'
    assert code(customer.submit(sign_envelope(payload, JOB_PAYLOAD_TYPE, customer.identity.signing_key))) == "bad-format"


def test_a_job_with_an_unknown_key_names_the_nearest(house: House) -> None:
    customer = house.customer()
    answer = customer.submit(customer.job(spec={"comand": ["x"]}))
    assert code(answer) == "bad-job"
    assert "command" in answer.json()["details"]["fix"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"job": 1}', b'{"job": {}, "more": 1}', b"\xff\xfe", b"[" * 100_000, b'{"job":' + b"1" * 5000 + b"}"]
)
def test_bodies_that_are_not_the_message(house: House, body: bytes) -> None:
    customer = house.customer()
    answer = customer.call("POST", "/v1/leases", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert code(answer) in {"bad-input", "bad-request", "bad-format"}


def test_a_body_over_the_bound(house: House) -> None:
    customer = house.customer()
    answer = customer.call("POST", "/v1/leases", content=b" " * (8 * 2**20 + 1), headers={"Content-Type": "application/json"})
    assert (answer.status_code, code(answer)) == (413, "limit-exceeded")


def test_an_envelope_over_the_bound(house: House) -> None:
    customer = house.customer()
    job = customer.job()
    big = sign_envelope(job.payload + b" " * 1_200_000, JOB_PAYLOAD_TYPE, customer.identity.signing_key)
    assert code(customer.submit(big)) == "limit-exceeded"


# ---- evidence and grant


def placed(customer: Customer, node: Node, **changes: Any) -> str:
    lease = admitted(customer, **changes)
    walk(customer, node, lease, "placed")
    return lease


def test_a_nonce_needs_a_placed_lease_and_stays(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = admitted(customer)
    assert code(nonce(customer, lease)) == "invalid-state"
    node.poll()
    ok(nonce(customer, lease))
    ok(nonce(customer, lease))
    assert code(nonce(customer, lease, "00" * 32)) == "invalid-state"
    assert customer.lease(lease)["nonce"] == "5a" * 32
    assert code(nonce(customer, lease, "xyz")) == "bad-input"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"nonce": "00" * 32}, "evidence-nonce"),
        ({"lease": "lease-" + "0" * 32}, "evidence-lease"),
        ({"node": "node-" + "0" * 32}, "evidence-node"),
        ({"node_key": SigningKey.generate().public.text}, "evidence-node-key"),
        ({"job_digest": "sha256:" + "0" * 64}, "evidence-job"),
        ({"policy_digest": "sha256:" + "0" * 64}, "evidence-policy"),
        ({"plan_digest": "sha256:" + "0" * 64}, "evidence-plan"),
        ({"image": "sha256:" + "0" * 64}, "evidence-image"),
    ],
)
def test_evidence_that_answers_something_else(house: House, change: dict[str, str], rule: str) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    ok(nonce(customer, lease))
    answer = node.report(lease, "attested", documents=node.evidence(lease, **change))
    assert (answer.status_code, code(answer)) == (422, "bad-input")
    assert answer.json()["details"]["rule"] == rule
    assert customer.lease(lease)["state"] == "placed"


def test_evidence_before_the_nonce(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    assert code(node.attest(lease)) == "invalid-state"


def test_replayed_evidence_of_another_lease(house: House) -> None:
    customer, node = house.customer(), house.node()
    first, second = placed(customer, node), placed(customer, node)
    ok(nonce(customer, first))
    ok(nonce(customer, second))
    assert code(node.report(second, "attested", documents=node.evidence(first))) == "bad-input"


def test_a_grant_signed_by_somebody_else(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    walk(customer, node, lease, "placed")
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    customer.identity = Identity.generate()
    customer.enrol()
    assert code(customer.unlock(lease)) == "bad-signature"
    assert customer.lease(lease)["state"] == "attested"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"lease": "lease-" + "0" * 32}, "grant-lease"),
        ({"evidence_digest": "sha256:" + "0" * 64}, "grant-evidence"),
        ({"lease_public_key_digest": "sha256:" + "0" * 64}, "grant-lease-key"),
        ({"bundles": ("blake3:" + "0" * 64,)}, "grant-bundles"),
        ({"expires_at": datetime.now(UTC) - timedelta(seconds=1)}, "grant-expiry"),
    ],
)
def test_a_grant_for_something_else(house: House, change: dict[str, Any], rule: str) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    answer = customer.post(f"/v1/leases/{lease}/grant", {"grant": customer.grant(lease, **change).to_json()})
    assert (answer.status_code, code(answer)) == (422, "bad-input")
    assert answer.json()["details"]["rule"] == rule
    assert customer.lease(lease)["state"] == "attested"


def test_the_same_grant_twice_is_one_and_a_second_grant_is_refused(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    grant = customer.grant(lease)
    for _ in range(2):
        assert ok(customer.post(f"/v1/leases/{lease}/grant", {"grant": grant.to_json()}))["state"] == "unlocked"
    assert code(customer.unlock(lease)) == "invalid-state"
    assert node.assignment(lease)["grant"] == grant.to_json()


def test_the_policy_is_asked_again_with_the_nodes_facts(house: House) -> None:
    raw = house.control.settings.policy.raw + b"  posture: {require: [swap-off]}\n"
    operator = house.person("operator")
    customer, node = house.customer(), house.node()
    ok(operator.put("/v1/policies/lab", {"raw": b64encode(raw)}))
    lease = placed(customer, node, policyDigest=sha256_digest(raw))
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    answer = customer.unlock(lease)
    assert (answer.status_code, code(answer)) == (403, "denied")
    assert answer.json()["details"]["reasons"][0]["rule"] == "posture-required"
    assert node.assignment(lease)["end"] == "denied"
    ok(node.report(lease, "wiping", outcome="denied"))
    assert ok(node.report(lease, "denied", documents=node.wipe(lease)))["state"] == "denied"


def test_the_agents_refusal_ends_the_lease_through_the_wipe(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    reason = {"rule": "level", "seen": "software", "wanted": "measured", "fix": "another node"}
    ok(customer.post(f"/v1/leases/{lease}/refusal", {"reasons": [reason]}))
    assert code(customer.unlock(lease)) == "denied"
    assert node.assignment(lease)["end"] == "denied"
    ok(node.report(lease, "wiping", outcome="denied"))
    info = ok(node.report(lease, "denied", documents=node.wipe(lease)))
    assert (info["state"], info["denials"]) == ("denied", [reason])
    assert customer.get(f"/v1/leases/{lease}/receipt").status_code == 200


# ---- reports


def test_a_report_signed_by_another_key(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    assert code(node.report(lease, "wiping", key=SigningKey.generate(), outcome="node-failure")) == "bad-signature"


def test_a_report_about_another_lease_or_node(house: House) -> None:
    customer, node, other = house.customer(), house.node(), house.node()
    lease = placed(customer, node)
    envelope = node.signed_report(lease, "wiping", outcome="node-failure")
    assert code(node.send_report(new_id("lease"), envelope)) == "bad-input"
    assert code(other.send_report(lease, envelope)) == "bad-signature"
    assert code(other.report(lease, "wiping", outcome="node-failure")) == "not-found"


@pytest.mark.parametrize("state", ["submitted", "admitted", "unlocked", "running", "closed", "quarantined", "denied"])
def test_a_report_cannot_skip(house: House, state: str) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    assert code(node.report(lease, state)) == "invalid-state"
    assert customer.lease(lease)["state"] == "placed"


@pytest.mark.parametrize(
    "fields", [{"documents": {"run": "%%%"}}, {"at": "yesterday"}, {"outcome": "fine"}, {"result": "blake3:xyz"}, {"more": 1}, {"v": 2}]
)
def test_reports_that_are_not_reports(house: House, fields: dict[str, Any]) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    tree = json.loads(node.signed_report(lease, "wiping", outcome="node-failure").payload) | fields
    envelope = sign_envelope(canonical_json(tree), "application/vnd.sealrig.report+json", node.key)
    assert code(node.send_report(lease, envelope)) == "bad-input"


def test_wiping_needs_an_outcome_a_run_record_once_unlocked_and_a_result_that_arrived(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    assert code(node.report(lease, "wiping")) == "bad-input"
    walk(customer, node, placed(customer, node), "placed")
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    ok(customer.unlock(lease))
    assert code(node.report(lease, "wiping", outcome="node-failure")) == "bad-input"
    result = "blake3:" + "0" * 64
    documents = node.run_record(lease, result)
    answer = node.report(lease, "wiping", outcome="succeeded", exit_code=0, result=result, documents=documents)
    assert answer.json()["details"]["rule"] == "report-result"
    assert customer.lease(lease)["state"] == "unlocked"


@pytest.mark.parametrize(
    ("proven", "state", "right"),
    [
        (True, "closed", True),
        (False, "closed", False),
        (True, "quarantined", False),
        (False, "quarantined", True),
        (True, "cancelled", False),
    ],
)
def test_the_end_must_follow_from_the_wipe(house: House, proven: bool, state: str, right: bool) -> None:  # noqa: FBT001
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    walk_on(customer, node, lease)
    answer = node.report(lease, state, documents=node.wipe(lease, proven=proven))
    assert answer.is_success is right, answer.text
    assert customer.lease(lease)["state"] == (state if right else "wiping")
    quarantined = ok(house.person("operator").get(f"/v1/nodes/{node.id}"))["state"] == "quarantined"
    assert quarantined is (right and state == "quarantined")


def walk_on(customer: Customer, node: Node, lease: str) -> None:
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    ok(customer.unlock(lease))
    ok(node.report(lease, "running"))
    ok(node.report(lease, "collecting"))
    ok(node.report(lease, "wiping", outcome="succeeded", exit_code=0, documents=node.run_record(lease)))


def test_an_end_needs_wipe_and_certificate_by_the_nodes_own_key(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = placed(customer, node)
    walk_on(customer, node, lease)
    whole = node.wipe(lease)
    assert code(node.report(lease, "closed")) == "bad-input"
    assert code(node.report(lease, "closed", documents={"wipe": whole["wipe"]})) == "bad-input"
    assert code(node.report(lease, "closed", documents=node.wipe(lease, key=SigningKey.generate()))) == "bad-signature"
    assert code(node.report(lease, "closed", documents={**whole, "certificate": node.wipe(lease)["certificate"]})) == "bad-input"
    ok(node.report(lease, "closed", documents=whole))
    ok(node.report(lease, "closed", documents=whole))
    assert code(node.report(lease, "wiping", outcome="succeeded")) == "invalid-state"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/leases/lease-1",
        "/v1/leases/..%2f..%2fetc",
        "/v1/nodes/node-x",
        "/v1/bundles/blake3:zz",
        "/log/tile/../log.key",
        "/log/tile/%2e%2e/%2e%2e/log.key",
        "/v1/uploads/upload-1",
        "/nothing",
    ],
)
def test_names_are_never_paths(house: House, path: str) -> None:
    answer: Any = Person(house.http, house.token("operator", "operator")).get(path)
    assert answer.status_code in {404, 405, 422, 403}
    assert answer.headers["content-type"] == "application/problem+json"
