"""What is told of GPUs: NVIDIA's through the real nvidia-ml-py on a stand-in library, AMD's through a captured tree of sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.errors import JobError
from sandbox.node.evidence import gpu_facts
from sandbox.node.gpu import nvml, sysfs, touch
from sandbox.node.gpu.inventory import inventory, watch
from sandbox.node.gpu.model import Inventory
from sandbox.node.gpu.pool import GpuPool
from sandbox.node.gpu.wiper import VramWiper
from tests.node.gpu.machine import MIB, uuid
from tests.node.gpu.test_cuda import leave_residue

WHOLE = {
    "name": "NVIDIA A100-SXM4-80GB", "memory": 80 * 2**30, "reserved": 600 * MIB, "pci": "00000000:C1:00.0", "pci_id": "0x20B210DE",
    "pci_subsystem": "0x147F10DE", "vbios": "92.00.45.00.03", "serial": "1324120011223", "minor": 3, "pcie_generation": 1,
    "pcie_generation_most": 4, "pcie_width": 8, "pcie_width_most": 16, "ecc": 1, "ecc_corrected": 12, "ecc_uncorrected": 1,
    "remapped_rows": "2 1 1 0", "retired_single": 3, "retired_double": 4, "retired_pending": 0, "nvlinks": 12, "mig": 0, "conf_compute": 1,
    "temperature": 64, "temperature_slowdown": 92, "power": 250500, "power_limit": 400000, "throttle": "0x44", "inforom": 0,
}  # fmt: skip


def test_everything_that_nvml_tells_is_told(machine):
    machine.card(0, **WHOLE)
    (gpu,) = inventory().gpus
    assert (gpu.uuid, gpu.name, gpu.memory, gpu.reserved) == (uuid(0), WHOLE["name"], 80 * 2**30, 600 * MIB)
    assert (gpu.pci, gpu.pci_id, gpu.subsystem) == ("00000000:c1:00.0", "10de:20b2", "10de:147f")
    assert (gpu.vbios, gpu.serial, gpu.driver, gpu.minor) == ("92.00.45.00.03", "1324120011223", "580.178.04", 3)
    assert vars(gpu.link) == {"generation": 1, "width": 8, "generation_most": 4, "width_most": 16}
    assert vars(gpu.errors) == {
        "ecc": True, "corrected": 12, "uncorrected": 1, "retired_pages": 7, "retirement_pending": False, "remapped_rows": 3,
        "remapping_pending": True, "remapping_failed": False,
    }  # fmt: skip
    assert (gpu.thermals.temperature, gpu.thermals.slowdown_at, gpu.thermals.power, gpu.thermals.power_limit) == (64, 92, 250.5, 400.0)
    assert gpu.thermals.throttled_by == ("power cap", "thermal slowdown (hardware)")
    assert (gpu.nvlinks, gpu.mig, gpu.processes, gpu.inforom_valid) == (12, False, (), True)
    assert inventory().driver.confidential is True
    told = inventory().summary()
    assert told["gpus"][0]["errors"]["remapped_rows"] == 3
    assert told["gpuDetail"].startswith("1 GPU")


def test_what_a_card_does_not_tell_is_unknown(machine):
    machine.card(processes_unknown=1, vbios=None, accounting=None, inforom=None)
    (gpu,) = inventory().gpus
    assert gpu.processes is None
    assert set(vars(gpu.link).values()) == {None}
    assert set(vars(gpu.errors).values()) == {None}
    assert (gpu.thermals.throttled_by, gpu.nvlinks, gpu.mig, gpu.inforom_valid, gpu.vbios) == (None, None, None, None, "")
    assert inventory().driver.confidential is None


@pytest.mark.parametrize(("planted", "name"), [({"fails": 15}, "LOST-1"), ({"name": None}, uuid(1))], ids=["lost", "unreadable"])
def test_a_lost_card_is_shown_and_never_leased_and_hides_no_other(machine, monkeypatch, planted, name):
    machine.card(0)
    machine.card(1, **planted)
    machine.card(2)
    monkeypatch.setattr(sysfs, "gpus_on_bus", lambda: 3)
    monkeypatch.setattr(sysfs, "intel_on_bus", lambda: 0)
    found = inventory()
    assert [(gpu.uuid, bool(gpu.lost)) for gpu in found.gpus] == [(uuid(0), False), (name, True), (uuid(2), False)]
    assert found.gpus[1].lost in found.detail
    assert found.detail.startswith("2 GPUs; 1 lost: ")
    lost = found.summary()["gpus"][1]
    assert (lost["name"], lost["lost"]) == ("an NVIDIA GPU that is lost", found.gpus[1].lost)
    pool = GpuPool(found, cdi=True)
    assert [gpu.uuid for gpu in pool.leasable] == [uuid(0), uuid(2)]
    assert f"{name} is not leased: {found.gpus[1].lost}" in pool.inventory.detail
    # Evidence lists it too: bus, driver and list have to agree on how many cards there are.
    assert [gpu.leased for gpu in gpu_facts(found, (uuid(0),))] == [True, False, False]
    for report, ok in zip(VramWiper(patience=0).reports((uuid(0), name)), (True, False), strict=True):
        assert report.ok is ok, report.failures
    assert found.gpus[1].lost in report.failures[0]


def test_what_the_bus_shows_and_no_driver_is_told(machine, monkeypatch):
    machine.card(0)
    monkeypatch.setattr(sysfs, "gpus_on_bus", lambda: 2)
    monkeypatch.setattr(sysfs, "intel_on_bus", lambda: 1)
    assert inventory().detail == "1 GPU; 2 on the bus; 1 of Intel's on the bus, which is never leased"
    monkeypatch.setattr(sysfs, "gpus_on_bus", lambda: 1)
    monkeypatch.setattr(sysfs, "intel_on_bus", lambda: 0)
    assert inventory().detail == "1 GPU"


def test_the_driver_parameters_that_matter_are_told(machine, tmp_path):
    machine.card()
    params = tmp_path / "params"
    params.write_text('RegistryDwords: "RMDisableScrubOnFree=1"\nOther: 7\nRmProfilingAdminOnly: 1\n')
    with nvml.session():
        driver = nvml.read_driver(params)
    assert driver.parameters == {"RegistryDwords": "RMDisableScrubOnFree=1", "RmProfilingAdminOnly": "1"}


def mig(machine):
    parts = {f"mig{number}_{name}": value for number, (memory, instance) in enumerate(((20, 1), (40, 2))) for name, value in {
        "uuid": f"MIG-0000000{number}-aaaa-4000-8000-00000000000{number}", "name": f"NVIDIA A100 MIG {memory}gb", "memory": memory * 2**30,
        "reserved": 0, "instance": instance, "compute-instance": 0}.items()}  # fmt: skip
    machine.card(0, **{**WHOLE, "mig": 1, "mig_most": 7}, **parts)
    machine.card(1)


def test_a_divided_gpu_is_its_instances(machine):
    mig(machine)
    small, large, whole = inventory().gpus
    assert [gpu.uuid[:3] for gpu in (small, large, whole)] == ["MIG", "MIG", "GPU"]
    assert (small.parent, small.instance, small.minor, small.memory) == (uuid(0), (1, 0), 3, 20 * 2**30)
    pool = GpuPool(inventory(), cdi=True)
    assert pool.take("lease-1", 1, 30 * 2**30) == (large.uuid,)
    assert pool.take("lease-2", 1, 16 * 2**30) == (small.uuid,)
    with pytest.raises(JobError, match="not enough free GPUs"):
        pool.take("lease-3", 1, 16 * 2**30)
    assert pool.devices((small.uuid,)) == {"devices": (), "cdi": (f"sealrig.dev/gpu={small.uuid}",)}


def test_a_mark_changes_with_every_use(machine):
    one = machine.card()
    before = touch.mark(one)
    assert before == touch.mark(one)
    leave_residue(machine, one)
    assert touch.mark(one) not in (before, None)


def test_accounts_are_switched_on_and_from_then_on_tell_of_use(machine):
    one = machine.card(accounting=0)
    assert touch.mark(one) is None
    assert touch.keep_accounts(one)
    before = touch.mark(one)
    assert before is not None
    leave_residue(machine, one)
    assert touch.mark(one) not in (before, None)


def test_a_card_without_accounts_has_none_and_never_counts_as_untouched(machine):
    one = machine.card(accounting=None)
    assert not touch.keep_accounts(one)
    assert touch.mark(one) is None


def test_a_second_look_asks_for_what_changes_and_keeps_the_rest(machine):
    machine.card(0, **WHOLE)
    (first,) = inventory().gpus
    # What is asked no more is gone: were it asked again, it would be unknown.
    machine.card(0, **{**WHOLE, "temperature": 81, "pcie_generation": 4, "throttle": "0x8", "inforom": None, "retired_single": None})
    now = watch(first)
    assert (now.thermals.temperature, now.link.generation, now.thermals.throttled_by) == (81, 4, ("hardware slowdown",))
    assert (now.inforom_valid, now.errors, now.uuid) == (True, first.errors, first.uuid)


def test_a_card_that_is_lost_is_not_seen_again(machine):
    machine.card(0)
    (first,) = inventory().gpus
    machine.card(0, uuid="GPU-another")
    assert watch(first) is None


def amd(root: Path) -> Path:
    card = root / "0000:03:00.0"
    files = {
        "vendor": "0x1002", "device": "0x73bf", "class": "0x030000", "subsystem_vendor": "0x1da2", "subsystem_device": "0xe438",
        "mem_info_vram_total": str(16 * 2**30), "unique_id": "c8d4a2f1e0b39957", "vbios_version": "113-1E4380U-O4H",
        "product_name": "AMD Radeon RX 6800 XT", "serial_number": "", "current_link_speed": "2.5 GT/s PCIe", "current_link_width": "1",
        "max_link_speed": "16.0 GT/s PCIe", "max_link_width": "16", "ras/umc_err_count": "ue: 0\nce: 5",
        "ras/gpu_vram_bad_pages": "0x00001000 : 0x00001000 : R\n0x00002000 : 0x00001000 : P", "hwmon/hwmon3/temp1_input": "54000",
        "hwmon/hwmon3/temp1_crit": "100000", "hwmon/hwmon3/power1_average": "45000000", "hwmon/hwmon3/power1_cap": "255000000",
    }  # fmt: skip
    for name, text in files.items():
        (card / name).parent.mkdir(parents=True, exist_ok=True)
        (card / name).write_text(text + "\n")
    (card / "drm/renderD128").mkdir(parents=True)
    (card / "drm/card0").mkdir()
    return card


def test_an_amd_card_is_read_from_sysfs(tmp_path):
    amd(tmp_path / "devices")
    (gpu,) = sysfs.read_gpus(tmp_path / "devices")
    assert (gpu.uuid, gpu.name, gpu.backend) == ("AMD-c8d4a2f1e0b39957", "AMD Radeon RX 6800 XT", "opencl")
    assert (gpu.memory, gpu.pci, gpu.pci_id, gpu.subsystem) == (16 * 2**30, "0000:03:00.0", "1002:73bf", "1da2:e438")
    assert vars(gpu.link) == {"generation": 1, "width": 1, "generation_most": 4, "width_most": 16}  # on a riser
    assert (gpu.errors.corrected, gpu.errors.uncorrected, gpu.errors.retired_pages, gpu.errors.retirement_pending) == (5, 0, 2, True)
    assert (gpu.thermals.temperature, gpu.thermals.slowdown_at, gpu.thermals.power, gpu.thermals.power_limit) == (54, 100, 45.0, 255.0)
    assert gpu.nodes == ("/dev/kfd", "/dev/dri/renderD128")
    pool = GpuPool(Inventory((gpu,), 1, "1 GPU"), cdi=False)
    assert pool.devices(pool.take("lease", 1, 0)) == {"devices": ("/dev/kfd", "/dev/dri/renderD128"), "cdi": ()}


def test_who_has_a_render_node_open_is_found(tmp_path):
    for process, target in (("17", "/dev/dri/renderD128"), ("18", "/dev/null"), ("self", "/dev/dri/renderD128")):
        (tmp_path / process / "fd").mkdir(parents=True)
        (tmp_path / process / "fd" / "4").symlink_to(target)
    (tmp_path / "19").mkdir()  # ended meanwhile
    assert sysfs.holders(("/dev/dri/renderD128",), tmp_path) == (17,)
    assert sysfs.holders(("/dev/dri/renderD129",), tmp_path) == ()


def test_a_card_without_its_serial_number_goes_by_its_place(tmp_path):
    assert sysfs.pci_uuid("0000:03:00.0", tmp_path) == "PCI-0000:03:00.0"
    (tmp_path / "0000:03:00.0").mkdir()
    (tmp_path / "0000:03:00.0" / "unique_id").write_text("../../x\n")
    assert sysfs.pci_uuid("0000:03:00.0", tmp_path) == "PCI-0000:03:00.0"
