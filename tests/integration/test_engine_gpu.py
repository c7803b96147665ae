"""GPUs in real leases on the real engine. The cards are files behind stand-in driver libraries; wipe, workers and node are real.

The engine of the tests hands out no CDI devices, so that these cards come with device files of their own, as AMD's do.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import stat
import sys
import time
from pathlib import Path

import pytest

from attestation.certificate import verify_certificate
from attestation.evidence import Evidence
from attestation.signing import Envelope
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import ending, start
from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.pool import GpuPool
from sandbox.node.gpu.vram import wipe_device
from sandbox.node.gpu.wiper import VramWiper
from sandbox.node.state import NodeState
from tests.integration.test_engine_wipe import _quarantined
from tests.node.gpu.fixtures import driver_libraries, machine
from tests.node.gpu.machine import MIB
from tests.node.gpu.test_cuda import leave_residue
from tests.patience import PATIENCE

__all__ = ["driver_libraries", "machine"]
pytestmark = [pytest.mark.docker, pytest.mark.root]


SECONDS = 150.0
"""Each wipe starts a process that imports the driver's bindings, which takes its time on a busy machine."""
HALF_WAY = """
import os, signal, sys
from sandbox.node.gpu import erase, worker
worker.erase = lambda device, seed, progress: erase.erase(
    device, seed, progress=lambda step: os.kill(os.getpid(), signal.SIGKILL) if "zeros" in step else None)
worker.main()
"""


class CountingWiper(VramWiper):
    """Remembers what it was asked to wipe; with ``kills`` its workers end half-way, by SIGKILL."""

    def __init__(self) -> None:
        super().__init__(self.one)
        self.asked: list[tuple[str, ...]] = []
        self.kills = False

    def one(self, facts):
        killed = [sys.executable, "-c", HALF_WAY]
        return wipe_device(facts, command=killed if self.kills else None)

    def wipe(self, uuids):
        self.asked.append(uuids)
        return super().wipe(uuids)


def _start_anew(rig, nodes):
    """Give the node what a start of it asks the drivers and reads from its folder."""
    found = inventory()
    gpus = tuple(dataclasses.replace(gpu, nodes=(str(node),)) for gpu, node in zip(found.gpus, nodes, strict=True))
    pool = GpuPool(dataclasses.replace(found, gpus=gpus), cdi=False)
    rig.node = dataclasses.replace(rig.node, gpus=pool, gpu_wiper=CountingWiper(), state=NodeState(rig.node.folder))


@pytest.fixture
def gpu_rig(node_rig, machine):
    """Return a node with two cards of different size, whose policy allows them."""
    machine.card(0)
    machine.card(1, memory=33 * MIB)
    nodes = [Path(f"/dev/sealrig-test-{secrets.token_hex(4)}") for _ in range(2)]
    for node in nodes:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    _start_anew(node_rig, nodes)
    node_rig.control.policy = node_rig.control.policy.replace(b"resources: {", b"resources: {gpus: {max: 2}, gpuMemory: {max: 1Gi}, ")
    assert b"gpus: {max: 2}" in node_rig.control.policy
    yield node_rig
    for node in nodes:
        node.unlink()


def gpus_of(rig, lease):
    return [gpu.uuid for gpu in Evidence.from_payload(Envelope.from_bytes(lease.documents["evidence"]).payload).gpus if gpu.leased]


def memory_of(rig, uuid):
    return next(gpu.memory - gpu.reserved for gpu in rig.node.gpus.inventory.gpus if gpu.uuid == uuid)


