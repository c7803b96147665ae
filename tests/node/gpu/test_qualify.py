"""Qualification: sound cards pass, and each way of being unfit is found and named."""

from __future__ import annotations

import dataclasses
import json

import pytest

from attestation.qualification import Card, Measurement, verdict
from sandbox.node.gpu import qualify as module
from sandbox.node.gpu.cards import table
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.judge import Provenance, Watched, judge
from sandbox.node.gpu.measure import Effort, Measured, measure
from sandbox.node.gpu.model import Errors, Gpu, Link, Thermals
from sandbox.node.gpu.vram import list_devices
from tests.node.gpu.machine import MIB
from tests.node.gpu.simulated_card import ForgetsABit, Miscalculates, SimulatedCard, Speed

EFFORT = Effort(mode="quick", limit=60, load_seconds=2, patterns=1, pattern_seconds=0, largest_matrix=256)
SHORT = Effort(mode="quick", limit=60, load_seconds=0.2, patterns=2, pattern_seconds=0, largest_matrix=256)
SOUND = Provenance(forced=False, signed=True, words="taint none, signer NVIDIA")
RTX_3090 = Gpu(
    uuid="GPU-1",
    name="NVIDIA GeForce RTX 3090",
    memory=24 * 2**30,
    reserved=0,
    pci_id="10de:2204",
    vbios="94.02.42.00.0b",
    link=Link(4, 16, 4, 16),
    errors=Errors(ecc=False),
    thermals=Thermals(60, 93, 300.0, 350.0, ()),
    inforom_valid=True,
)


def card(device: SimulatedCard, gpu: Gpu = RTX_3090, provenance: Provenance = SOUND, **watched: object) -> Card:
    """Measure a simulated card and judge it as if it had the memory that ``gpu`` has."""
    measured = measure(device, EFFORT, clock=device.clock)
    assert not measured.failures
    share = measured.tested_bytes / measured.total_bytes
    measured = measured.model_copy(update={"total_bytes": gpu.memory, "tested_bytes": int(share * gpu.memory)})
    seen = Watched(gpu, gpu, **{"hottest": 70, "throttled_by": ("power cap",), "generation": 4, "width": 16, **watched})
    return judge(measured, seen, provenance, table())


def found(card: Card, name: str) -> Measurement:
    return next(item for item in card.measurements if item.id == name)


def test_a_sound_card_is_fit_for_training():
    made = card(SimulatedCard(Speed()))
    assert (made.grade, made.reasons, made.known_as) == ("training", (), "GeForce RTX 3090")
    assert found(made, "matmul-fp32").seen == pytest.approx(20, rel=0.01)
    assert found(made, "memory-bandwidth").seen == pytest.approx(900, rel=0.01)
    assert found(made, "link-to-device").seen == pytest.approx(12, rel=0.01)
    assert found(made, "memory-bandwidth").training == pytest.approx(0.7 * 936)
    assert "nvidia-ampere" in found(made, "memory-bandwidth").source


def test_a_failed_remapping_cites_the_makers_policy():
    made = card(SimulatedCard(Speed()), dataclasses.replace(RTX_3090, errors=Errors(remapping_failed=True)))
    assert "rma-policy-thresholds" in found(made, "remapping-failed").source


def test_a_cmp_170hx_is_rejected_for_its_arithmetic_whatever_its_bandwidth():
    gpu = dataclasses.replace(RTX_3090, name="CMP 170HX", memory=8 * 2**30, pci_id="10de:20c2")
    made = card(SimulatedCard(Speed(memory=1500, tflops={"fp32": 0.39, "fp16": 6.0})), gpu)
    assert (made.grade, made.known_as) == ("unfit", "CMP 170HX")
    assert found(made, "memory-bandwidth").fits == "training"
    assert "matmul-fp32: 0.39 TFLOPS, inference needs at least 2.5 TFLOPS" in made.reasons


def test_a_mining_card_that_shows_more_memory_than_is_sold_is_unfit():
    gpu = dataclasses.replace(RTX_3090, name="CMP 170HX", memory=64 * 2**30, pci_id="10de:20c2")
    made = card(SimulatedCard(Speed(memory=1500, tflops={"fp32": 12.5, "fp16": 160.0})), gpu)
    assert (made.grade, made.known_as) == ("unfit", "CMP 170HX")
    assert made.reasons == ("memory-over-claim: 8, inference needs at most 1.02",)


def test_a_module_without_a_signature_is_told_of_and_no_reason():
    made = card(SimulatedCard(Speed()), provenance=Provenance(forced=False, signed=False, words="taint OE, signer not told"))
    assert (made.grade, made.reasons) == ("training", ())
    assert (found(made, "driver-module-signed").seen, found(made, "driver-module-signed").detail) == (0, "taint OE, signer not told")


@pytest.mark.parametrize(("taint", "forced", "signed"), [("", False, True), ("OE", False, False), ("POF", True, True), (None, None, None)])
def test_the_kernels_marks_of_the_module_are_read(monkeypatch, taint, forced, signed):
    monkeypatch.setattr(module, "has_nvidia", lambda _: True)
    monkeypatch.setattr(module, "module_taint", lambda _: taint)
    made = module._provenance()
    assert (made.forced, made.signed) == (forced, signed)


