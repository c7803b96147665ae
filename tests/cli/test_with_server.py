"""Commands against a real control plane process, without a node."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import httpx
import pytest

from sandbox.customer.client import Client
from tests.patience import LONG, eventually
from tests.rig import Person, Rig, run

IMAGE = "sha256:" + "c" * 64
ABSENT = "blake3:" + "0" * 64
LEASE = "lease-" + "0" * 32
ARRIVED = 96 * 2**20
"""What has arrived when a server is killed; more than can be in socket buffers, which has to be sent again."""
TIME_WAIT, LISTENING = "06", "0A"
"""States of a connection in /proc/net/tcp."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with Rig(tmp_path_factory.mktemp("rig")) as rig:
        yield rig


@pytest.fixture(scope="module")
def alice(rig):
    return rig.person("alice")


@pytest.fixture(scope="module")
def bob(rig):
    return rig.person("bob")


@pytest.fixture(scope="module")
def bundle(alice, tmp_path_factory):
    """A bundle of Alice's on the server: (path, digest)."""
    folder = tmp_path_factory.mktemp("src")
    (folder / "data").write_bytes(os.urandom(500_000))
    path = folder.parent / "alice.sealed"
    digest = alice.json("seal", folder, "-o", path)["digest"]
    pushed = alice.json("push", path)
    assert (pushed["digest"], pushed["size"]) == (digest, path.stat().st_size)
    return path, digest


def job_file(tmp_path, *bundles, **changes):
    spec = {
        "image": IMAGE, "command": ["/bin/true"], "lease": {"duration": "5m"},
        "inputs": [{"bundle": bundle, "path": f"/in/{number}"} for number, bundle in enumerate(bundles)], **changes,
    }  # fmt: skip
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "test"}, "spec": spec}))
    return path


def test_who_am_i(alice, rig):
    assert alice.json("config", "whoami") | {"token": ""} == {"server": rig.url, "token": "", "role": "customer", "tenant": "alice"}
    assert (alice.home / "config" / "sealrig" / "config.yaml").stat().st_mode & 0o777 == 0o600


def test_a_bad_token_is_not_kept(rig, tmp_path):
    stranger = Person(tmp_path / "stranger", rig.url)
    result = stranger.run("config", "login", rig.url, "--token-file", "-", "--json", stdin=b"sealrig_wrong\n")
    assert (result.code, result.error["code"]) == (1, "unauthenticated")
    assert not (tmp_path / "stranger" / "config").exists()
    assert stranger.run("bundle", "list", "--json").error["code"] == "usage"


def test_tokens_are_shown_once_and_can_be_revoked(rig, tmp_path):
    issued = rig.operator.json("token", "new", "--role", "customer", "--tenant", "temp", "--ttl", "1h")
    listed = rig.operator.run("token", "list", "--json").ok()
    assert issued["token"] not in listed.out
    assert issued["id"] in {token["id"] for token in listed.json}
    temp = Person(tmp_path / "temp", rig.url).login(issued["token"])
    assert temp.json("config", "whoami")["tenant"] == "temp"
    rig.operator.json("token", "revoke", issued["id"])
    result = temp.run("bundle", "list", "--json")
    assert (result.code, result.error["code"]) == (1, "unauthenticated")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["token", "new", "--role", "king", "--tenant", "t"], 2),
        (["token", "new", "--role", "customer", "--tenant", "Not A Tenant"], 2),
        (["token", "new", "--role", "customer", "--tenant", "t", "--ttl", "soon"], 2),
        (["token", "revoke", "../../x"], 2),
        (["token", "revoke", "token-" + "0" * 32], 1),
    ],
)
def test_bad_token_commands(rig, args, code):
    result = rig.operator.run(*args, "--json")
    assert result.code == code
    assert result.error["message"]


@pytest.mark.parametrize(
    "args", [["token", "list"], ["token", "new", "--role", "operator", "--tenant", "x"], ["node", "quarantine", "node-" + "0" * 32]]
)
def test_a_customer_is_no_operator(alice, args):
    result = alice.run(*args, "--json")
    assert (result.code, result.error["code"]) == (1, "forbidden")


