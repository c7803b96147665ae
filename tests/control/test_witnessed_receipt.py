"""Receipts of a server with witnesses: cosigned by the quorum that a trust file wants, and refused while a witness is away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.canonical import canonical_json
from attestation.receipt import verify_receipt
from attestation.trust import Trust
from tests.control.actors import Customer, ok, walk
from tests.control.server_process import ServerProcess
from tests.control.test_witnessed_server import WitnessProcess
from tests.patience import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def server(folder: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(folder)
    yield process
    process.close()


@pytest.fixture
def witnesses(folder: Path, server: ServerProcess) -> Iterator[list[WitnessProcess]]:
    """Two witnesses, and the server started anew so that it publishes nothing without both."""
    vkey = server.http.get("/log/vkey").text.strip()
    running = [WitnessProcess(folder / name, vkey) for name in ("one", "two")]
    lines = [f"witness {number} {each.vkey} {each.url}\n" for number, each in enumerate(running)]
    policy = folder / "witnesses.txt"
    policy.write_text(f"log {vkey}\n{''.join(lines)}group both all 0 1\nquorum both\n")
    server.stop()
    server.more = ("--witness-policy", str(policy))
    server.start()
    yield running
    for each in running:
        if each.process.poll() is None:
            each.stop()


def submitted(customer: Customer) -> str:
    return str(ok(customer.submit(customer.job()))["id"])


def first_failure(raw: bytes, rules: Trust) -> str | None:
    return next((step.step for step in verify_receipt(raw, rules).steps if not step.ok), None)


def without(raw: bytes, name: str) -> bytes:
    """The receipt with one signer's lines taken out, in the checkpoint and in each proof, which holds the same one."""
    tree = json.loads(raw)
    log = tree["log"]
    checkpoint = "".join(line for line in log["checkpoint"].splitlines(keepends=True) if not line.startswith(f"— {name} "))
    assert checkpoint != log["checkpoint"]
    for entry in log["entries"]:
        entry["proof"] = entry["proof"].replace(log["checkpoint"], checkpoint)
    log["checkpoint"] = checkpoint
    return canonical_json(tree)


def test_a_receipt_is_cosigned_by_the_quorum_and_waits_for_it(server: ServerProcess, witnesses: list[WitnessProcess]) -> None:
    vkey = server.http.get("/log/vkey").text.strip()
    customer, node = server.customer(), server.node()
    lease = submitted(customer)
    walk(customer, node, lease, "closed")
    receipt = f"/v1/leases/{lease}/receipt"
    eventually(lambda: customer.get(receipt).status_code == 200)
    raw = customer.get(receipt).content
    spec = {
        "level": "software",
        "nodes": {node.id: node.key.public.text},
        "log": {"origin": vkey.partition("+")[0], "key": vkey},
        "interlock": "claimed",
        "witnesses": [each.vkey for each in witnesses],
    }
    rules = {
        least: Trust.from_tree({"apiVersion": "sealrig/v1", "kind": "Trust", "spec": spec | {"witnessQuorum": least}}) for least in (1, 2)
    }
    assert first_failure(raw, rules[2]) is None
    for name in ("one.example", "two.example"):
        assert first_failure(without(raw, name), rules[2]) == "log-witnesses"
        assert first_failure(without(raw, name), rules[1]) is None

    # A witness goes: what happens meanwhile is acknowledged and listed, and cannot be proven to anybody.
    witnesses[1].stop()
    lease = submitted(customer)
    ok(customer.post(f"/v1/leases/{lease}/cancel"))
    receipt = f"/v1/leases/{lease}/receipt"
    operator = server.operator
    index = ok(operator.get(f"/v1/log/entries?lease={lease}&type=lease.cancelled"))["entries"][0]["index"]
    for place in (receipt, f"/v1/log/entries/{index}"):
        refused = operator.get(place)
        assert (refused.status_code, refused.json()["details"]["rule"]) == (409, "log-published")
        assert refused.json()["details"]["wanted"] == f"≥ {index + 1}"
    server.http.post("/login", data={"token": operator.token})
    for place in (f"/audit/{index}", f"/audit/{index}/proof", f"/audit/{index}/leaf", f"/leases/{lease}/receipt"):
        page = server.http.get(place)
        assert (page.status_code, "witnesses" in page.text) == (409, True), place
    row = server.http.get(f"/audit?lease={lease}&type=lease.cancelled").text
    assert "awaits witnesses" in row
    assert f"/audit/{index}/proof" not in row

    witnesses[1].start(vkey)
    eventually(lambda: customer.get(receipt).status_code == 200)
    assert first_failure(customer.get(receipt).content, rules[2]) is None
    assert server.http.get(f"/audit/{index}").status_code == 200
    assert f"/audit/{index}/proof" in server.http.get(f"/audit?lease={lease}").text
