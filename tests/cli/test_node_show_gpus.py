"""``sealrig node show`` tells of the GPUs that are not leased too, and why."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime

from sandbox.cli import main, node
from sandbox.wire import Capacity, NodeInfo

NODE = "node-" + "0" * 32
DETAIL = "1 GPU; 1 lost: the driver cannot read it; 3 on the bus"


def test_a_lost_gpu_is_shown_and_so_is_what_only_the_bus_has(monkeypatch, capsys):
    rows = [{"uuid": "GPU-1", "name": "NVIDIA A100"}, {"uuid": "LOST-1", "name": "an NVIDIA GPU that is lost"}]
    info = NodeInfo(
        id=NODE, public_key="x", version="1", capacity=Capacity(slots=1, cpus=1, memory=1, scratch=1, gpus=("GPU-1",)), state="ready",
        inventory={"gpus": rows, "gpuDetail": DETAIL}, last_seen=datetime(2026, 11, 28, tzinfo=UTC),
    )  # fmt: skip

    @contextmanager
    def client(_server):
        yield type("Control", (), {"node": lambda _self, _name: info})()

    monkeypatch.setattr(node, "client", client)
    assert main(["node", "show", NODE]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if "NVIDIA" in line] == ["GPU-1", "LOST-1"]
    assert said[-1] == DETAIL
