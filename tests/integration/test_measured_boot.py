"""A lease at ``measured`` on this machine's own firmware, kernel and TPM: enrolled, quoted, replayed, and refused for another boot.

It keeps a key in the TPM, so that it runs only where the machine is one that was made for it (``./dev vm --tpm``).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from attestation.verify.eventlog import replay_event_log
from sandbox.node.layout import NodeFolder
from tests.rig import Rig, run

EVENT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
IMA_LOG = Path("/sys/kernel/security/ima/binary_runtime_measurements")
PCRS = Path("/sys/class/tpm/tpm0/pcr-sha256")
HANDLE, EXACT, BY_LOG = "0x81010002", (0, 2, 7), (4, 9)
"""PCRs whose value the customer accepts; and those of which he accepts the measurements: what was booted, and with which command line."""
pytestmark = [
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif("SEALRIG_VM_TPM" not in os.environ, reason="keeps a key in the TPM: only in a machine made for it (./dev vm --tpm)"),
]


@pytest.fixture(scope="module")
def rig(tmp_path_factory, busybox_image):
    with Rig(tmp_path_factory.mktemp("measured")) as rig:
        rig.node = rig.add_node(slots=1)
        rig.nodes["node"].stop()
        rig.image = busybox_image
        yield rig


@pytest.fixture(scope="module")
def customer(rig):
    person = rig.person("acme")
    person.json("trust", "init", "-o", person.trust)
    return person


@pytest.fixture(scope="module")
def enrolled(rig, customer):
    """Enrol the TPM, have the node quote it, and return the attestation key as the trust file names it."""
    folder, data = rig.folder, rig.folder / "node"
    offer, challenge, answer, pending = (folder / name for name in ("offer.json", "challenge.json", "answer.json", "pending"))
    made = run("node", "attest", "offer", "-o", offer, "--data", data, "--handle", HANDLE, "--json").ok().json
    customer.json("trust", "tpm", "challenge", offer, "--ek", made["ek"], "-o", challenge, "--pending", pending)
    run("node", "attest", "activate", challenge, "--offer", offer, "-o", answer, "--handle", HANDLE).ok()
    settings = NodeFolder(data).settings
    tpm = {"handle": HANDLE, "pcrs": [*EXACT, *BY_LOG, 10], "eventLog": str(EVENT_LOG), "imaLog": str(IMA_LOG)}
    settings.write_text(yaml.safe_dump({**yaml.safe_load(settings.read_text()), "evidence": {"tpm": tpm}}))
    rig.start_node()
    return customer.json("trust", "tpm", "accept", answer, "--pending", pending)["trust"]["tpm"]["keys"]


def _accept(customer, keys, **changes) -> None:
    """Write what the customer accepts: this boot, or something else."""
    log = replay_event_log(EVENT_LOG.read_bytes())
    section = {
        "keys": keys,
        "pcrs": {str(pcr): [(PCRS / str(pcr)).read_text().strip().lower()] for pcr in EXACT},
        "events": {str(pcr): [event.digest.hex() for event in log.events if event.pcr == pcr] for pcr in BY_LOG},
        "runner": 23,
        **changes,
    }
    tree = yaml.safe_load(customer.trust.read_text())
    tree["spec"] |= {"level": "measured", "tpm": section}
    customer.trust.write_text(yaml.safe_dump(tree))


def _submit(rig, customer) -> str:
    job = rig.folder / "job.json"
    spec = {
        "image": rig.image,
        "command": ["sh", "-c", "echo measured > /out/word"],
        "lease": {"duration": "5m"},
        "resources": {"memory": "64Mi", "scratch": "64Mi", "shm": "16Mi", "pids": 64},
        "output": {"path": "/out", "maxSize": "16Mi"},
    }
    job.write_text(json.dumps({"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "measured"}, "spec": spec}))
    lease = customer.json("job", "submit", job)["lease"]
    rig.wait_state(customer, lease, "attested", "denied", "closed")
    return lease


def test_the_firmwares_log_leads_to_the_tpms_values():
    log = replay_event_log(EVENT_LOG.read_bytes())
    assert {0, 1, 2, 4, 7} <= set(log.pcrs)
    for pcr in range(8):
        assert log.pcrs[pcr].hex() == (PCRS / str(pcr)).read_text().strip().lower(), pcr


def test_a_lease_at_measured(rig, customer, enrolled, tmp_path):
    _accept(customer, enrolled)
    lease = _submit(rig, customer)
    (decision,) = customer.json("release", lease)["decisions"]
    assert (decision["granted"], decision["level"]) == (True, "measured"), decision
    assert rig.wait_state(customer, lease, "closed")["outcome"] == "succeeded"
    receipt = tmp_path / "receipt.json"
    customer.json("lease", "receipt", lease, "-o", receipt)
    verified = customer.json("receipt", "verify", receipt)
    assert verified["ok"]
    assert "appraisal/level" in {step["step"] for step in verified["steps"] if step["ok"] and "measured" in step["detail"]}


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"events": {"9": ["00" * 32]}}, "tpm"),
        ({"pcrs": {"0": ["00" * 32]}}, "tpm"),
    ],
    ids=["another command line or initrd", "another firmware"],
)
def test_another_boot_gets_no_key(rig, customer, enrolled, changes, step):
    _accept(customer, enrolled, **changes)
    lease = _submit(rig, customer)
    refused = customer.run("release", lease, "--json")
    (decision,) = refused.json["decisions"]
    assert not decision["granted"]
    assert [each for each in decision["steps"] if not each["ok"] and step in each["step"]], decision
    customer.run("lease", "cancel", lease)
    rig.wait_state(customer, lease, "cancelled", "closed", "denied")