def test_bundles_are_listed_shown_and_deleted(alice, tmp_path):
    (tmp_path / "f").write_bytes(b"short-lived")
    digest = alice.json("seal", tmp_path / "f", "-o", tmp_path / "f.sealed")["digest"]
    alice.json("push", tmp_path / "f.sealed")
    assert digest in {each["digest"] for each in alice.json("bundle", "list")}
    assert alice.json("bundle", "show", digest)["size"] == (tmp_path / "f.sealed").stat().st_size
    alice.json("bundle", "delete", digest)
    result = alice.run("bundle", "show", digest, "--json")
    assert (result.code, result.error["code"]) == (1, "not-found")


def test_two_tenants_do_not_see_each_other(alice, bob, bundle, tmp_path):
    path, digest = bundle
    lease = alice.json("job", "submit", job_file(tmp_path, digest))["lease"]
    assert bob.json("bundle", "list") == []
    assert bob.json("lease", "list") == []
    for args in (
        ["bundle", "show", digest], ["bundle", "delete", digest], ["lease", "show", lease], ["lease", "watch", lease],
        ["lease", "cancel", lease],
        ["lease", "logs", lease], ["lease", "results", lease, "-o", tmp_path / "r"], ["lease", "receipt", lease, "-o", tmp_path / "r"],
        ["release", "revoke", lease],
    ):  # fmt: skip
        result = bob.run(*args, "--json")
        assert (result.code, result.error["code"]) == (1, "not-found"), args
    stolen = bob.run("job", "submit", job_file(tmp_path, digest), "--json")
    assert (stolen.code, stolen.error["code"]) == (1, "bad-job")
    assert alice.json("lease", "show", lease)["state"] == "admitted"
    assert alice.json("bundle", "show", digest)["digest"] == digest
    # The same bytes pushed by Bob are Bob's too; deleting his leaves Alice's.
    bob.json("push", path)
    bob.json("bundle", "delete", digest)
    assert alice.json("bundle", "show", digest)["digest"] == digest
    assert alice.json("lease", "cancel", lease)["state"] == "cancelled"


def test_a_job_is_checked_before_it_is_sent(alice, bundle, tmp_path):
    _, digest = bundle
    good = alice.json("job", "check", job_file(tmp_path, digest, env={"MY_API_KEY": "x"}))
    assert good["ok"] is True
    assert "MY_API_KEY" in good["warnings"][0]
    assert good["policy"].startswith("sha256:")
    result = alice.run("job", "check", job_file(tmp_path, ABSENT), "--json")
    assert result.code == 1
    assert result.json["missing"] == [ABSENT]
    assert (result.json["ok"], result.error["code"]) == (False, "denied")


BAD_JOBS = {
    "unknown key": ("spec: {image: X, command: [a], comand: [b]}", "bad-job"),
    "tag without digest": ("spec: {image: 'ubuntu:22.04', command: [a]}", "bad-job"),
    "duplicate key": ("spec: {image: X, image: X, command: [a]}", "bad-job"),
    "wrong unit": ("spec: {image: X, command: [a], resources: {memory: 4 GB}}", "bad-job"),
    "huge number": ("spec: {image: X, command: [a], resources: {cpus: 1e309}}", "bad-job"),
    "too large": ("spec: {image: X, command: ['" + "a" * 70_000 + "']}", "bad-job"),
    "alias": ("spec: {image: &a X, command: [*a]}", "bad-job"),
    "not yaml": ("spec: [", "bad-job"),
    "path outside": ("spec: {image: X, command: [a], output: {path: /out/../etc}}", "bad-job"),
    "overlap": ("spec: {image: X, command: [a], inputs: [{bundle: B, path: /out/x}]}", "bad-job"),
}