@pytest.mark.parametrize(("fp32", "grade"), [(21.0, "training"), (15.0, "inference"), (9.0, "unfit")])
def test_a_fast_card_that_is_slow_for_its_kind_still_serves(fp32, grade):
    gpu = dataclasses.replace(RTX_3090, name="NVIDIA H200", memory=140 * 2**30, pci_id="10de:2335")
    made = card(SimulatedCard(Speed(memory=4400, link=50, tflops={"fp32": fp32, "fp16": 400.0})), gpu)
    assert made.grade == grade, made.reasons


@pytest.mark.parametrize(
    ("device", "changes", "grade", "words"),
    [
        (SimulatedCard(Speed(link=0.25)), {}, "unfit", "link-to-device: 0.25 GB/s, inference needs at least 2.85 GB/s"),
        (SimulatedCard(Speed(link=3.2)), {}, "inference", "link-to-device: 3.2 GB/s, training needs at least 5.5 GB/s"),
        (SimulatedCard(Speed(memory=300)), {}, "unfit", "memory-bandwidth: 300 GB/s"),
        (SimulatedCard(Speed(tires=0.8)), {}, "inference", "sustained: 0.8"),
        (Miscalculates(Speed()), {}, "unfit", "matmul-wrong-rows: 2"),
        (ForgetsABit(Speed()), {}, "unfit", "memory-faults"),
        (SimulatedCard(Speed()), {"memory": 12 * 2**30}, "unfit", "memory-size: 12 GiB"),
        (SimulatedCard(Speed()), {"errors": Errors(retired_pages=60)}, "unfit", "retired-pages: 60"),
        (SimulatedCard(Speed()), {"errors": Errors(remapping_failed=True)}, "unfit", "remapping-failed: 1"),
        (SimulatedCard(Speed()), {"inforom_valid": False}, "unfit", "inforom: 0"),
        (SimulatedCard(Speed()), {"hottest": 95}, "unfit", "thermal-margin: -2"),
        (SimulatedCard(Speed()), {"throttled_by": ("power brake",)}, "inference", "held-back: 1"),
        (SimulatedCard(Speed()), {"memory": 25 * 2**30}, "unfit", "memory-over-claim: 1.0417, inference needs at most 1.02"),
        (SimulatedCard(Speed()), {"provenance": Provenance(forced=True, signed=True, words="taint F")}, "unfit", "driver-module: 0"),
        (SimulatedCard(Speed()), {"provenance": Provenance(None, None, words="not told")}, "unfit", "driver-module: not measured"),
        (SimulatedCard(Speed(tflops={"fp32": 20.0})), {}, "unfit", "matmul-fp16: not measured"),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
)
def test_each_way_of_being_unfit_has_its_reason(device, changes, grade, words):
    watched = {name: value for name, value in changes.items() if name in ("hottest", "throttled_by")}
    of_gpu = {name: value for name, value in changes.items() if name not in (*watched, "provenance")}
    made = card(device, dataclasses.replace(RTX_3090, **of_gpu), changes.get("provenance", SOUND), **watched)
    assert made.grade == grade, made.reasons
    assert any(reason.startswith(words) for reason in made.reasons), made.reasons


def test_a_fault_is_told_with_its_place_and_its_bits():
    device = ForgetsABit(Speed())
    measured = measure(device, EFFORT, clock=device.clock)
    # Of a pattern and its complement one wants the bit set.
    assert [(fault.block, fault.offset, fault.bits) for fault in measured.faults] == [(0, 8000, f"{1 << 40:016x}")]
    assert (measured.wrong_words, measured.patterns) == (1, 2)


def test_a_test_that_did_not_end_fits_nothing():
    made = judge(Measured(uuid="GPU-1", name="x", backend="cuda", failures=("lost",)), None, None, table())
    assert made.grade == "unfit"
    assert "finished: 0, inference needs at least 1" in made.reasons
    assert all(item.fits == "unfit" for item in made.measurements if item.inference is not None)


def test_a_grade_cannot_be_set():
    made = card(SimulatedCard(Speed(link=0.25)))
    with pytest.raises(ValueError, match="follow from the measurements"):
        Card.model_validate({**dict(made), "grade": "training", "reasons": ()})
    assert verdict(()) == ("unfit", ())


def test_every_entry_of_the_table_names_its_source():
    cards = table().cards
    assert all("http" in claims.source for claims in cards)
    ids = [pci for claims in cards for pci in claims.pci]
    assert len(ids) == len(set(ids))
    assert table().claims("10de:2335").name == "NVIDIA H200"
    assert {table().claims(f"10de:{model}").memory for model in ("20c2", "2082")} == {8, 10}
    assert table().claims("10de:248a").name == "CMP 70HX"


def test_through_the_driver_every_step_is_measured_and_watched(machine, monkeypatch):
    uuid = machine.card(
        pci="00000000:65:00.0", pci_id=0x220410DE, temperature=61, temperature_slowdown=93, throttle=0x4, pcie_generation=1,
        pcie_width=1, pcie_generation_most=4, pcie_width_most=16, ecc=1, ecc_uncorrected=0, ecc_corrected=3, memory=33 * MIB,
    )  # fmt: skip
    said = []
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.1)
    (made,) = module.qualify(list_devices("cuda"), SHORT, progress=lambda device, step: said.append((device, step)))
    assert made.known_as == "GeForce RTX 3090"
    assert made.grade == "unfit"  # a file is no GeForce
    assert {"matmul-fp32", "matmul-fp16", "matmul-bf16", "matmul-int8", "matmul-fp64"} <= {item.id for item in made.measurements}
    assert found(made, "matmul-wrong-rows").seen == 0
    assert found(made, "memory-faults").seen == 0
    assert found(made, "memory-tested").seen > 0.9
    assert (found(made, "link-width").seen, found(made, "link-generation").seen) == (1, 1)
    assert found(made, "thermal-margin").seen == 32
    assert found(made, "held-back").fits == "training"
    assert (uuid, "memory pattern 2") in said


