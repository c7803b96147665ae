"""What a node tells of its GPUs: to the server anew while it is idle, and to the customer in evidence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from attestation.evidence import GpuFact
from attestation.signing import SigningKey
from sandbox.node import supervisor as module
from sandbox.node.evidence import gpu_facts
from sandbox.node.gpu.model import Driver, Errors, Gpu, Inventory, Link, Thermals
from sandbox.node.gpu.pool import GpuPool
from sandbox.wire import Capacity

ONE = Gpu(uuid="GPU-1", name="card", memory=2**34, reserved=0)
CAPACITY = Capacity(slots=1, cpus=1, memory=1, scratch=1, gpus=("GPU-1",))


@pytest.fixture
def told():
    return []


@pytest.fixture
def supervisor(monkeypatch, told):
    pool = GpuPool(Inventory((ONE,), 1, "1 GPU"), cdi=True, refused={"GPU-2": "too small"})
    node = SimpleNamespace(
        key=SigningKey.generate(), gpus=pool, facts=SimpleNamespace(scratch=(), engine={}), client=SimpleNamespace(register=told.append)
    )
    warm = Inventory((Gpu(**{**vars(ONE), "thermals": Thermals(temperature=81)}),), 1, "1 GPU")
    monkeypatch.setattr(module, "inventory", lambda: warm)
    return module.Supervisor(node, CAPACITY, cache_bytes=0)


def test_an_idle_node_tells_anew_of_its_gpus_now_and_then(supervisor, told, monkeypatch):
    supervisor._refresh()
    supervisor._refresh()
    (registration,) = told
    assert registration.inventory["gpus"][0]["thermals"]["temperature"] == 81
    assert registration.inventory["gpuDetail"] == "1 GPU; GPU-2 is not leased: too small"
    assert registration.capacity == CAPACITY
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0)
    supervisor._refresh()
    assert len(told) == 2


def test_a_node_with_a_lease_leaves_its_gpus_alone(supervisor, told):
    supervisor._threads["lease-1"] = None
    supervisor._refresh()
    assert told == []


def test_evidence_tells_what_the_drivers_do():
    gpu = Gpu(
        uuid="GPU-1", name="card", memory=2**34, reserved=0, link=Link(1, 8, 4, 16), mig=False, nvlinks=12,
        errors=Errors(ecc=True, uncorrected=2, retired_pages=7, retirement_pending=False, remapped_rows=3, remapping_pending=True,
                      remapping_failed=False),
    )  # fmt: skip
    driver = Driver("580", confidential=True, parameters={"RegistryDwords": "RMDisableScrubOnFree=1", "RmProfilingAdminOnly": "1"})
    (fact,) = gpu_facts(Inventory((gpu,), 1, "1 GPU", driver), ("GPU-1",))
    assert fact.model_dump() == {
        "uuid": "GPU-1", "name": "card", "memory": 2**34, "leased": True, "pci": "", "driver": "", "vbios": "", "serial": "", "parent": "",
        "link": "gen 1 x8 of gen 4 x16", "ecc": True, "uncorrected_errors": 2, "retired_pages": 7, "remapped_rows": 3,
        "repair_pending": True, "repair_failed": False, "mig": False, "nvlinks": 12, "confidential": True,
        "driver_parameters": "RegistryDwords=RMDisableScrubOnFree=1; RmProfilingAdminOnly=1",
    }  # fmt: skip


def test_what_a_driver_does_not_tell_is_left_out_of_evidence():
    (fact,) = gpu_facts(Inventory((ONE,), 1, "1 GPU"), ())
    assert set(fact.model_dump()) == {"uuid", "name", "memory", "leased", "pci", "driver", "vbios", "serial", "parent"}
    assert GpuFact.model_validate(fact.model_dump()) == fact