@pytest.mark.parametrize("name", BAD_JOBS)
@pytest.mark.parametrize("command", ["check", "submit"])
def test_a_bad_job_names_its_fault_and_nothing_is_sent(alice, tmp_path, command, name):
    text, code = BAD_JOBS[name]
    path = tmp_path / "job.yaml"
    text = text.replace("X", IMAGE).replace("B,", f"'{ABSENT}',")
    path.write_text(f"apiVersion: sealrig/v1\nkind: Job\nmetadata: {{name: t}}\n{text}\n")
    before = len(alice.json("lease", "list"))
    result = alice.run("job", command, path, "--json")
    assert (result.code, result.error["code"]) == (1, code)
    assert {"rule", "seen", "wanted", "fix"} <= set(result.error["details"])
    assert len(alice.json("lease", "list")) == before


def test_a_denied_job_names_every_reason_and_stays_on_record(alice, bundle, tmp_path):
    _, digest = bundle
    path = job_file(tmp_path, digest, resources={"gpus": 64, "memory": "900Ti"}, lease={"duration": "300d"})
    result = alice.run("job", "submit", path, "--json")
    assert (result.code, result.error["code"]) == (1, "denied")
    assert len(result.error["details"]["reasons"]) >= 2
    lease = result.error["details"]["lease"]
    shown = alice.json("lease", "show", lease)
    assert (shown["state"], bool(shown["denials"])) == ("denied", True)
    watched = alice.run("lease", "watch", lease, "--json")
    assert (watched.code, watched.error["code"], watched.json["state"]) == (1, "denied", "denied")


def test_a_submission_repeated_is_one_lease(alice, bundle, tmp_path):
    _, digest = bundle
    path = job_file(tmp_path, digest)
    lease = alice.json("job", "submit", path)["lease"]
    again = alice.json("job", "submit", path, "--lease", lease)
    assert again["lease"] == lease
    assert [each["id"] for each in alice.json("lease", "list", "--state", "admitted")].count(lease) == 1
    alice.json("lease", "cancel", lease)


@pytest.mark.parametrize(
    ("args", "code", "exit_code"),
    [
        (["lease", "show", "lease-1"], "usage", 2),
        (["lease", "show", LEASE], "not-found", 1),
        (["lease", "list", "--state", "nosuch"], "usage", 2),
        (["lease", "list", "--limit", "0"], "usage", 2),
        (["lease", "results", LEASE, "-o", "/tmp/none"], "not-found", 1),
        (["bundle", "show", "blake3:1"], "usage", 2),
        (["bundle", "delete", ABSENT], "not-found", 1),
        (["release", LEASE, "extra"], "usage", 2),
        (["release", "revoke"], "usage", 2),
        (["release", "revoke", LEASE], "not-found", 1),
        (["node", "show", "node-" + "0" * 32], "not-found", 1),
    ],
)
def test_each_bad_input_has_its_own_code(alice, args, code, exit_code):
    result = alice.run(*args, "--json")
    assert (result.code, result.error["code"]) == (exit_code, code)
    assert "Traceback" not in result.err


def test_release_needs_a_trust_file_and_says_how_to_get_one(alice):
    result = alice.run("release", "--json")
    assert (result.code, result.error["code"]) == (1, "bad-input")
    assert "trust init" in result.error["details"]["fix"]


def test_trust_init_needs_a_node(alice, tmp_path):
    result = alice.run("trust", "init", "-o", tmp_path / "T.yaml", "--json")
    assert (result.code, result.error["code"]) == (1, "not-found")
    assert not (tmp_path / "T.yaml").exists()


def test_a_server_that_is_away_is_one_clear_error(alice, monkeypatch):
    monkeypatch.setattr("sandbox.customer.http.PATIENCE_SECONDS", 1)
    result = run("bundle", "list", "--server", "http://127.0.0.1:9", "--json", env=alice.env)
    assert (result.code, result.error["code"]) == (1, "server-unreachable")
    assert "127.0.0.1:9" in result.error["message"]
    assert result.err.count("does not answer; trying") == 1


def test_a_loose_config_file_is_refused(rig, alice, tmp_path):
    other = Person(tmp_path / "loose", rig.url).login(rig.token("customer", "loose"))
    path = other.home / "config" / "sealrig" / "config.yaml"
    path.chmod(0o644)
    result = other.run("bundle", "list", "--json")
    assert (result.code, result.error["code"]) == (2, "usage")
    assert "chmod 600" in result.error["details"]["fix"]


