"""Failures planted in the wipe: each ends in quarantine, a certificate that says so, and no further lease until the operator's word."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from attestation.certificate import verify_certificate
from attestation.signing import Envelope
from attestation.wipe import GpuWipe
from sandbox.errors import EngineError
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node.client import ControlClient
from sandbox.node.engine import Engine
from sandbox.node.scratch import base, fscrypt, kernel
from sandbox.node.wipe import Remains, wipe
from tests.patience import eventually

pytestmark = [pytest.mark.docker, pytest.mark.root]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(base, "UNMOUNT_SECONDS", 0.5)
    monkeypatch.setattr(base, "HOLDERS_SECONDS", 0.5)
    monkeypatch.setattr(fscrypt, "KEY_SECONDS", 0.5)


def _no_thread():
    raise RuntimeError("can't start new thread")


def _quarantined(rig, lease, step: str) -> None:
    """Check everything that must follow from a wipe that was not proven."""
    assert rig.control.wait(lease) is LeaseState.QUARANTINED
    report = rig.wipe(lease)
    assert not report.proven
    assert step in {item.step for item in report.failed}
    certificate = verify_certificate(Envelope.from_bytes(lease.documents["certificate"]), rig.control.node_key)
    assert certificate.predicate.result == "not-proven"
    eventually(lambda: rig.node.state.quarantine and rig.node.state.quarantine[0].told)
    assert json.loads(rig.node.folder.state.read_bytes())["quarantine"]
    waiting = rig.control.submit(rig.spec("echo never"))
    time.sleep(0.6)
    assert waiting.state is LeaseState.PLACED, "a node in quarantine took a lease"
    del rig.control.leases[waiting.id]


def _restored(rig) -> None:
    """The operator lifts the quarantine: the node wipes again and works again."""
    rig.control.node_state = "ready"
    eventually(lambda: not rig.node.state.quarantine)
    assert rig.run("echo again").outcome is Outcome.SUCCEEDED


def test_a_file_that_is_still_open_keeps_the_key_in_the_kernel(node_rig):
    node_rig.control.policy += b"  scratch: {kind: fscrypt}\n"
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("echo x > /out/x; while [ ! -e /out/held ]; do sleep 0.1; done"))
        node_rig.control.wait(lease, LeaseState.RUNNING)
        out = node_rig.node.folder.lease(lease.id).out
        eventually((out / "x").exists)
        with (out / "x").open("rb") as file:
            holder = subprocess.Popen(["sleep", "1000"], stdin=file)
        (out / "held").touch()
        try:
            _quarantined(node_rig, lease, "scratch-key")
            node_rig.control.node_state = "ready"
            time.sleep(1.5)
            assert node_rig.node.state.quarantine, "restored although the wipe is still not proven"
        finally:
            holder.kill()
            holder.wait()
        _restored(node_rig)
    assert node_rig.leftovers() == []


@pytest.mark.alone  # the copy holds every mount of the machine, those of other nodes' leases too
def test_a_mount_namespace_that_still_has_the_scratch(node_rig):
    node_rig.control.policy += b"  scratch: {kind: tmpfs}\n"
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("sleep 2"))
        node_rig.control.wait(lease, LeaseState.RUNNING)
        # What a daemon with a private mount namespace does to a host: it keeps a copy of every mount.
        holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "1000"])
        try:
            _quarantined(node_rig, lease, "mounts-gone")
        finally:
            holder.kill()
            holder.wait()
        _restored(node_rig)
    assert node_rig.leftovers() == []


def test_a_container_that_cannot_be_removed(node_rig, monkeypatch):
    with node_rig.running():
        monkeypatch.setattr(Engine, "remove", lambda self, container: None)
        lease = node_rig.control.submit(node_rig.spec("true"))
        _quarantined(node_rig, lease, "container")
        monkeypatch.undo()
        _restored(node_rig)
    assert node_rig.leftovers() == []


def test_an_answer_that_was_on_its_way_lifts_no_quarantine(node_rig, monkeypatch):
    poll, remove, state, lease = ControlClient.poll, Engine.remove, node_rig.node.state, None

    def late(self, request):
        answer = poll(self, request)
        if answer.node_state == "ready" and lease is not None and lease.state in {LeaseState.RUNNING, LeaseState.COLLECTING}:
            eventually(lambda: state.quarantine and state.quarantine[0].told)
            monkeypatch.setattr(Engine, "remove", remove)  # a second wipe would be proven
        return answer

    with node_rig.running():
        monkeypatch.setattr(Engine, "remove", lambda self, container: None)
        monkeypatch.setattr(ControlClient, "poll", late)
        lease = node_rig.control.submit(node_rig.spec("sleep 1"))
        _quarantined(node_rig, lease, "container")
        assert Engine.remove is remove, "no answer was on its way"
        monkeypatch.undo()
        _restored(node_rig)
    assert node_rig.leftovers() == []


def test_an_engine_that_does_not_answer_in_the_wipe(node_rig, monkeypatch):
    def dead(self, **_):
        raise EngineError("Docker could not list containers: timed out")

    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("sleep 1"))
        node_rig.control.wait(lease, LeaseState.RUNNING)
        monkeypatch.setattr(Engine, "containers", dead)
        _quarantined(node_rig, lease, "container")
        monkeypatch.undo()
        _restored(node_rig)
    assert node_rig.leftovers() == []


def test_a_kernel_that_does_not_say_absent(node_rig, monkeypatch):
    node_rig.control.policy += b"  scratch: {kind: fscrypt}\n"
    with node_rig.running():
        monkeypatch.setattr(kernel, "key_status", lambda *_: 2)
        _quarantined(node_rig, node_rig.control.submit(node_rig.spec("true")), "scratch-key")
        monkeypatch.undo()
        _restored(node_rig)


def test_a_gpu_that_was_not_proven(node_rig):
    class Wiper:
        def wipe(self, uuids):
            return tuple(
                GpuWipe(
                    uuid=uuid,
                    name="card",
                    backend="cuda",
                    total_bytes=100,
                    reserved_bytes=0,
                    written_bytes=50,
                    verified_bytes=50,
                    mismatches=0,
                    residue_words_before=0,
                    local_memory_scrubbed=True,
                    seconds=1.0,
                    ok=False,
                    detail="coverage 0.5 is under 0.99",
                )
                for uuid in uuids
            )

    lease = "lease-" + "a" * 32
    remains = Remains(lease=lease, node=node_rig.node.id, folder=node_rig.node.folder.lease(lease), gpus=("GPU-1",))
    report = wipe(remains, node_rig.node.engine, Wiper())
    assert not report.proven
    assert [(step.target, step.seen) for step in report.failed] == [("GPU-1", "not proven: coverage 0.5 is under 0.99")]


@pytest.mark.parametrize(
    ("deed", "seen"),
    [(tuple, "the wiper said nothing of it"), (_no_thread, "RuntimeError: can't start new thread")],
    ids=["says", "raises"],
)
def test_a_wiper_that_does_not_report_proves_nothing_and_holds_nothing_up(node_rig, deed, seen):
    class Wiper:
        def wipe(self, uuids):
            return deed()

    lease = "lease-" + "a" * 32
    remains = Remains(lease=lease, node=node_rig.node.id, folder=node_rig.node.folder.lease(lease), gpus=("GPU-1",))
    report = wipe(remains, node_rig.node.engine, Wiper())
    assert not report.proven
    assert [(step.target, step.seen) for step in report.failed] == [("GPU-1", f"not proven: {seen}")]
    assert report.steps[-1].step == "data-folder"


def test_quarantine_outlives_the_process_and_a_torn_state_file(node_rig):
    from sandbox.node.state import NodeState

    node_rig.node.state.put_in_quarantine("lease-" + "b" * 32, "planted")
    assert NodeState(node_rig.node.folder).quarantine
    node_rig.node.folder.state.write_text('{"quarantine": {')
    assert NodeState(node_rig.node.folder).quarantine


def test_everything_is_proven_again_when_wiped_twice(node_rig):
    lease = "lease-" + "c" * 32
    remains = Remains(lease=lease, node=node_rig.node.id, folder=node_rig.node.folder.lease(lease))
    for _ in range(2):
        report = wipe(remains, node_rig.node.engine, node_rig.node.gpu_wiper)
        assert report.proven, report.failed


def test_the_certificate_says_what_holds_for_disk_and_memory(node_rig):
    with node_rig.running():
        in_memory = node_rig.run("true")
        node_rig.control.policy += b"  scratch: {kind: fscrypt}\n"
        on_disk = node_rig.run("true")
    ram, disk = (
        verify_certificate(Envelope.from_bytes(lease.documents["certificate"]), node_rig.control.node_key).predicate
        for lease in (in_memory, on_disk)
    )
    assert (ram.media[0].media_type, ram.media[0].method) == ("RAM", "clear")
    assert (disk.media[0].media_type, disk.media[0].method) == ("disk", "purge")
    assert "cryptographic erase" in disk.media[0].technique
    assert "nothing is claimed" in ram.gpus
    assert node_rig.node.state.previous_wipes()["node"] == on_disk_index(node_rig, on_disk)


def on_disk_index(rig, lease) -> int:
    """Return the log index of the last proven wipe, which is what the next evidence must name."""
    assert lease.history[-1][0] is LeaseState.CLOSED
    return lease.history[-1][1]
