"""A wipe that cannot be proven: the node takes nothing more until the operator restores it, and then customers trust it again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.integration.test_story import customer, submit
from tests.rig import Rig

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow]
LOOKS = 12


@pytest.fixture
def rig(tmp_path, busybox_image):
    with Rig(tmp_path) as rig:
        rig.node = rig.add_node(slots=2)
        rig.image = busybox_image
        yield rig


def scratch_of(rig, lease):
    """Return a place inside the lease's scratch, as this machine's root sees it."""
    below = str(rig.folder / "node" / "leases" / lease)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next(line.split()[4] for line in lines if line.split()[4].startswith(below))


@pytest.mark.timeout(240)
def test_quarantine_restore_and_the_next_lease(rig, tmp_path):
    alice = customer(rig, "alice")
    lease = submit(rig, alice, "sleep 60")
    alice.json("release", lease)
    rig.wait_state(alice, lease, "running")
    held = os.open(scratch_of(rig, lease), os.O_RDONLY | os.O_DIRECTORY)
    try:
        alice.run("lease", "cancel", lease).ok()
        ended = rig.wait_state(alice, lease, "quarantined")
    finally:
        os.close(held)
    assert ended["outcome"] == "cancelled"
    [node] = rig.operator.json("node", "list")
    assert node["state"] == "quarantined"
    assert node["detail"]

    waiting = submit(rig, alice, "true")
    for _ in range(LOOKS):
        assert alice.json("lease", "show", waiting)["state"] == "admitted"
        time.sleep(0.25)

    rig.operator.run("node", "restore", rig.node).ok()
    decision = alice.json("release", waiting)["decisions"][0]
    assert decision["granted"], decision
    assert alice.json("lease", "watch", waiting)["state"] == "closed"
    [node] = rig.operator.json("node", "list")
    assert node["state"] == "ready"

    alice.json("lease", "receipt", lease, "-o", tmp_path / "quarantined.json")
    receipt = alice.run("receipt", "verify", tmp_path / "quarantined.json", "--json")
    assert receipt.json["steps"]
    alice.json("lease", "receipt", waiting, "-o", tmp_path / "next.json")
    assert alice.json("receipt", "verify", tmp_path / "next.json")["ok"] is True
