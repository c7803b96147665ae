"""The CUDA backend through the real cuda-bindings, on a stand-in for the driver's library that is strict about order and arguments."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.vram import facts_of, list_devices, wipe_device
from sandbox.node.gpu.wiper import VramWiper
from tests.node.gpu.machine import MIB
from tests.patience import LONG

HOLDER = """
import sys, time
from sandbox.node.gpu.cuda import CudaDevice
device = CudaDevice(sys.argv[1])
block = device.allocate(int(sys.argv[2]))
device.fill(block, 77)
print("holding", flush=True)
time.sleep(float(sys.argv[3]))
"""


def wipe(uuid: str):
    (report,) = VramWiper(patience=0.5).reports((uuid,))
    return report


def leave_residue(machine, uuid: str) -> None:
    done = machine.python(HOLDER, uuid, str(8 * MIB), "0")
    assert done.stdout == "holding\n", done.stderr


def test_a_card_is_wiped_whole_and_left_zero(machine):
    uuid = machine.card()
    leave_residue(machine, uuid)
    assert any(machine.memory())
    report = wipe(uuid)
    assert report.ok, report.failures
    assert report.backend == "cuda"
    assert report.residue_words_before == MIB
    assert report.coverage > 0.99
    assert report.written_bytes == report.verified_bytes < report.total_bytes - report.reserved_bytes
    assert report.local_memory_proven
    # All but the page that held the kernels' tally.
    assert sum(map(bool, machine.memory())) <= 16
    assert not any(machine.local())


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ({"skips": 2}, "read back wrong"),
        ({"flips": 1}, "pattern random: 1 words read back wrong"),
        ({"allocations_most": 8 * MIB}, "coverage"),
        ({"lost_after": 3}, "CUDA_ERROR_UNKNOWN"),
        ({"blind_unit": 1}, "every multiprocessor: 3 of 4"),
        ({"blind_compare": 1}, "the comparison does not see"),
        ({"registers": 248}, "248 registers a thread, 0 bytes spilled"),
        ({"spills": 8}, "255 registers a thread, 8 bytes spilled"),
        ({"capability": 61}, "older than 7.5"),
        ({"held": 1}, "processes still hold the device: 1"),
        ({"shown_by": 1}, "processes still hold the device: 1"),
        ({"processes_unknown": 1}, "does not tell which processes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_planted_failure_is_told(machine, planted, words):
    report = wipe(machine.card(**planted))
    assert not report.ok
    assert words in "; ".join(report.failures)


def test_a_limit_that_the_driver_does_not_take_is_no_failure(machine):
    report = wipe(machine.card(refuses_limit=1))  # the printf buffer's, as an H100's driver does
    assert report.ok, report.failures


def test_what_was_not_reached_is_told(machine):
    report = wipe(machine.card())
    assert (report.context_bytes, report.rest_bytes) == (0, 2 * 65536)  # the tally's page and the marks'
    held = wipe(machine.card(allocations_most=8 * MIB))
    assert held.rest_bytes > 8 * MIB


def test_a_context_held_elsewhere_is_no_wipe(machine):
    uuid = machine.card()
    with subprocess.Popen([sys.executable, "-c", HOLDER, uuid, str(MIB), "60"], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "holding\n"
        report = wipe(uuid)
        # Nor is it where NVML was asked too early: the missing memory tells.
        late = wipe_device(facts_of(inventory().gpus[0]))
        other.kill()
    assert late.context_bytes == MIB + 2 * 65536
    assert f"processes still hold the device: {other.pid}" in report.failures
    assert not late.ok
    assert late.coverage < 0.95


def test_a_worker_killed_half_way_proves_nothing(machine):
    uuid = machine.card(slow=300_000)
    program = [sys.executable, "-m", "sandbox.node.gpu.worker", "cuda", uuid]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        while "fill" not in worker.stderr.readline():
            pass
        worker.send_signal(signal.SIGKILL)
        assert worker.stdout.read() == ""
    machine.card()
    assert wipe(uuid).ok  # and its memory is free again


def test_a_kernel_that_hangs_meets_the_time_limit(machine):
    machine.card(hangs="scrub")
    started = time.monotonic()
    report = wipe_device(list_devices("cuda")[0], limit=3)
    assert time.monotonic() - started < LONG
    assert report.failures == ("the worker was stopped after 3 s",)


def test_only_the_named_device_is_touched(machine):
    one, other = machine.card(0), machine.card(1)
    leave_residue(machine, other)
    assert wipe(one).ok
    assert any(machine.memory(1))
    assert [facts.uuid for facts in list_devices("cuda")] == [one, other]


def test_an_unknown_device_is_no_success(machine):
    machine.card()
    report = wipe("GPU-00000009-0000-4000-8000-000000000009")
    assert not report.ok
    assert report.failures == ("no driver on this node knows this device",)


def test_the_shipped_kernels_are_made_of_the_shipped_sources():
    from deploy.dev import ptx

    for source, target, _, version in ptx.BUILDS:
        lines = (ptx.ROOT / target).read_text("ascii").splitlines()
        digest = hashlib.sha256((ptx.ROOT / source).read_bytes()).hexdigest()
        assert lines[0].endswith(f"sha256:{digest}"), f"{target} is stale: python deploy/dev/ptx.py"
        assert f".version {version}" in lines


def test_without_a_driver_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    code = "from sandbox.node.gpu.worker import wipe; print(wipe('cuda', 'GPU-1').failures[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.stdout == "cuInit: no NVIDIA driver on this machine\n", done.stderr


@pytest.mark.parametrize("scrubs", [0, 1])
def test_the_leak_hunt_finds_what_the_driver_leaves_and_nothing_after_the_wipe(machine, monkeypatch, scrubs):
    from bench.leak import __main__ as hunt

    monkeypatch.setattr(hunt, "_SETTLE_SECONDS", 0)
    machine.card(scrubs=scrubs)
    rows = {row.what.removeprefix("NVIDIA Stand-in: victim "): row for row in hunt.measure()}
    for way in ("ends by itself", "is killed (SIGKILL)"):
        alone = rows[f"{way}, the driver alone: global memory"]
        assert (alone.value == 0) == bool(scrubs)
        assert alone.goal is None
        assert rows[f"{way}, the driver alone: local memory"].value > 0  # as on the cards of LeftoverLocals
        for kind in ("global", "local"):
            after = rows[f"{way}, after our wipe: {kind} memory"]
            assert (after.value, after.ok) == (0, True)
        assert rows[f"{way}: the wipe between was proven"].ok
        for between in ("the driver alone", "after our wipe"):
            for what in ("share planted", "share looked at", "multiprocessors planted", "multiprocessors looked at"):
                assert rows[f"{way}, {between}: {what}"].ok, what
    assert any("its container is killed: left out" in what for what in rows)


def test_a_hunt_that_looks_at_little_has_not_met_its_goals(machine, monkeypatch):
    from bench.leak import __main__ as hunt

    monkeypatch.setattr(hunt, "_SETTLE_SECONDS", 0)
    machine.card(allocations_most=8 * MIB, blind_unit=1)
    rows = hunt._rows(list_devices("cuda")[0], hunt.ENDS[0])
    missed = {row.what.rpartition(": ")[2] for row in rows if row.ok is False and "the driver alone" in row.what}
    assert missed == {"share planted", "share looked at", "multiprocessors planted", "multiprocessors looked at"}