def test_nothing_that_is_no_bundle_leaves_this_machine(alice, tmp_path):
    (tmp_path / "plain.txt").write_text("secret")
    result = alice.run("push", tmp_path / "plain.txt", "--json")
    assert (result.code, result.error["code"]) == (1, "bad-bundle")


@pytest.mark.slow
def test_an_upload_survives_a_killed_server_and_no_byte_is_lost(tmp_path):
    with Rig(tmp_path / "rig") as rig:
        carol = rig.person("carol")
        (tmp_path / "big").write_bytes(os.urandom(1024) * 200_000)
        sealed = tmp_path / "big.sealed"
        digest = carol.json("seal", tmp_path / "big", "-o", sealed)["digest"]
        pushing = carol.spawn("push", "push", sealed, "--json")
        uploads = rig.data / "uploads"
        rig.wait_for(
            lambda: sum(file.stat().st_size for file in uploads.rglob("*") if file.is_file()) > ARRIVED, "bytes to arrive", pushing
        )
        rig.kill_server()
        time.sleep(0.5)
        assert pushing.running
        rig.start_server()
        assert pushing.process.wait(2 * LONG) == 0, pushing.text()
        size = sealed.stat().st_size
        assert carol.json("bundle", "show", digest)["size"] == size
        sent = json.loads(pushing.text()[pushing.text().index("{") :])["sent"]
        assert size <= sent < size + ARRIVED, "bytes that the server had were sent again"


@pytest.mark.slow
def test_a_killed_push_goes_on_at_the_byte_that_arrived(tmp_path):
    with Rig(tmp_path / "rig") as rig:
        carol = rig.person("carol")
        (tmp_path / "big").write_bytes(os.urandom(1024) * 200_000)
        sealed = tmp_path / "big.sealed"
        carol.json("seal", tmp_path / "big", "-o", sealed)
        pushing = carol.spawn("push", "push", sealed, "--json")
        uploads = rig.data / "uploads"

        def there():
            return sum(file.stat().st_size for file in uploads.rglob("*") if file.is_file())

        rig.wait_for(lambda: there() > 1_000_000, "bytes to arrive", pushing)
        pushing.kill()
        eventually(lambda: not connections(rig.url), "the server to take what is in the sockets, and to hang up")
        arrived, before = there(), -1
        while arrived != before:
            time.sleep(0.5)
            arrived, before = there(), arrived
        assert carol.json("push", sealed)["sent"] == sealed.stat().st_size - arrived


def connections(url):
    """Return the connections that a server of this machine has open, as the kernel lists them."""
    port = f":{int(url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row for row in rows if row[1].endswith(port) and row[3] not in {LISTENING, TIME_WAIT}]


# ---- bundles read in place on the server


def test_cat_prints_a_file_of_a_bundle_on_the_server(alice, bob, bundle, tmp_path):
    path, digest = bundle
    here = alice.run("cat", path, "data").ok().raw
    assert alice.run("cat", digest, "data").ok().raw == here
    assert alice.run("cat", digest, "data", "--range", "1000-1999").ok().raw == here[1000:2000]
    document = alice.json("cat", digest, "data", "--range", "-5")
    assert (document["size"], document["start"], document["end"]) == (500_000, 499_995, 500_000)
    assert alice.run("cat", digest, "nothing", "--json").error["code"] == "not-found"
    for who, what in ((bob, digest), (alice, ABSENT)):
        assert who.run("cat", what, "data", "--json").error["code"] == "not-found"
    assert alice.run("cat", "blake3:short", "data", "--json").code == 2
    assert alice.run("cat", tmp_path / "none", "data", "--json").code == 2


