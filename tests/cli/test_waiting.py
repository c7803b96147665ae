"""``sealrig wait`` and ``sealrig node wait`` against a real control plane process: what ends them, and with which code."""

from __future__ import annotations

import json
import secrets
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from attestation.signing import SigningKey
from sandbox.customer.client import LIST_SECONDS, Client
from sandbox.wire import MAX_WAIT_SECONDS
from tests.cli.test_with_server import job_file
from tests.patience import LONG
from tests.rig import Rig, run


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with Rig(tmp_path_factory.mktemp("rig")) as rig:
        yield rig


@pytest.fixture(scope="module")
def alice(rig):
    return rig.person("alice")


@pytest.fixture
def lease(alice, tmp_path):
    """A lease that stays where it is, for there is no node to take it."""
    return alice.json("job", "submit", job_file(tmp_path))["lease"]


@pytest.fixture
def node(rig):
    """A node that registered, as (its id, what changes it)."""
    token, name = rig.token("node", "rig"), f"node-{secrets.token_hex(16)}"
    body = {
        "public_key": SigningKey.generate().public.text, "version": "1",
        "capacity": {"slots": 1, "cpus": 1, "memory": 2**30, "scratch": 2**30},
    }  # fmt: skip

    def register():
        answer = httpx.put(f"{rig.url}/v1/nodes/{name}", json=body, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text

    return name, register


def test_a_lease_s_end_is_waited_for_and_its_states_are_told(rig, alice, lease):
    waiting = alice.spawn("waiting", "wait", lease)
    rig.wait_for(lambda: "admitted" in waiting.text(), "the first states", waiting)
    alice.json("lease", "cancel", lease)
    assert waiting.process.wait(LONG) == 1
    told = waiting.text()
    assert told.index("submitted") < told.index("admitted") < told.index("cancelled")
    assert f"error: lease {lease} ended: cancelled" in told


def test_the_time_is_over_with_124_and_where_the_lease_stands(alice, lease):
    result = alice.run("wait", lease, "--timeout", "0s", "--json")
    assert (result.code, result.error["code"], result.json["state"]) == (124, "timed-out", "admitted")
    assert "submitted" in result.err


def test_a_state_that_the_lease_has_come_to_is_enough_also_where_it_has_gone_on(alice, lease):
    assert alice.json("wait", lease, "--for", "submitted")["state"] == "admitted"
    assert alice.run("wait", lease, "--for", "running", "--timeout", "0s").code == 124
    alice.json("lease", "cancel", lease)
    assert alice.json("wait", lease, "--for", "admitted")["state"] == "cancelled"
    assert alice.json("wait", lease, "--for", "cancelled")["state"] == "cancelled"
    result = alice.run("wait", lease, "--for", "running", "--json")
    assert (result.code, result.error["code"]) == (1, "invalid-state")


def test_a_jobs_name_means_its_newest_lease(alice, lease):
    result = alice.run("wait", "test", "--for", "admitted").ok()
    assert result.out.startswith(lease)
    result = alice.run("wait", "no-such-job", "--json")
    assert (result.code, result.error["details"]["rule"]) == (1, "wait-job")


def test_nodes_are_waited_for_until_they_are_ready(rig, node):
    name, register = node
    result = rig.operator.run("node", "wait", name, "--timeout", "0s", "--json")
    assert (result.code, result.error["details"]["seen"]) == (124, "no such node is registered")
    register()
    assert [each["id"] for each in rig.operator.json("node", "wait", name)] == [name]
    assert rig.operator.json("node", "wait")
    rig.operator.json("node", "quarantine", name)
    waiting = rig.operator.spawn("node-wait", "node", "wait", name)
    rig.wait_for(lambda: "quarantined: by the operator" in waiting.text(), "the node's state", waiting)
    rig.operator.json("node", "restore", name)
    assert waiting.process.wait(MAX_WAIT_SECONDS - 1) == 0  # sooner than a question without news is answered
    assert waiting.text().endswith(f"{name}  ready\n")


def test_the_server_itself_is_waited_for_without_a_token(rig):
    assert run("wait", "--server", rig.url, "--json").ok().json == {"server": rig.url, "ready": True}
    with socket.socket() as silent:  # bound, so that nobody else takes the port, and not listening
        silent.bind(("127.0.0.1", 0))
        result = run("wait", "--server", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0s", "--json")
    assert (result.code, result.error["details"]["rule"]) == (124, "wait-timeout")


PROBLEM = json.dumps({"title": "x", "status": 503, "code": "storage-unavailable", "detail": "the bundle store does not answer"}).encode()


@pytest.mark.parametrize(("status", "body", "code"), [(502, b"<html>", 124), (503, PROBLEM, 124), (404, b"<html>", 1)])
def test_a_server_that_is_not_ready_in_time_is_told_from_one_that_is_none(status, body, code):
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            result = run("wait", "--server", f"http://127.0.0.1:{server.server_port}", "--timeout", "0s", "--json")
        finally:
            server.shutdown()
            thread.join()
    assert (result.code, result.error["details"]["rule"] == "wait-timeout") == (code, code == 124)


@pytest.mark.parametrize("words", [["wait", "lease-" + "0" * 32], ["wait", "some-job"], ["node", "wait"]])
def test_a_server_that_does_not_answer_in_the_time_that_was_given_is_124_too(alice, words):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        result = alice.run(*words, "--server", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0s", "--json")
    assert (result.code, result.error["code"], result.error["details"]["rule"]) == (124, "timed-out", "wait-timeout")


def test_an_older_server_that_holds_no_question_is_asked_seldom():
    slept = []
    old = httpx.MockTransport(lambda _request: httpx.Response(200, json=[]))
    with Client("http://127.0.0.1:1", None, transport=old, sleep=slept.append) as control:
        mark, found = control.changed_nodes()
        assert (found, slept) == ([], [])
        control.changed_nodes(mark=mark, wait=20)
    assert slept == [LIST_SECONDS]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["wait", "--for", "running"], "wait-lease"),
        (["wait", "lease-x"], "lease-id"),
        (["wait", "lease-x", "--timeout", "soon"], "duration"),
        (["node", "wait", "rig-7"], "node-id"),
    ],
)
def test_what_nobody_can_wait_for_is_refused(alice, words, rule):
    result = alice.run(*words, "--json")
    assert (result.code, result.error["details"]["rule"]) == (2, rule)
