"""Qualified GPUs on the server: who may say so, what is kept and logged, what policies and people see of it."""

from __future__ import annotations

import base64
import json
from datetime import timedelta

import pytest

from attestation.canonical import sha256_digest
from attestation.evidence import DeviceCounts, GpuFact
from attestation.signing import Envelope, SigningKey
from sandbox.control.database.models import EventRow
from sandbox.node.client import ControlClient
from sandbox.node.gpu.measure import QUICK
from sandbox.node.layout import NodeFolder
from sandbox.node.qualification import grades, keep, kept, sign
from tests.control.actors import POLICY, Node, code, nonce, ok
from tests.control.conftest import House
from tests.control.scene import UUIDS, card, qualification
from tests.control.test_console_http import sign_in
from tests.control.test_story import admitted

RULE = b"""\
  rules:
    - name: leased-gpus-are-fit-for-training
      expression: 'node.gpus.all(gpu, !gpu.leased || gpu.grade == "training")'
      message: "training jobs run on GPUs that were qualified for it"
"""


def send(node: Node, envelope: Envelope, to: str = ""):
    return node.put(f"/v1/nodes/{to or node.id}/qualification", {"qualification": envelope.to_json()})


def test_it_is_kept_logged_and_shown(house: House) -> None:
    node, at = house.node(gpus=UUIDS[:2]), house.clock()
    envelope = qualification(node, card(UUIDS[0]), card(UUIDS[1], link=3.0), at=at)
    for _ in range(2):  # the same twice is one
        info = ok(send(node, envelope))
    assert [each["grade"] for each in info["qualification"]["cards"]] == ["training", "inference"]
    with house.control.database.read() as session:
        (event,) = session.query(EventRow).filter(EventRow.type == "node.qualified").all()
        leaf = json.loads(event.leaf)
    assert event.log_index is not None
    assert leaf["evidence"]["digest"] == envelope.digest == info["qualification"]["digest"]
    assert (leaf["outcome"], leaf["resource_ref"]) == ("inference", node.id)


def test_only_the_node_itself_says_it_and_nothing_older_or_to_come(house: House) -> None:
    node, other, at = house.node(), house.node(), house.clock()
    ok(send(node, qualification(node, card(UUIDS[0]), at=at)))
    stranger = SigningKey.generate()
    assert code(send(node, qualification(node, card(UUIDS[0]), at=at, key=stranger))) == "bad-signature"
    assert code(send(other, qualification(node, card(UUIDS[0]), at=at), to=node.id)) == "not-found"
    assert code(send(node, qualification(node, at=at, of=other.id))) == "bad-input"
    assert code(send(node, qualification(node, at=at - timedelta(seconds=1)))) == "invalid-state"
    assert code(send(node, qualification(node, at=at + timedelta(hours=1)))) == "bad-input"
    assert code(send(node, Envelope.from_json({**qualification(node, at=at).to_json(), "payload": "e30="}))) == "bad-signature"


@pytest.mark.parametrize(("link", "qualified", "ends"), [(12.0, True, None), (3.0, True, "denied"), (12.0, False, "denied")])
def test_a_policy_asks_for_the_grade_of_the_leased_gpus_alone(house: House, link, qualified, ends) -> None:
    operator, customer, node = house.person("operator"), house.customer(), house.node(gpus=UUIDS[:2])
    ok(operator.put("/v1/policies/lab", {"raw": base64.b64encode(POLICY + RULE).decode()}))
    if qualified:
        ok(send(node, qualification(node, card(UUIDS[0], link=link), card(UUIDS[1], fp32=0.39), at=house.clock())))
    lease = admitted(house, customer, policyDigest=sha256_digest(POLICY + RULE))
    node.poll()
    ok(nonce(customer, lease))
    gpus = tuple(GpuFact(uuid=uuid, name="GPU", memory=2**34, leased=uuid == UUIDS[0]) for uuid in UUIDS[:2])
    wipes = {"node": None, UUIDS[0]: None}
    documents = node.evidence(lease, gpus=gpus, device_counts=DeviceCounts(pci=2, driver=2), previous_wipes=wipes)
    ok(node.report(lease, "attested", documents=documents))
    assert node.assignment(lease)["end"] == ends
    if ends:
        assert [each["rule"] for each in customer.lease(lease)["denials"]] == ["rules.leased-gpus-are-fit-for-training"]


