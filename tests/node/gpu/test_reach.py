"""A GPU that no wipe can reach well enough is never leased: found out when the node starts, not by a wipe that fails after a job."""

from __future__ import annotations

import pytest

from sandbox.errors import JobError
from sandbox.node.gpu import child
from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.model import Gpu, Inventory
from sandbox.node.gpu.pool import GpuPool
from sandbox.node.gpu.reach import Reach, unleasable
from tests.node.gpu.machine import MIB


def why(machine, **planted):
    uuid = machine.card(**planted)
    return unleasable(inventory().gpus).get(uuid)


def test_a_card_that_a_wipe_reaches_is_leased_and_not_written_to(machine):
    assert why(machine) is None
    assert sum(map(bool, machine.memory())) <= 16  # but for the kernels' own tally


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        (
            {"allocations_most": 8 * MIB},
            "a wipe cannot reach 8519680 of 16777216 bytes, 0 of them taken by the driver; at most 1% may be missed",
        ),
        ({"capability": 61}, "older than 7.5"),
        ({"processes_unknown": 1}, "does not tell which processes"),
    ],
    ids=["too small", "too old", "holders unknown"],
)
def test_a_card_whose_wipes_would_fail_is_not(machine, planted, words):
    assert words in why(machine, **planted)


def test_a_card_that_somebody_holds_is_not_judged(machine):
    assert why(machine, held=1, allocations_most=8 * MIB) is None


def test_a_babbling_worker_is_no_answer(monkeypatch):
    monkeypatch.setattr(child, "answer", lambda *_: b"[1]")
    assert "cannot be read" in unleasable([Gpu("GPU-1", "x", 100, 0)])["GPU-1"]


def test_the_share_is_that_of_the_wipe():
    card = Gpu("GPU-1", "x", 1000, 0)
    assert unleasable([card], lambda *_: Reach(1000, 990, 5)) == {}
    assert "10 of 999 bytes, 5 of them" in unleasable([card], lambda *_: Reach(999, 989, 5))["GPU-1"]


def test_the_pool_does_not_give_it_out_and_says_why():
    pool = GpuPool(Inventory((Gpu("GPU-1", "x", 10, 0), Gpu("GPU-2", "x", 100, 0)), 2, "2 GPUs"), cdi=True, refused={"GPU-1": "too small"})
    assert pool.take("lease-" + "a" * 32, 1, 0) == ("GPU-2",)
    with pytest.raises(JobError) as refused:
        pool.take("lease-" + "b" * 32, 1, 0)
    assert "2 GPUs; GPU-1 is not leased: too small" in refused.value.details["seen"]
    assert len(pool.inventory.gpus) == 2
