"""Wiping a lease's GPUs: what is not known, held or proven is never ok."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

import pytest

from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.erase import DeviceWipe, erase
from sandbox.node.gpu.model import Gpu, Inventory
from sandbox.node.gpu.wiper import VramWiper
from tests.node.gpu.ram_device import MIB, FlipsAWord, RamDevice

CARDS = [DeviceFacts(f"GPU-{number}", "card", "ram", 4 * MIB, 0, 4 * MIB, MIB, 4) for number in range(2)]


def wipe_one(facts: DeviceFacts) -> DeviceWipe:
    device = FlipsAWord() if facts.uuid == "GPU-1" else RamDevice()
    device.facts = replace(facts, total_bytes=device.facts.total_bytes)
    return erase(device, 77)


def seen(*processes: int) -> Inventory:
    return Inventory(
        tuple(Gpu(uuid=card.uuid, name="card", memory=4 * MIB, reserved=0, processes=processes) for card in CARDS), 2, "2 GPUs"
    )


def test_each_device_is_reported_in_order_and_failures_stay_failures() -> None:
    good, bad, unknown = VramWiper(wipe_one, seen).wipe(("GPU-0", "GPU-1", "GPU-9"))
    assert (good.uuid, good.ok, good.verified_bytes) == ("GPU-0", True, 4 * MIB)
    assert (bad.uuid, bad.ok) == ("GPU-1", False)
    assert bad.mismatches == 2  # one word in each pass
    assert (unknown.uuid, unknown.ok, unknown.written_bytes) == ("GPU-9", False, 0)
    assert (good.coverage, good.rest_bytes, good.local_memory_proven, good.detail) == (1, 0, True, None)
    assert good.fill_gb_per_s > 0 < good.compare_gb_per_s
    assert (bad.coverage, bad.rest_bytes) == (0, 4 * MIB)
    assert "pattern zeros: 1 words read back wrong" in bad.detail
    # What nobody read is not told as no residue.
    assert (good.residue_words_before, unknown.residue_words_before) == (0, None)
    assert unknown.detail == "no driver on this node knows this device"


def test_a_device_that_somebody_holds_is_not_touched() -> None:
    touched = []
    wiper = VramWiper(lambda facts: touched.append(facts) or wipe_one(facts), lambda: seen(4711), patience=0.1)
    report = wiper.reports(("GPU-0",))[0]
    assert not report.ok
    assert "4711" in report.failures[0]
    assert not touched


def test_a_process_that_the_driver_is_still_taking_down_is_waited_for() -> None:
    answers = [seen(4711), seen(4711), seen(), seen()]
    wiper = VramWiper(wipe_one, lambda: answers.pop(0))
    assert wiper.reports(("GPU-0",))[0].ok
    assert not answers


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (seen(os.getpid()), f"after the wipe: processes still hold the device: {os.getpid()}"),
        (replace(seen(), gpus=()), "after the wipe: no driver on this node knows this device any more"),
        (replace(seen(), gpus=tuple(replace(gpu, processes=None) for gpu in seen().gpus)), "after the wipe: the driver does not tell"),
    ],
    ids=["held", "gone", "not told"],
)
def test_who_is_on_the_card_after_the_wipe_may_have_been_there_during_it(later, words) -> None:
    answers = [seen(), later]
    report = VramWiper(wipe_one, lambda: answers.pop(0)).reports(("GPU-0",))[0]
    assert not report.ok
    assert words in report.failures[0]


def test_a_process_that_has_ended_may_be_shown_a_moment_longer() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    answers = [seen(), seen(ended.pid), seen()]
    assert VramWiper(wipe_one, lambda: answers.pop(0)).reports(("GPU-0",))[0].ok


def test_no_gpu_is_no_report() -> None:
    assert VramWiper(wipe_one, seen).wipe(()) == ()