def test_the_console_shows_the_rigs_cards(house: House) -> None:
    node = house.node(gpus=UUIDS)
    ok(send(node, qualification(node, card(UUIDS[0]), card(UUIDS[1], link=0.25, name="<script>alert(1)</script>"), at=house.clock())))
    sign_in(house, "operator", "operator")
    page = house.http.get("/nodes").text
    assert page.count('<svg role="img"') == 1
    assert "link-to-device: 0.25 GB/s, inference needs at least 2.85 GB/s" in page
    assert "unknown" in page  # the third was never qualified
    assert "<script>" not in page
    assert " style=" not in page
    assert f'<title id="plot-{node.id}-title">' in page


def test_the_console_shows_what_the_drivers_tell(house: House) -> None:
    gpu = {
        "uuid": UUIDS[0], "name": "NVIDIA A100", "memory": 2**36,
        "link": {"generation": 1, "width": 8, "generation_most": 4, "width_most": 16},
        "errors": {"ecc": True, "uncorrected": 2, "remapping_failed": True, "remapping_pending": False},
        "thermals": {"temperature": 64, "throttled_by": ["power cap"]}, "mig": True, "nvlinks": 12, "driver": "580.178.04", "serial": "13",
    }  # fmt: skip
    rows = (
        "gen 1 x8, of gen 4 x16", "ECC on, 2 uncorrected, remapping failed", "64 °C, held back: power cap", "MIG on, 12 NVLinks",
        "580.178.04, 13", "580.178.04, confidential computing off, RmProfilingAdminOnly=1",
    )  # fmt: skip
    driver = {"version": "580.178.04", "confidential": False, "parameters": {"RmProfilingAdminOnly": "1"}}
    with_gpu, without = house.node(gpus=UUIDS[:1]), house.node()
    for node, inventory, gpus in (
        (with_gpu, {"gpus": [gpu], "gpuDriver": driver}, UUIDS[:1]),
        (without, {"gpus": [], "gpuDetail": "1 on the bus, but no driver shows one"}, ()),
    ):
        capacity = {"slots": 1, "cpus": 1, "memory": 1, "scratch": 1, "gpus": gpus}
        ok(
            node.put(
                f"/v1/nodes/{node.id}", {"public_key": node.key.public.text, "version": "1", "inventory": inventory, "capacity": capacity}
            )
        )
    sign_in(house, "operator", "operator")
    page = house.http.get("/nodes").text
    assert [words for words in (*rows, "1 on the bus, but no driver shows one") if words not in page] == []


def test_a_damaged_inventory_does_not_harm_the_console(house: House) -> None:
    node = house.node(gpus=UUIDS[:1])
    strange = {"gpus": [{"uuid": 7, "memory": "much", "link": [], "errors": {"corrected": {}}, "thermals": None}, None, {}]}
    body = {"public_key": node.key.public.text, "version": "1", "inventory": strange,
            "capacity": {"slots": 1, "cpus": 1, "memory": 1, "scratch": 1, "gpus": UUIDS[:1]}}  # fmt: skip
    ok(node.put(f"/v1/nodes/{node.id}", body))
    sign_in(house, "operator", "operator")
    assert house.http.get("/nodes").status_code == 200


def test_what_the_node_signs_and_keeps_is_what_the_server_takes(house: House, tmp_path) -> None:
    node, folder = house.node(), NodeFolder(tmp_path)
    envelope = sign(node.id, node.key, QUICK, (card(UUIDS[0], link=3.0),), started_at=house.clock(), driver="580.178.04")
    keep(folder, envelope)
    assert kept(folder, node.key.public)[0] == envelope
    assert grades(folder, node.key.public) == {UUIDS[0]: "inference"}
    assert grades(folder, SigningKey.generate().public) == {}
    client = ControlClient("http://server", node.token, node.id, transport=house.http._transport)
    for _ in range(2):
        info = client.qualify(kept(folder, node.key.public)[0])
    assert [each.grade for each in info.qualification.cards] == ["inference"]
    assert info.qualification.digest == envelope.digest
