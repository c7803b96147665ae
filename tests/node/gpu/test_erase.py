"""The wipe is honest: each way in which a device can fail makes the report say so."""

from __future__ import annotations

import sys

import pytest

from sandbox.cli.node import _percent
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.erase import PASSES, SMALLEST_BLOCK, STEPS, erase, share
from sandbox.node.gpu.vram import wipe_device
from tests.node.gpu.ram_device import (
    MIB,
    AliasesBlocks,
    AllocatesAtFirstLaunch,
    ChangesLate,
    ComparesHalf,
    CorruptsLocalMemory,
    FlipsAWord,
    IsLost,
    MissesAUnit,
    RamDevice,
    ScrubsFewRegisters,
    SkipsABlock,
    SpillsRegisters,
)

SEED = 0x1234567890ABCDEF
FACTS = DeviceFacts("RAM-0", "memory", "ram", MIB, 0, MIB, MIB, 1)


def test_a_good_device_is_wiped_whole_and_left_zero() -> None:
    device = RamDevice(7 * MIB + SMALLEST_BLOCK, residue=1000)
    report = erase(device, SEED)
    assert report.ok
    assert report.failures == ()
    assert report.written_bytes == report.verified_bytes == 7 * MIB + SMALLEST_BLOCK
    assert report.coverage == 1.0
    assert report.rest_bytes == 0
    assert report.residue_words_before == 1000
    assert [item.pattern for item in report.passes] == ["random", "zeros"]
    assert not any(block.any() for block in device.buffers)


class Counts(RamDevice):
    """Counts the bytes that were filled or compared."""

    passed_over = 0

    def fill(self, buffer, seed):
        super().fill(buffer, seed)
        self.passed_over += self.buffers[buffer].nbytes

    def compare(self, buffer, seed):
        self.passed_over += self.buffers[buffer].nbytes
        return super().compare(buffer, seed)


def test_each_step_is_announced_with_the_work_that_is_done_by_then() -> None:
    device, told = Counts(5 * MIB), {}
    assert erase(device, SEED, progress=lambda step: told.update({step: device.passed_over / (5 * MIB)})).ok
    assert list(told) == list(STEPS)
    assert told == STEPS
    assert max(STEPS.values()) == PASSES


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (SkipsABlock(5 * MIB), "read back wrong"),
        (FlipsAWord(), "read back wrong"),
        (AliasesBlocks(8 * MIB), "read back wrong"),
        (RamDevice(held=MIB), "coverage"),
        (IsLost(), "DEVICE_LOST"),
        (MissesAUnit(), "every multiprocessor"),
        (CorruptsLocalMemory(), "every multiprocessor"),
        (ScrubsFewRegisters(), "248 registers a thread"),
        (SpillsRegisters(), "16 bytes spilled"),
        (ComparesHalf(), "the comparison does not see"),
        (ChangesLate(), "1 words were not zero any more"),
        (RamDevice(0), "coverage"),
    ],
    ids=[
        "skipped block",
        "flipped word",
        "aliased blocks",
        "held elsewhere",
        "device lost",
        "unit missed",
        "local memory",
        "few registers",
        "spilled registers",
        "blind comparison",
        "changed late",
        "no memory",
    ],
)
def test_every_planted_failure_is_told(device: RamDevice, words: str) -> None:
    device.facts = DeviceFacts(**{**device.facts.__dict__, "largest_block": 4 * MIB})
    report = erase(device, SEED)
    assert not report.ok
    assert any(words in failure for failure in report.failures), report.failures


def test_what_the_driver_allocates_at_a_first_launch_is_allocated_while_there_is_memory() -> None:
    report = erase(AllocatesAtFirstLaunch(8 * MIB), SEED)
    assert report.ok, report.failures
    assert report.rest_bytes == SMALLEST_BLOCK


def test_a_comparison_that_does_not_see_verifies_nothing() -> None:
    report = erase(ComparesHalf(), SEED)
    assert [item.mismatches for item in report.passes] == [0, 0]
    assert (report.verified_bytes, report.coverage, report.rest_bytes) == (0, 0, 4 * MIB)


def test_a_share_is_never_rounded_up() -> None:
    assert share(10**9 - 1, 10**9) == 0.999999
    assert share(5, 5) == 1
    assert share(0, 0) == 0
    assert [_percent(part) for part in (0.99996, 1, 0.999999, 0.0701, 0)] == ["99.99%", "100.00%", "99.99%", "7.01%", "0.00%"]


def test_blocks_that_do_not_read_back_do_not_count_as_verified() -> None:
    report = erase(FlipsAWord(), SEED)
    assert report.verified_bytes == 0
    assert report.coverage == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with -9"),
        ("import time; time.sleep(60)", "stopped after"),
        ("print('all is well')", "cannot be read"),
        ('print(\'{"uuid":"GPU-other","name":"","backend":"ram","ok":true}\')', "reported on GPU-other"),
        ("raise SystemExit('driver vanished')", "driver vanished"),
    ],
    ids=["killed", "hangs", "babbles", "another device", "exits"],
)
def test_a_worker_that_does_not_finish_proves_nothing(code: str, words: str) -> None:
    report = wipe_device(FACTS, limit=2, command=[sys.executable, "-c", code])
    assert not report.ok
    assert words in report.failures[0]
    assert report.total_bytes == MIB