def test_two_leases_at_once_have_a_card_each_and_leave_it_clean(gpu_rig, machine):
    uuids = [gpu.uuid for gpu in gpu_rig.node.gpus.inventory.gpus]
    leave_residue(machine, uuids[0])
    with gpu_rig.running():
        # The large card goes to who needs it, whichever comes first.
        small = gpu_rig.control.submit(gpu_rig.spec("ls /dev; sleep 2", resources={"gpus": 1}))
        large = gpu_rig.control.submit(gpu_rig.spec("ls /dev; sleep 2", resources={"gpus": 1, "gpuMemory": "20Mi"}))
        for lease in (small, large):
            assert gpu_rig.control.wait(lease, seconds=SECONDS) is LeaseState.CLOSED
        assert [gpus_of(gpu_rig, lease) for lease in (small, large)] == [[uuids[0]], [uuids[1]]]
        for lease, uuid in ((small, uuids[0]), (large, uuids[1])):
            (card,) = gpu_rig.wipe(lease).gpus
            assert (card.uuid, card.ok, card.local_memory_scrubbed) == (uuid, True, True)
            shown = [name for name in gpu_rig.output(lease).split() if name.startswith("sealrig-test-")]
            assert shown == [Path(node).name for gpu in gpu_rig.node.gpus.inventory.gpus if gpu.uuid == uuid for node in gpu.nodes]
            certificate = verify_certificate(Envelope.from_bytes(lease.documents["certificate"]), gpu_rig.control.node_key)
            assert uuid in {medium.serial_number for medium in certificate.predicate.media}
        assert sum(map(bool, machine.memory(0))) <= 16
        # What the control plane places by: which card is whose.
        assert all({"uuid": uuid, "memory": memory_of(gpu_rig, uuid), "leases": [lease.id]} in gpu_rig.control.gpus_told
                   for lease, uuid in ((small, uuids[0]), (large, uuids[1])))  # fmt: skip
        # Each was wiped before its lease (nobody knew what lay there) and after it.
        assert sorted(gpu_rig.node.gpu_wiper.asked) == sorted([(uuid,) for uuid in uuids] * 2)


def test_gvisor_that_would_show_no_card_is_refused(gpu_rig):
    facts = gpu_rig.node.facts
    engine = {**facts.engine, "runsc": "--platform=ptrace"}
    gpu_rig.node = dataclasses.replace(
        gpu_rig.node, facts=facts.model_copy(update={"isolation": ("container", "gvisor"), "engine": engine})
    )
    with gpu_rig.running():
        lease = gpu_rig.run("true", isolation="gvisor", resources={"gpus": 1}, seconds=SECONDS)
    assert (lease.outcome, "--nvproxy" in lease.detail) == (Outcome.NODE_FAILURE, True)
    assert gpu_rig.node.gpu_wiper.asked == []  # nothing was given out, so that nothing needs a wipe


def test_a_card_that_nobody_used_is_wiped_at_the_leases_end_only(gpu_rig, machine):
    uuids = [gpu.uuid for gpu in gpu_rig.node.gpus.inventory.gpus]
    with gpu_rig.running():
        assert gpu_rig.run("true", resources={"gpus": 2}, seconds=SECONDS).outcome is Outcome.SUCCEEDED
        assert len(gpu_rig.node.gpu_wiper.asked) == 2
        # Two at once in one lease, with room in /dev/shm; nothing has touched the cards, so that they are wiped at its end only.
        both = gpu_rig.run("df -k /dev/shm | tail -1", resources={"gpus": 2, "shm": "1Gi"}, seconds=SECONDS)
        assert both.outcome is Outcome.SUCCEEDED
        assert sorted(gpus_of(gpu_rig, both)) == sorted(uuids)
        assert int(gpu_rig.output(both).split()[1]) == 2**20  # KiB: what two GPUs get where the job does not say
        assert len(gpu_rig.node.gpu_wiper.asked) == 3
        # Somebody else uses one of them: that one is wiped before the next lease too.
        leave_residue(machine, uuids[0])
        assert gpu_rig.run("true", resources={"gpus": 1}, seconds=SECONDS).outcome is Outcome.SUCCEEDED
        assert gpu_rig.node.gpu_wiper.asked[3:] == [(uuids[0],), (uuids[0],)]


@pytest.mark.parametrize(
    "planted",
    [{"skips": 1}, {"flips": 1}, {"allocations_most": 4 * MIB}, {"held": 1}, {"lost_after": 3}, {"killed": 1}],
    ids=lambda planted: next(iter(planted)),
)
def test_a_wipe_that_fails_ends_in_quarantine(gpu_rig, machine, planted):
    with gpu_rig.running():
        lease = gpu_rig.control.submit(gpu_rig.spec("sleep 3", resources={"gpus": 1}))
        assert gpu_rig.control.wait(lease, LeaseState.RUNNING, seconds=SECONDS) is LeaseState.RUNNING
        if "killed" in planted:
            gpu_rig.node.gpu_wiper.kills = True
        else:
            machine.card(0, **planted)
        gpu_rig.control.wait(lease, seconds=SECONDS)
        _quarantined(gpu_rig, lease, "gpu")
        (card,) = gpu_rig.wipe(lease).gpus
        assert not card.ok


