"""The main job as customers, operator and auditor see it: real control plane, real node, real engine, commands only."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.rig import Rig

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def rig(tmp_path_factory, busybox_image):
    with Rig(tmp_path_factory.mktemp("story")) as rig:
        rig.node = rig.add_node(slots=2)
        rig.image = busybox_image
        yield rig


def customer(rig, name):
    person = rig.person(name)
    person.json("trust", "init", "-o", person.trust)
    return person


@pytest.fixture(scope="module")
def alice(rig):
    return customer(rig, "alice")


@pytest.fixture(scope="module")
def bob(rig):
    return customer(rig, "bob")


def submit(rig, person, script, *, content=b"hello from the bundle", **spec):
    """Seal, push and submit; return the lease."""
    folder = person.home / f"job{len(list(person.home.iterdir()))}"
    folder.mkdir()
    (folder / "input.txt").write_bytes(content)
    bundle = folder.with_suffix(".sealed")
    digest = person.json("seal", folder, "-o", bundle)["digest"]
    person.json("push", bundle)
    job = folder.with_suffix(".yaml")
    tree = {
        "image": rig.image,
        "command": ["sh", "-c", script],
        "inputs": [{"bundle": digest, "path": "/in/data"}],
        "lease": {"duration": "2m"},
        "resources": {"memory": "64Mi", "scratch": "64Mi", "shm": "16Mi", "pids": 64},
        "output": {"path": "/out", "maxSize": "16Mi"},
        **spec,
    }
    job.write_text(json.dumps({"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "story"}, "spec": tree}))
    return person.json("job", "submit", job)["lease"]


def states(info):
    return [step["state"] for step in info["history"]]


def test_a_lease_from_bundle_to_receipt(rig, alice, tmp_path):
    lease = submit(rig, alice, "cat /in/data/input.txt; echo also >&2; tr a-z A-Z </in/data/input.txt >/out/loud.txt")
    decision = alice.json("release", lease)["decisions"][0]
    assert (decision["lease"], decision["granted"], decision["level"]) == (lease, True, "software")
    assert all(step["ok"] for step in decision["steps"])
    ended = alice.json("lease", "watch", lease)
    assert (ended["state"], ended["outcome"], ended["exit_code"], ended["level"]) == ("closed", "succeeded", 0, "software")
    assert states(ended) == ["submitted", "admitted", "placed", "attested", "unlocked", "running", "collecting", "wiping", "closed"]
    assert all(step["log_index"] is not None for step in ended["history"])
    logs = alice.json("lease", "logs", lease, "-f")["text"]
    assert ("hello from the bundle" in logs, "also" in logs) == (True, True)
    assert alice.run("lease", "logs", lease).ok().out.count("hello") == 1
    result = alice.json("lease", "results", lease, "-o", tmp_path / "res")
    assert result["files"] == 1
    assert (tmp_path / "res" / "loud.txt").read_text() == "HELLO FROM THE BUNDLE"
    alice.json("lease", "receipt", lease, "-o", tmp_path / "receipt.json")
    verified = alice.json("receipt", "verify", tmp_path / "receipt.json")
    assert verified["ok"] is True
    assert {"step", "ok", "detail"} <= set(verified["steps"][0])
    again = alice.run("release", lease, "--json")
    assert (again.code, again.error["code"]) == (1, "invalid-state")


def test_a_receipt_that_was_touched_does_not_verify(rig, alice, tmp_path):
    lease = submit(rig, alice, "true")
    alice.json("release", lease)
    alice.json("lease", "watch", lease)
    path = tmp_path / "receipt.json"
    alice.json("lease", "receipt", lease, "-o", path)
    raw = path.read_text()
    path.write_text(raw.replace('"v":1}', '"v":2}'))
    result = alice.run("receipt", "verify", path, "--json")
    assert (result.code, result.json["ok"], result.error["code"]) == (1, False, "not-verified")
    path.write_bytes(raw.encode()[: len(raw) // 2])
    assert alice.run("receipt", "verify", path, "--json").code == 1


def test_agents_of_two_tenants_serve_two_leases_at_once(rig, alice, bob):
    agents = [rig.agent(person) for person in (alice, bob)]
    try:
        mine = submit(rig, alice, "sleep 2; cat /in/data/input.txt", content=b"alice's weights")
        theirs = submit(rig, bob, "sleep 2; cat /in/data/input.txt; ls -R /in", content=b"bob's weights")
        rig.wait_state(alice, mine, "running")
        rig.wait_state(bob, theirs, "running")
        for person, lease in ((alice, theirs), (bob, mine)):
            for args in (
                ["lease", "show", lease],
                ["lease", "cancel", lease],
                ["lease", "logs", lease],
                ["release", "revoke", lease],
                ["release", lease],
            ):
                result = person.run(*args, "--json")
                assert (result.code, result.error["code"]) == (1, "not-found"), args
        assert alice.json("lease", "watch", mine)["state"] == "closed"
        assert bob.json("lease", "watch", theirs)["state"] == "closed"
        assert alice.json("lease", "logs", mine)["text"].strip() == "alice's weights"
        assert "alice" not in bob.json("lease", "logs", theirs)["text"]
    finally:
        codes = [agent.stop(2) for agent in agents]
    assert codes == [130, 130]
    assert [agent.text().count("keys released") for agent in agents] == [1, 1]
    assert not any("Traceback" in agent.text() for agent in agents)


def test_a_trust_file_that_does_not_list_the_node_keeps_the_keys(rig, alice, tmp_path):
    lease = submit(rig, alice, "true")
    strict = tmp_path / "TRUST.yaml"
    strict.write_text(alice.trust.read_text().replace(rig.node, "node-" + "0" * 32))
    result = alice.run("release", lease, "--trust", strict, "--json")
    assert (result.code, result.error["code"]) == (1, "release-refused")
    [decision] = result.json["decisions"]
    assert decision["granted"] is False
    assert decision["reasons"][0]["fix"]
    ended = alice.run("lease", "watch", lease, "--json")
    assert (ended.code, ended.json["state"], ended.error["code"]) == (1, "denied", "denied")
    assert "unlocked" not in states(ended.json)
    assert ended.json["denials"][0]["rule"] == decision["reasons"][0]["rule"]


def test_revoked_keys_stop_the_job_and_wipe(rig, alice):
    lease = submit(rig, alice, "sleep 100")
    alice.json("release", lease)
    rig.wait_state(alice, lease, "running")
    alice.json("release", "revoke", lease)
    ended = alice.run("lease", "watch", lease, "--json")
    assert (ended.code, ended.json["state"], ended.json["outcome"]) == (1, "closed", "revoked")
    assert states(ended.json)[-2:] == ["wiping", "closed"]


def test_a_cancelled_lease_wipes_and_says_so(rig, alice):
    lease = submit(rig, alice, "true")
    rig.wait_state(alice, lease, "placed")
    alice.json("lease", "cancel", lease)
    ended = alice.run("lease", "watch", lease, "--json")
    assert (ended.json["state"], ended.json["outcome"]) == ("cancelled", "cancelled")
    assert states(ended.json)[-2:] == ["wiping", "cancelled"]


@pytest.mark.parametrize(
    ("script", "spec", "told"),
    [
        ("exit 3", {}, ("failed", "lease logs")),
        ("sleep 100", {"lease": {"duration": "2s"}}, ("time-limit", "lease.duration")),
        ("dd if=/dev/zero of=/out/big bs=1M count=30", {}, ("output-limit", "output.maxSize")),
    ],
)
def test_how_a_job_ended_is_told_as_what_it_is(rig, alice, script, spec, told):
    lease = submit(rig, alice, script, **spec)
    alice.json("release", lease)
    ended = alice.run("lease", "watch", lease, "--json")
    assert (ended.code, ended.json["state"], ended.json["outcome"]) == (1, "closed", told[0])
    assert told[1] in ended.error["details"]["fix"]


def test_an_image_that_the_node_does_not_have_is_said(rig, alice):
    lease = submit(rig, alice, "true", image="sha256:" + "0" * 64)
    rig.wait_state(alice, lease, "placed", "wiping", "closed", "cancelled", "expired", "denied")
    alice.run("release", lease)
    ended = alice.run("lease", "watch", lease, "--json")
    assert ended.code == 1
    assert ended.json["state"] in {"closed", "cancelled", "denied"}
    assert "image" in ended.json["detail"]


def test_the_auditor_finds_every_lease_in_a_log_that_holds(rig, alice, bob):
    auditor = rig.person("audrey", "auditor", "auditor", identity=False)
    leases = {each["id"] for each in auditor.json("lease", "list")}
    assert {each["id"] for person in (alice, bob) for each in person.json("lease", "list")} <= leases
    auditor.run("audit", "verify", "--log", f"{rig.url}/log", "--key", log_key(rig)).ok()


def log_key(rig):

    return httpx.get(f"{rig.url}/log/vkey").text.strip()
