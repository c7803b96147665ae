"""What a job may use is bounded, the customer is told which bound it was, and the node stays healthy. On the real engine."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import logs
from sandbox.node.engine import Engine
from tests.patience import LONG

pytestmark = [pytest.mark.docker, pytest.mark.root]


def _ran(rig, script, **changes):
    with rig.running():
        lease = rig.run(script, **changes)
        follow_up = rig.run("echo fine")
    assert follow_up.outcome is Outcome.SUCCEEDED, "the node is not healthy after the job"
    assert lease.state is LeaseState.CLOSED
    assert rig.leftovers() == []
    return lease


def test_success_and_the_result(node_rig, tmp_path):
    lease = _ran(node_rig, "echo hello; mkdir /out/d; echo result > /out/d/r; echo oops >&2")
    assert (lease.outcome, lease.exit_code) == (Outcome.SUCCEEDED, 0)
    assert set(node_rig.output(lease).split()) == {"hello", "oops"}
    assert (node_rig.result(lease, tmp_path) / "d" / "r").read_text() == "result\n"


def test_its_own_failure_keeps_its_exit_code_and_output(node_rig, tmp_path):
    lease = _ran(node_rig, "echo partial > /out/p; exit 7")
    assert (lease.outcome, lease.exit_code) == (Outcome.FAILED, 7)
    assert (node_rig.result(lease, tmp_path) / "p").read_text() == "partial\n"


def test_time(node_rig, tmp_path):
    started = time.monotonic()
    lease = _ran(node_rig, "echo so far > /out/p; sleep 100", lease={"duration": "1s"})
    assert lease.outcome is Outcome.TIME_LIMIT
    assert lease.exit_code == 137
    assert time.monotonic() - started < LONG
    assert (node_rig.result(lease, tmp_path) / "p").read_text() == "so far\n"


def test_time_of_a_job_that_closed_its_output(node_rig):
    lease = _ran(node_rig, "exec >/dev/null 2>&1; exec sleep 100", lease={"duration": "1s"})
    assert lease.outcome is Outcome.TIME_LIMIT


@pytest.mark.parametrize("kind", ["tmpfs", "fscrypt"])
def test_memory(node_rig, kind):
    node_rig.control.policy = node_rig.control.policy + f"  scratch: {{kind: {kind}}}\n".encode()
    lease = _ran(node_rig, "dd if=/dev/zero of=/dev/null bs=500M count=1", resources={"memory": "32Mi"})
    assert (lease.outcome, lease.exit_code) == (Outcome.MEMORY_LIMIT, 137)


def test_exit_code_137_alone_is_no_memory_limit(node_rig):
    lease = _ran(node_rig, "sh -c 'kill -9 $$'; exit $?")
    assert (lease.outcome, lease.exit_code) == (Outcome.FAILED, 137)
    assert "neither the engine nor the kernel's log says that memory was its limit" in lease.detail


def test_the_kernels_word_on_memory_is_enough(node_rig, monkeypatch):
    word = Engine.state
    monkeypatch.setattr(Engine, "state", lambda self, container: (end := word(self, container)) and replace(end, oom_killed=False))
    lease = _ran(node_rig, "dd if=/dev/zero of=/dev/null bs=500M count=1", resources={"memory": "32Mi"})
    assert (lease.outcome, lease.exit_code) == (Outcome.MEMORY_LIMIT, 137)


@pytest.mark.parametrize("kind", ["tmpfs", "fscrypt"])
def test_disk(node_rig, kind):
    node_rig.control.policy = node_rig.control.policy + f"  scratch: {{kind: {kind}}}\n".encode()
    lease = _ran(node_rig, "dd if=/dev/zero of=/out/big bs=1M count=200", resources={"scratch": "16Mi", "memory": "64Mi"})
    assert lease.outcome is Outcome.DISK_LIMIT
    assert lease.exit_code == 1


def test_disk_filled_with_names(node_rig):
    node_rig.control.policy += b"  scratch: {kind: fscrypt}\n"
    lease = _ran(node_rig, "i=0; while touch /out/$i; do i=$((i+1)); done; exit 3", resources={"scratch": "8Mi"})
    assert lease.outcome is Outcome.DISK_LIMIT


def test_disk_too_small_for_the_inputs(node_rig, tmp_path):
    digest, key = node_rig.bundle(tmp_path, {"big": "x" * 3_000_000})
    lease = _ran(node_rig, "true", keys={digest: key}, inputs=[{"bundle": digest, "path": "/in/a"}], resources={"scratch": "1Mi"})
    assert lease.outcome is Outcome.DISK_LIMIT
    assert digest in lease.detail


def test_processes(node_rig):
    lease = _ran(node_rig, "f() { f | f & }; f; sleep 1; echo alive", lease={"duration": "5s"}, resources={"pids": 32})
    assert lease.outcome in (Outcome.FAILED, Outcome.SUCCEEDED, Outcome.TIME_LIMIT)


def test_output(node_rig):
    lease = _ran(node_rig, "dd if=/dev/zero of=/out/big bs=1M count=4", output={"path": "/out", "maxSize": "1Mi"})
    assert lease.outcome is Outcome.OUTPUT_LIMIT
    assert lease.result is None
    assert "4194304" in lease.detail


def test_output_of_holes_counts_as_large(node_rig):
    lease = _ran(node_rig, "dd if=/dev/zero of=/out/big bs=1 count=1 seek=10000000000", output={"path": "/out", "maxSize": "1Mi"})
    assert lease.outcome is Outcome.OUTPUT_LIMIT


def test_log_flood_is_cut_and_said(node_rig, monkeypatch):
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 2**20)
    lease = _ran(node_rig, "yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa | head -c 50000000; exit 4")
    assert (lease.outcome, lease.exit_code) == (Outcome.FAILED, 4)
    text = node_rig.output(lease)
    assert len(text) < 2**20 + 200
    assert "48951424 bytes of output beyond 1048576 were dropped" in text


def test_a_job_cannot_send_the_nodes_files_as_its_result(node_rig, tmp_path):
    script = """
    ln -s /etc/shadow /out/shadow; ln -s /proc/self/environ /out/environ; ln -s ../../../../../../etc/passwd /out/climb; ln -s / /out/root
    mkfifo /out/pipe; ln -s good /out/link; echo good > /out/good
    """
    lease = _ran(node_rig, script)
    assert lease.outcome is Outcome.SUCCEEDED
    result = node_rig.result(lease, tmp_path)
    assert sorted(path.name for path in result.iterdir()) == ["good", "link"]


def test_cancelled_while_running_gives_no_result(node_rig):
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("echo x > /out/x; sleep 100"))
        node_rig.control.wait(lease, LeaseState.RUNNING)
        lease.end = Outcome.CANCELLED
        node_rig.control.wait(lease)
    assert (lease.state, lease.outcome, lease.result) == (LeaseState.CLOSED, Outcome.CANCELLED, None)
    assert node_rig.leftovers() == []


def test_loss_of_contact_ends_nothing(node_rig):
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("sleep 3; echo still here"))
        node_rig.control.wait(lease, LeaseState.RUNNING)
        node_rig.control.down = True
        time.sleep(5)
        assert lease.state is LeaseState.RUNNING
        node_rig.control.down = False
        node_rig.control.wait(lease)
    assert lease.outcome is Outcome.SUCCEEDED
    assert "still here" in node_rig.output(lease)


def test_the_time_limit_holds_without_contact(node_rig):
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("sleep 100", lease={"duration": "2s"}))
        node_rig.control.wait(lease, LeaseState.RUNNING)
        node_rig.control.down = True
        deadline = time.monotonic() + LONG
        while node_rig.node.engine.exists(f"sealrig-{lease.id}") and node_rig.node.engine.state(f"sealrig-{lease.id}") is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        node_rig.control.down = False
        node_rig.control.wait(lease)
    assert lease.outcome is Outcome.TIME_LIMIT


def test_two_leases_side_by_side_see_nothing_of_each_other(node_rig):
    script = "echo {0} > /tmp/{0}; echo {0} > /dev/shm/{0}; sleep 2; ls /tmp /dev/shm /out; ls -d /proc/[0-9]* | wc -l"
    with node_rig.running():
        first = node_rig.control.submit(node_rig.spec(script.format("first")))
        second = node_rig.control.submit(node_rig.spec(script.format("second")))
        node_rig.control.wait(first)
        node_rig.control.wait(second)
    assert "second" not in node_rig.output(first)
    assert "first" not in node_rig.output(second)


def test_the_node_stopping_ends_leases_with_a_wipe(node_rig):
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("sleep 100"))
        node_rig.control.wait(lease, LeaseState.RUNNING)
    assert lease.outcome is Outcome.NODE_FAILURE
    assert lease.state is LeaseState.CLOSED
    assert node_rig.leftovers() == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"lease": "lease-" + "0" * 32}, "lease"),
        ({"evidence_digest": "sha256:" + "0" * 64}, "evidence"),
        ({"lease_public_key_digest": "sha256:" + "0" * 64}, "lease key"),
    ],
)
def test_a_grant_for_something_else_opens_nothing(node_rig, change, rule):
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("echo never"), grant_at_once=False)
        node_rig.control.wait(lease, LeaseState.ATTESTED)
        with node_rig.control.changed:
            node_rig.control.release(lease, **change)
        node_rig.control.wait(lease)
    assert lease.outcome is Outcome.NODE_FAILURE
    assert rule in lease.detail
    assert lease.logs == {}


def test_ended_before_any_key_was_out(node_rig):
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("echo never"), grant_at_once=False)
        node_rig.control.wait(lease, LeaseState.ATTESTED)
        lease.end = Outcome.EXPIRED
        assert node_rig.control.wait(lease) is LeaseState.EXPIRED
    assert node_rig.leftovers() == []


def test_an_image_that_is_not_there(node_rig):
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("true", image="sha256:" + "1" * 64))
        node_rig.control.wait(lease)
    assert lease.outcome is Outcome.NODE_FAILURE
    assert "image" in lease.detail


def test_a_job_that_cannot_start(node_rig):
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("true", command=["/no/such/program"]))
        node_rig.control.wait(lease)
    assert lease.outcome is Outcome.NODE_FAILURE
    assert "/no/such/program" in lease.detail