def test_a_card_that_no_wipe_could_reach_is_not_offered(node_rig, machine, monkeypatch):
    described = []
    ask = start.Engine.facts
    monkeypatch.setattr(start.Engine, "facts", lambda engine: dataclasses.replace(ask(engine), cdi=True))
    monkeypatch.setattr(start, "_gpus_described", described.extend)  # this machine's engine is not told of these cards
    large, small = machine.card(0), machine.card(1, allocations_most=8 * MIB)
    machine.card(2, fails=15)
    node, _, capacity = start.make_node(node_rig.root)
    node.client.close()
    assert capacity.gpus == (large,)
    assert [gpu.uuid for gpu in described] == [large, small]
    detail = node.gpus.inventory.summary()["gpuDetail"]
    for words in ("2 GPUs; 1 lost: ", "LOST-2 is not leased: the driver cannot read it", f"{small} is not leased: a wipe cannot reach"):
        assert words in detail


def test_a_restart_keeps_the_card_of_a_lease_that_was_running(gpu_rig, machine, monkeypatch):
    uuids = [machine.card(0), machine.card(1)]  # of one size: which is given to whom is by their order
    nodes = [gpu.nodes[0] for gpu in gpu_rig.node.gpus.inventory.gpus]
    _start_anew(gpu_rig, nodes)
    with monkeypatch.context() as crash:
        crash.setattr(ending, "finish", lambda *_: False)  # the process dies: nothing is wiped, nothing reported
        with gpu_rig.running():
            first = gpu_rig.control.submit(gpu_rig.spec("sleep 60", resources={"gpus": 1}))
            assert gpu_rig.control.wait(first, LeaseState.RUNNING, seconds=SECONDS) is LeaseState.RUNNING
    _start_anew(gpu_rig, nodes)
    second = gpu_rig.control.submit(gpu_rig.spec("true", resources={"gpus": 1}))
    with gpu_rig.running():
        for lease in (first, second):
            assert gpu_rig.control.wait(lease, seconds=SECONDS) is LeaseState.CLOSED
    assert [gpus_of(gpu_rig, lease) for lease in (first, second)] == [[uuids[0]], [uuids[1]]]
    for lease in (first, second):
        assert all(card.ok for card in gpu_rig.wipe(lease).gpus)
    assert second.outcome is Outcome.SUCCEEDED
    assert not gpu_rig.node.state.quarantine
    assert gpu_rig.leftovers() == []


def test_a_card_comes_back_when_its_wipe_stands_in_the_log(gpu_rig, monkeypatch):
    uuid, logged = gpu_rig.node.gpus.inventory.gpus[0].uuid, []
    give_back = GpuPool.give_back

    def watched(pool, lease):
        logged.append(gpu_rig.node.state.previous_wipes([uuid])[uuid])
        give_back(pool, lease)

    monkeypatch.setattr(GpuPool, "give_back", watched)
    with gpu_rig.running():
        for _ in range(2):  # and the second is not told that there is no card
            assert gpu_rig.run("true", resources={"gpus": 1}, seconds=SECONDS).outcome is Outcome.SUCCEEDED
    assert len(logged) == 2
    assert None not in logged


def test_a_card_comes_back_though_the_end_of_its_lease_is_refused(gpu_rig, monkeypatch):
    report, refused = gpu_rig.control._report, []

    def refusing(request, body, node, lease):
        if lease == first.id and b"certificate" in Envelope.from_json(json.loads(body)["report"]).payload:
            refused.append(lease)
            return gpu_rig.control._problem(409, "invalid-state", "the operator has closed it")
        return report(request, body, node, lease)

    monkeypatch.setattr(gpu_rig.control, "_report", refusing)
    with gpu_rig.running():
        first = gpu_rig.control.submit(gpu_rig.spec("true", resources={"gpus": 2}))
        deadline = time.monotonic() + SECONDS * PATIENCE
        while not refused:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert gpu_rig.run("true", resources={"gpus": 2}, seconds=SECONDS).outcome is Outcome.SUCCEEDED


def test_a_card_that_cannot_be_wiped_before_a_lease_is_not_given_out(gpu_rig, machine):
    machine.card(0, flips=1)
    with gpu_rig.running():
        lease = gpu_rig.control.submit(gpu_rig.spec("echo never", resources={"gpus": 1}))
        gpu_rig.control.wait(lease, seconds=SECONDS)
        _quarantined(gpu_rig, lease, "gpu")
        assert "evidence" not in lease.documents
