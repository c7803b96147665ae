"""Programs of different versions: an answer may hold more than its reader knows, a request may not."""

from __future__ import annotations

import json

import httpx
import pytest
from pydantic import TypeAdapter, ValidationError

from sandbox.customer.client import LIST_SECONDS, Client
from sandbox.errors import ServerError
from sandbox.node.client import ControlClient
from sandbox.wire import GpuOffer, LeaseInfo, NodeInfo, NonceRequest, PollRequest

NODE = {
    "id": "node-" + "0" * 32, "public_key": "k", "version": "9", "state": "ready", "last_seen": "2026-11-23T00:00:00Z", "inventory": {},
    "capacity": {"slots": 1, "cpus": 1, "memory": 1, "scratch": 1, "added": {"by": "a newer server"}}, "added": 1,
}  # fmt: skip
LEASE = {
    "id": "lease-" + "0" * 32, "tenant": "lab", "name": "x", "state": "placed", "image": "sha256:" + "0" * 64,
    "job_digest": "sha256:" + "0" * 64, "policy_digest": "sha256:" + "0" * 64, "created_at": "2026-11-23T00:00:00Z",
    "updated_at": "2026-11-23T00:00:00Z", "history": [{"state": "placed", "at": "2026-11-23T00:00:00Z", "added": []}], "added": None,
}  # fmt: skip


def answering(body):
    return httpx.MockTransport(lambda _request: httpx.Response(200, json=body))


def test_an_older_customer_reads_a_newer_servers_answers():
    with Client("http://127.0.0.1:1", "t", transport=answering(LEASE)) as client:
        assert client.lease(LEASE["id"]).history[0].state == "placed"
    with Client("http://127.0.0.1:1", "t", transport=answering([NODE])) as client:
        assert client.nodes()[0].capacity.slots == 1
    with Client("http://127.0.0.1:1", "t", transport=answering({"mark": "m", "leases": [LEASE], "added": 1})) as client:
        assert client.waiting().leases[0].id == LEASE["id"]


@pytest.mark.parametrize(("status", "code"), [(422, "bad-input"), (404, "not-found")])
def test_a_newer_agent_lists_what_waits_at_an_older_server(status, code):
    def older(request):
        if request.url.path.endswith("/waiting"):
            body = {"type": "about:blank", "title": code, "status": status, "detail": "lease", "code": code, "details": {}}
            return httpx.Response(status, json=body)
        return httpx.Response(200, json=[LEASE] if request.url.params["state"] == "placed" else [])

    pauses = []
    with Client("http://127.0.0.1:1", "t", transport=httpx.MockTransport(older), sleep=pauses.append) as client:
        found = client.waiting(wait=25)
        assert ([lease.id for lease in found.leases], pauses) == ([LEASE["id"]], [])
        assert client.waiting(mark=found.mark, wait=25) == found
    assert pauses == [LIST_SECONDS]


def test_an_older_node_reads_a_newer_servers_answers():
    job = {"payload": "", "payloadType": "", "signatures": []}
    assignment = {"lease": LEASE["id"], "state": "placed", "job": job, "policy": "", "added": True}
    body = {"assignments": [assignment], "node_state": "ready", "added": "x"}
    with ControlClient("http://127.0.0.1:1", "t", NODE["id"], transport=answering(body)) as client:
        assert client.poll(PollRequest()).assignments[0].lease == LEASE["id"]


def test_a_newer_node_with_gpus_gets_work_from_an_older_server():
    asked = []

    def older(request):
        asked.append(json.loads(request.content))
        if asked[-1].keys() - {"held", "accepting", "wait"}:
            body = {"type": "about:blank", "title": "x", "status": 422, "detail": "gpus", "code": "bad-input", "details": {}}
            return httpx.Response(422, json=body)
        return httpx.Response(200, json={"assignments": [], "node_state": "ready"})

    with ControlClient("http://127.0.0.1:1", "t", NODE["id"], transport=httpx.MockTransport(older)) as client:
        assert client.poll(PollRequest(gpus=(GpuOffer(uuid="GPU-1", memory=1),), wait=0)).node_state == "ready"
        assert [("gpus" in body) for body in asked] == [True, False]
        client.poll(PollRequest())
        assert "gpus" not in asked[-1]


def test_an_answer_that_lacks_something_is_an_error_that_names_it():
    for body in ({"id": 1}, LEASE | {"state": "unheard-of"}, []):
        with (
            Client("http://127.0.0.1:1", "t", transport=answering(body), patience=0) as client,
            pytest.raises(ServerError, match="as agreed"),
        ):
            client.lease(LEASE["id"])


def test_whoever_acts_on_a_message_refuses_what_it_does_not_know():
    for model, body in ((NonceRequest, {"nonce": "00" * 32, "unless": "it rains"}), (LeaseInfo, LEASE), (NodeInfo, NODE)):
        with pytest.raises(ValidationError):
            TypeAdapter(model).validate_json(json.dumps(body))
