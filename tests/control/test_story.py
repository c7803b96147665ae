from __future__ import annotations

from attestation.log.leaf import Leaf
from attestation.log.reader import LogReader
from attestation.receipt import verify_receipt
from attestation.trust import Trust
from tests.control.actors import Customer, Node, make_bundle, nonce, ok
from tests.control.conftest import House


def admitted(house: House, customer: Customer, **changes: object) -> str:
    answer = customer.submit(customer.job(**changes))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def trust_of(house: House, node: Node) -> Trust:
    vkey = house.control.vkey
    return Trust.from_tree(
        {
            "apiVersion": "sealrig/v1",
            "kind": "Trust",
            "spec": {
                "level": "software",
                "nodes": {node.id: node.key.public.text},
                "log": {"origin": vkey.partition("+")[0], "key": vkey},
                "interlock": "claimed",
            },
        }
    )


def test_a_lease_runs_from_upload_to_a_receipt_that_verifies_offline(house: House) -> None:
    customer, node = house.customer(), house.node()
    bundle = house.bundle(customer)
    lease = admitted(house, customer, inputs=[bundle.digest])
    node.poll()
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    ok(customer.unlock(lease, bundle.digest))
    assert node.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    ok(node.report(lease, "running"))
    for seq in range(3):
        answer = node.call("PUT", f"/v1/nodes/{node.id}/leases/{lease}/logs/{seq}", content=f"chunk {seq}".encode())
        assert answer.status_code == 204
    ok(node.report(lease, "collecting"))
    result = make_bundle(house.folder, customer.identity, b"results")
    node.upload(result.raw, result.digest, lease=lease)
    ok(
        node.report(
            lease, "wiping", outcome="succeeded", exit_code=0, result=result.digest, documents=node.run_record(lease, result.digest)
        )
    )
    ok(node.report(lease, "closed", documents=node.wipe(lease)))

    info = customer.lease(lease)
    assert (info["state"], info["outcome"], info["exit_code"], info["result"], info["level"]) == (
        "closed",
        "succeeded",
        0,
        result.digest,
        "software",
    )
    states = ["submitted", "admitted", "placed", "attested", "unlocked", "running", "collecting", "wiping", "closed"]
    assert [step["state"] for step in info["history"]] == states
    page = ok(customer.get(f"/v1/leases/{lease}/logs"))
    assert page["final"]
    assert [chunk["seq"] for chunk in page["chunks"]] == [0, 1, 2]
    assert customer.get(f"/v1/bundles/{result.digest}/content").content == result.raw

    logged = dict(LogReader(house.control.log_files).entries(0, 1000))
    for step in info["history"]:
        leaf = Leaf.from_bytes(logged[step["log_index"]])
        assert leaf.type == f"lease.{step['state']}"
        assert leaf.resource_ref == lease
    checked = verify_receipt(customer.get(f"/v1/leases/{lease}/receipt").content, trust_of(house, node))
    assert checked.ok, [step for step in checked.steps if not step.ok]