def test_a_machine_that_has_not_seen_the_bundle_says_what_it_cannot_know(alice, bundle, tmp_path):
    _, digest = bundle
    afresh = {**alice.env, "XDG_STATE_HOME": str(tmp_path / "state")}
    elsewhere = run("cat", digest, "data", "--range", "0-9", env=afresh).ok()
    assert "the server's word" in elsewhere.err
    run("key", "new", tmp_path / "other").ok()
    sealed = tmp_path / "foreign.sealed"
    (tmp_path / "f").write_bytes(b"from somebody else")
    alice.run("seal", tmp_path / "f", "-o", sealed, "--key", tmp_path / "other", "--to", alice.key / "identity.pub").ok()
    foreign = alice.json("push", sealed)["digest"]
    assert alice.run("cat", foreign, "f").ok().raw == b"from somebody else"
    refused = run("cat", foreign, "f", "--json", env=afresh)
    assert (refused.code, refused.error["details"]["rule"]) == (1, "bundle-signer")


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
def test_a_bundle_on_the_server_is_mounted(alice, bundle, tmp_path):
    path, digest = bundle
    (tmp_path / "mnt").mkdir()
    mounting = alice.spawn("mount", "mount", digest, tmp_path / "mnt", "--json")
    try:
        eventually(lambda: (tmp_path / "mnt" / "data").exists() or not mounting.running)
        assert mounting.running, mounting.text()
        assert (tmp_path / "mnt" / "data").read_bytes() == alice.run("cat", path, "data").ok().raw
    finally:
        assert mounting.stop() == 0


RELAXED = """apiVersion: sealrig/v1
kind: Policy
metadata: {name: lab}
spec:
  images: {allow: ["sha256:*"]}
"""


@pytest.fixture
def vkey(rig, tmp_path):
    (tmp_path / "vkey").write_text(httpx.get(f"{rig.url}/log/vkey").text)
    return tmp_path / "vkey"


def test_who_changed_a_policy_is_proven_from_the_log(rig, vkey, tmp_path):
    lab, policy = rig.person("lab"), tmp_path / "lab.yaml"
    policy.write_text(RELAXED)
    said = rig.operator.run("policy", "apply", policy, "--tenant", "lab", "--dry-run").ok()
    assert '+  images: {allow: ["sha256:*"]}' in said.out
    assert "lab would hold for lab" in said.out
    assert [row["before"] for row in lab.json("policy", "history", "--key", vkey)["changes"]] == [None]
    applied = rig.operator.json("policy", "apply", policy, "--tenant", "lab")
    change, first = lab.json("policy", "history", "--key", vkey)["changes"]
    assert (change["before"], change["after"], first["before"]) == (applied["before"], applied["digest"], None)
    assert change["diff"] == applied["diff"]
    assert change["actor"] == rig.operator.json("config", "whoami")["token"]
    told = lab.run("policy", "history", "--key", vkey).ok().out
    assert f"entry {change['index']}: {change['occurred_at']} by {change['actor']}: {change['before']} → {change['after']}" in told
    assert '+  images: {allow: ["sha256:*"]}' in told
    assert lab.run("policy", "show", applied["digest"]).ok().out == RELAXED
    assert lab.run("policy", "show", applied["before"], "--json").ok().json["digest"] == applied["before"]
    assert rig.person("elsewhere").run("policy", "show", applied["digest"], "--json").error["code"] == "not-found"


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        (lambda found: found[:1] + found[2:], "policy-history"),
        (lambda found: [found[0].model_copy(update={"document": found[1].document})], "evidence"),
        (lambda found: [found[0].model_copy(update={"log_index": found[1].log_index})], "evidence"),
        (lambda found: [found[0].model_copy(update={"before": found[0].after})], "before"),
    ],
)
def test_a_history_that_is_not_the_logs_is_refused(rig, vkey, monkeypatch, lie, rule):
    tenant, policy = "liar", rig.folder / "liar.yaml"
    for number in range(3):
        policy.write_text(f"{RELAXED}# {number}\n")
        rig.operator.json("policy", "apply", policy, "--tenant", tenant)
    true = Client.policy_changes
    monkeypatch.setattr(Client, "policy_changes", lambda *args, **more: lie(true(*args, **more)))
    result = rig.operator.run("policy", "history", "--tenant", tenant, "--key", vkey, "--json")
    assert (result.code, result.error["code"], result.error["details"].get("rule")) == (1, "not-verified", rule), result.error
