"""A lease at ``measured`` through all three programs and a software TPM; then what a machine tries that is not what it was.

The node's tpm2-tools are reached through a folder of ours on its PATH, so that its root can do what a hostile root would: hand over an
old quote, or one of another machine's TPM.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest

from policies.strictyaml import load_yaml
from tests.attestation.software_tpm import HANDLE, Tpm, software_tpm
from tests.integration.test_story import customer, submit
from tests.rig import Rig, run

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, software_tpm]
BOOT = hashlib.sha256(b"the boot loader that everybody knows").hexdigest()
TOOL = """#!/bin/sh
# {name}: as the real one, until the node's root decides otherwise.
here={folder}
if [ -e "$here/foreign" ]; then TPM2TOOLS_TCTI=$(cat "$here/foreign"); export TPM2TOOLS_TCTI; fi
if [ -e "$here/replay" ] && [ {name} = tpm2_quote ]; then
  while [ $# -gt 1 ]; do case $1 in -m|-s|-o) cp "$here/kept$1" "$2";; esac; shift; done; exit 0
fi
{real} "$@" || exit $?
if [ {name} = tpm2_quote ]; then
  while [ $# -gt 1 ]; do case $1 in -m|-s|-o) cp "$2" "$here/kept$1";; esac; shift; done
fi
"""


def accepted_value(*digests):
    value = bytes(32)
    for digest in digests:
        value = hashlib.sha256(value + bytes.fromhex(digest)).digest()
    return value.hex()


@pytest.fixture(scope="module")
def machine(tmp_path_factory, busybox_image):
    """A rig whose node vouches with a TPM, and tools between them."""
    folder = tmp_path_factory.mktemp("measured")
    tools = folder / "tools"
    tools.mkdir()
    for name in ("tpm2_quote", "tpm2_readpublic"):
        (tools / name).write_text(TOOL.format(name=name, folder=tools, real=shutil.which(name)))
        (tools / name).chmod(0o755)
    tpm = Tpm(tmp_path_factory.mktemp("tpm"))
    tpm.start()
    try:
        with Rig(folder / "rig") as rig:
            rig.image, rig.tpm, rig.tools = busybox_image, tpm, tools
            rig.node = rig.make_node()
            settings = rig.folder / "node" / "node.yaml"
            device = {"handle": HANDLE, "pcrs": [4], "tcti": tpm.tcti}
            settings.write_text(settings.read_text() + f"evidence: {json.dumps({'tpm': device})}\n")
            yield rig
    finally:
        tpm.stop()


def boot(rig):
    rig.tpm.tool("tpm2_pcrextend", f"4:sha256={BOOT}")


def enrol(rig, folder):
    """Prove that the node's attestation key is in its TPM; return the trust file's line."""
    offer, challenge, pending, answer = (folder / name for name in ("offer", "challenge", "pending", "answer"))
    node = ["--data", rig.folder / "node"]
    made = run("node", "attest", "offer", "-o", offer, *node, "--tcti", rig.tpm.tcti, "--json").ok().json
    run("trust", "tpm", "challenge", offer, "-o", challenge, "--pending", pending, "--ek", made["ek"]).ok()
    run("node", "attest", "activate", challenge, "--offer", offer, "-o", answer, "--tcti", rig.tpm.tcti).ok()
    return run("trust", "tpm", "accept", answer, "--pending", pending, "--json").ok().json["trust"]["tpm"]["keys"]


@pytest.fixture(scope="module")
def alice(machine, tmp_path_factory):
    """A customer who accepts this machine as it is now: its TPM, its boot, its runner."""
    rig = machine
    keys = enrol(rig, tmp_path_factory.mktemp("enrolment"))
    boot(rig)
    rig.start_node(env={"PATH": f"{rig.tools}:{os.environ['PATH']}"})
    rig.wait_node(rig.node)
    person = customer(rig, "alice")
    shown = run("node", "attest", "--data", rig.folder / "node", "--json").ok().json
    tree = load_yaml(person.trust.read_bytes(), max_bytes=100_000)
    tree["spec"] |= {
        "level": "measured",
        "runners": [shown["runner_digest"]],
        "tpm": {"keys": keys, "pcrs": {"4": [accepted_value(BOOT)]}, "runner": 23},
    }
    person.trust.write_text(json.dumps(tree))
    return person


def denied(rig, alice):
    """Submit a lease that is refused; return the rule that said no first, and require that the refusal explains itself everywhere."""
    lease = submit(rig, alice, "true")
    result = alice.run("release", lease, "--json")
    assert result.code == 1, result.out
    details = result.error["details"]
    assert all(details[word] for word in ("rule", "seen", "wanted", "fix")), details
    failed = [step["step"] for step in details["steps"] if not step["ok"]]
    assert failed
    info = rig.wait_state(alice, lease, "denied")
    assert [each["rule"] for each in info["denials"]] == failed
    assert all(each["seen"] and each["wanted"] and each["fix"] for each in info["denials"])
    return failed


@pytest.mark.timeout(300)
def test_a_measured_lease_and_what_is_refused(machine, alice, tmp_path):
    rig = machine
    lease = submit(rig, alice, "cat /in/data/input.txt >/out/copy")
    decision = alice.json("release", lease)["decisions"][0]
    assert (decision["granted"], decision["level"]) == (True, "measured")
    assert {"tpm-key", "tpm-signature", "tpm-nonce", "tpm-pcr-4", "tpm-runner", "level"} <= {step["step"] for step in decision["steps"]}
    assert alice.json("lease", "watch", lease)["state"] == "closed"
    alice.json("lease", "receipt", lease, "-o", tmp_path / "receipt.json")
    assert alice.json("receipt", "verify", tmp_path / "receipt.json")["ok"] is True

    # The same quote once more: it answers an earlier question.
    (rig.tools / "replay").touch()
    assert denied(rig, alice) == ["tpm-nonce"]
    (rig.tools / "replay").unlink()

    # Another machine's TPM, with everything measured into it that is wanted here.
    other = Tpm(tmp_path)
    other.start()
    try:
        other.make_key()
        other.tool("tpm2_pcrextend", f"4:sha256={BOOT}")
        (rig.tools / "foreign").write_text(other.tcti)
        assert denied(rig, alice) == ["tpm-key"]
    finally:
        (rig.tools / "foreign").unlink()
        other.stop()

    # Another runner was measured over this one.
    rig.tpm.tool("tpm2_pcrextend", f"23:sha256={'7' * 64}")
    assert denied(rig, alice) == ["tpm-runner"]

    # Something more was booted.
    rig.tpm.tool("tpm2_pcrextend", f"4:sha256={'8' * 64}")
    assert denied(rig, alice) == ["tpm-pcr-4", "tpm-runner", "level"]

    # The machine rebooted and nothing was measured again; then all of it, and all is well.
    rig.tpm.stop()
    rig.tpm.start()
    assert denied(rig, alice) == ["tpm-pcr-4", "tpm-runner", "level"]
    boot(rig)
    rig.nodes["node"].stop()
    rig.start_node(env={"PATH": f"{rig.tools}:{os.environ['PATH']}"})
    lease = submit(rig, alice, "true")
    assert alice.json("release", lease)["decisions"][0]["level"] == "measured"
    rig.wait_state(alice, lease, "closed")
