"""A house with something on every page of the console: leases that went well, badly and not at all, a quarantined node, an unfit GPU."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from attestation.canonical import sha256_digest
from attestation.qualification import QUALIFICATION_PAYLOAD_TYPE, Card, Measurement, Qualification, verdict
from attestation.signing import Envelope, SigningKey, b64encode, sign_envelope
from tests.control.actors import IMAGE, POLICY, Customer, Node, nonce, ok, walk
from tests.control.conftest import House

UUIDS = ("GPU-955ef018-3bd9-5f27-80b3-fa20ee8d19c5", "GPU-0a1b2c3d-0000-1111-2222-333344445555", "GPU-11111111-0000-1111-2222-33334444aaaa")
NAME = "NVIDIA GeForce RTX 3090"


@dataclass(frozen=True)
class Scene:
    """What stands in the house, by id."""

    closed: str
    quarantined: str
    denied: str
    running: str
    bad_node: str
    gpu_node: str
    erased: str


def furnish(house: House) -> Scene:
    """Play the scene; it ends with one lease that still runs."""
    acme, works, gone = (house.customer(name) for name in ("acme", "works", "gone"))
    operator, good, bad = house.person("operator"), house.node(), house.node()
    closed = submit(acme, "fine-tune-llama")
    walk(acme, good, closed, "closed")
    failing = submit(works, "render-frames")
    walk(works, bad, failing, "collecting")
    ok(bad.report(failing, "wiping", outcome="succeeded", exit_code=0, documents=bad.run_record(failing)))
    ok(bad.report(failing, "quarantined", documents=bad.wipe(failing, proven=False)))
    denied = submit(works, "mine-coins", memory="64Gi")
    erased = submit(gone, "survey")
    ok(gone.post(f"/v1/leases/{erased}/cancel"))
    (entry,) = ok(operator.get(f"/v1/log/entries?type=lease.submitted&lease={erased}"))["entries"]
    ok(operator.post(f"/v1/subjects/{entry['tenant']}/erase"))
    gpu_node = _gpu_node(house)
    ok(operator.put("/v1/policies/works", {"raw": b64encode(POLICY.replace(b"memory: {max: 4Gi}", b"memory: {max: 16Gi}"))}))
    running = submit(acme, "evaluate-checkpoints")
    good.poll()
    ok(nonce(acme, running))
    ok(good.attest(running))
    ok(acme.unlock(running))
    ok(good.report(running, "running"))
    return Scene(closed, failing, denied, running, bad.id, gpu_node, erased)


def submit(customer: Customer, name: str, **resources: str) -> str:
    """Submit a job of this name; return its lease, admitted or denied."""
    spec: dict[str, Any] = {"image": IMAGE, "command": ["python3", "train.py"]} | ({"resources": resources} if resources else {})
    job = {"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
    envelope = customer.job(job=job, policyDigest=sha256_digest(POLICY))
    answer = customer.submit(envelope)
    told = answer.json()
    return str(told["details"]["lease"] if told.get("code") == "denied" else ok(answer)["id"])


def card(uuid: str, link: float = 12.0, fp32: float = 24.0, name: str = NAME) -> Card:
    """A card that was measured; its link and its products decide what it is fit for."""
    rows = (
        Measurement(id="memory-bandwidth", seen=820.0, unit="GB/s", training=655.2, inference=655.2, source="data sheet"),
        Measurement(id="matmul-fp32", seen=fp32, unit="TFLOPS", training=10.7, inference=10.7, source="data sheet"),
        Measurement(id="matmul-fp16", seen=48.0, unit="TFLOPS", training=12.0, inference=7.1, source="data sheet"),
        Measurement(id="link-to-device", seen=link, unit="GB/s", training=5.5, inference=2.85, source="marketplaces"),
    )
    grade, reasons = verdict(rows)
    return Card(uuid=uuid, name=name, pci_id="10de:2204", measurements=rows, grade=grade, reasons=reasons)


def qualification(node: Node, *cards: Card, at: datetime, key: SigningKey | None = None, of: str = "") -> Envelope:
    document = Qualification(
        node=of or node.id, mode="quick", started_at=at, ended_at=at, floors="sha256:" + "0" * 64, floors_date="2026-11-23", cards=cards
    )
    return sign_envelope(document.to_payload(), QUALIFICATION_PAYLOAD_TYPE, key or node.key)


def _gpu_node(house: House) -> str:
    """A node with three cards: one fit for training, one for inference, one for nothing."""
    node, at = Node(house.http, house.token("node", "operator"), "operator"), house.clock()
    inventory = {"gpus": [_told(uuid, number) for number, uuid in enumerate(UUIDS)]}
    capacity = {"slots": 2, "cpus": 32, "memory": 256 * 2**30, "scratch": 2**40, "gpus": UUIDS}
    ok(
        node.put(
            f"/v1/nodes/{node.id}",
            {"public_key": node.key.public.text, "version": "1", "capacity": capacity, "inventory": inventory},
        )
    )
    cards = (card(UUIDS[0]), card(UUIDS[1], link=3.1), card(UUIDS[2], link=0.4, fp32=9.8))
    envelope = qualification(node, *cards, at=at)
    ok(node.put(f"/v1/nodes/{node.id}/qualification", {"qualification": envelope.to_json()}))
    return node.id


def _told(uuid: str, number: int) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": NAME,
        "memory": 24 * 2**30,
        "driver": "580.178.04",
        "vbios": "94.02.42.80.c3",
        "serial": f"132422100071{number}",
        "link": {"generation": 4 if number < 2 else 1, "width": (16, 4, 1)[number], "generation_most": 4, "width_most": 16},
        "errors": {"uncorrected": 0, "corrected": 3 * number, "retired_pages": None, "remapped_rows": number},
        "thermals": {"temperature": 41 + 9 * number, "power": 28.0 + number, "power_limit": 350.0},
    }