def test_two_cards_are_paired(machine):
    one, other = machine.card(0, peers=1, memory=160 * MIB), machine.card(1, memory=160 * MIB)
    row = module._pair(one, other)
    assert row.id == f"peer-{other}"
    assert row.seen > 0
    assert row.detail == "directly"


def test_under_load_the_card_alone_is_looked_at(machine, monkeypatch):
    one = machine.card(0, memory=33 * MIB, temperature=61, temperature_slowdown=93, inforom=0)
    whole, watched = [], []
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.1)
    monkeypatch.setattr(module, "inventory", lambda: whole.append(1) or inventory())
    monkeypatch.setattr(module, "watch", lambda gpu: watched.append(gpu.uuid) or dataclasses.replace(gpu, thermals=Thermals(90, 93)))
    (made,) = module.qualify(list_devices("cuda"), SHORT, progress=lambda *_: None)
    assert len(whole) == 2  # before and after
    assert set(watched) == {one}
    assert found(made, "thermal-margin").seen == 3


def test_a_rig_of_two_cards_is_qualified_one_after_the_other_and_then_in_pairs(machine):
    one, other = machine.card(0, memory=33 * MIB), machine.card(1, memory=33 * MIB, lost_after=2)
    said = []
    first, second = module.qualify(list_devices("cuda"), SHORT, progress=lambda device, step: said.append((device, step)))
    assert (first.uuid, second.uuid) == (one, other)
    assert found(first, "memory-faults").seen == 0
    assert not any(item.id == "finished" for item in first.measurements)
    assert "CUDA_ERROR_UNKNOWN" in found(second, "finished").detail
    # The pair's row stands with the first of the two, and one that could not be measured says why.
    assert "could not be measured" in found(first, f"peer-{other}").detail
    assert said[-1] == (one, f"copies to {other}")
    assert [device for device, _ in said] == [*sorted((device for device, _ in said[:-1]), key=(one, other).index), one]


@pytest.mark.parametrize(("planted", "words"), [({"lost_after": 2}, "CUDA_ERROR_UNKNOWN"), ({"hangs": "fill"}, "stopped after 3 s")])
def test_a_card_that_fails_in_the_test_is_unfit(machine, planted, words):
    machine.card(**planted)
    (made,) = module.qualify(
        list_devices("cuda"), SHORT.model_copy(update={"limit": 3 if "hangs" in planted else 60}), progress=lambda *_: None
    )
    assert made.grade == "unfit"
    assert words in found(made, "finished").detail


@pytest.mark.parametrize(
    ("planted", "words"),
    [({"held": 1}, "processes hold the device: 1"), ({"processes_unknown": 1}, "the driver does not tell which processes hold the device")],
)
def test_a_card_that_somebody_uses_or_may_use_is_not_touched(machine, planted, words):
    machine.card(**planted)
    (made,) = module.qualify(list_devices("cuda"), SHORT, progress=lambda *_: None)
    assert words in found(made, "finished").detail
    assert found(made, "memory-bandwidth").seen is None


def test_the_opencl_driver_is_measured_by_the_same_algorithm():
    opencl = pytest.importorskip("sandbox.node.gpu.opencl", reason="the opencl extra is not installed")
    (facts, *_) = opencl.list_devices(gpus_only=False)
    device = opencl.OpenClDevice(facts.uuid)
    small = DeviceFacts(**{**facts.__dict__, "total_bytes": 96 * MIB})
    device.facts = small
    measured = measure(device, EFFORT.model_copy(update={"load_seconds": 0.1}))
    device.close()
    assert not measured.failures
    assert {product.kind for product in measured.products} >= {"fp32", "int8"}
    assert all(product.wrong == 0 for product in measured.products)
    assert measured.wrong_words == 0
    assert measured.to_device_rate > 0
    assert 0.9 * 96 * MIB < measured.tested_bytes <= 96 * MIB
    assert json.loads(measured.model_dump_json())["patterns"] == 2
