"""The leak hunt's parties on a real OpenCL driver (PoCL runs it on the CPU), and in containers through a stand-in for docker."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from bench.leak import __main__ as hunt
from bench.leak import containers, party
from sandbox.node.gpu.device import DeviceFacts
from tests.node.gpu.ram_device import MIB

CANARY = 0xC0FFEE_5EA1_0123
CARD = DeviceFacts("GPU-1", "card", "cuda", 16 * MIB, 0, 16 * MIB, MIB, 4)
SAID = {"memory": 5, "memory_words": 100, "memory_in_all": 100, "local": 7, "local_words": 10, "units": 4, "units_in_all": 4}
DOCKER = """#!/bin/sh
echo "$@" >> "$FAKE_DOCKER/asked"
case "$1" in
image) exit "${FAKE_IMAGE:-0}" ;;
kill) kill "$(cat "$FAKE_DOCKER/$2")" ;;
run)
  name=$(echo "$@" | sed 's/.*--name \\([^ ]*\\).*/\\1/')
  echo $$ > "$FAKE_DOCKER/$name"
  cat "$FAKE_DOCKER/said"
  case "$*" in *stay) exec sleep 60 ;; esac ;;
esac
"""


@pytest.fixture
def device(monkeypatch):
    """A device that says that it has little: what PoCL offers is the machine's own memory."""
    opencl = pytest.importorskip("sandbox.node.gpu.opencl", reason="the opencl extra is not installed")
    found = opencl.list_devices(gpus_only=False)
    if not found:
        pytest.skip("no OpenCL driver on this machine (pip install pocl-binary-distribution)")
    opened = opencl.OpenClDevice(found[0].uuid)
    opened.facts = replace(opened.facts, total_bytes=20 * MIB, largest_block=16 * MIB)
    monkeypatch.setattr(party, "open_device", lambda *_: opened)
    yield opened
    opened.close()


def test_a_victim_plants_in_all_memory_and_reads_it_back(device):
    said, _ = party.play("plant", "opencl", device.facts.uuid, CANARY)
    words = 20 * MIB // 8
    assert (said["memory"], said["memory_words"], said["memory_in_all"]) == (words, words, words)
    assert said["units"] == said["units_in_all"] == device.facts.units
    assert said["local"] == said["local_words"] > 0


def test_a_victim_whose_canary_did_not_stay_says_so(device, monkeypatch):
    load = device.load
    monkeypatch.setattr(device, "load", lambda *words: {**(kernels := load(*words)), "spread": kernels["count"]})  # writes nothing
    for block, _ in party.allocate_all(device):
        device.fill(block, 0)
    said, _ = party.play("plant", "opencl", device.facts.uuid, CANARY)
    assert said["memory"] < said["memory_words"]


def test_a_listener_counts_the_words_that_it_finds(device, monkeypatch):
    np, cl = pytest.importorskip("numpy"), pytest.importorskip("pyopencl")
    allocate = device.allocate

    def with_residue(size: int) -> int:
        block = allocate(size)
        device.fill(block, 0)
        left = np.array([CANARY, CANARY + 1, CANARY], np.uint64)
        cl.enqueue_copy(device._queue, device._buffers[block], left, dst_offset=size - 64, is_blocking=True)
        return block

    monkeypatch.setattr(device, "allocate", with_residue)
    said, _ = party.play("listen", "opencl", device.facts.uuid, CANARY)
    assert (said["memory"], said["memory_words"]) == (4, 20 * MIB // 8)  # two in each of two blocks
    assert said["units"] == said["units_in_all"]
    assert said["local"] <= said["local_words"]


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A program called docker that notes what it is asked and plays both parties."""
    program = tmp_path / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    (tmp_path / "said").write_text(json.dumps(SAID) + "\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_DOCKER", str(tmp_path))
    monkeypatch.setattr(containers, "CDI_FILE", tmp_path / "said")
    return tmp_path


def asked(docker):
    return (docker / "asked").read_text().splitlines()


def test_parties_in_containers_have_the_card_and_nothing_else(docker):
    said = containers.plant_and_kill(CARD, "c0ffee")
    assert json.loads(said) == SAID
    run, kill = asked(docker)
    name = kill.removeprefix("kill ")
    for option in (f"--name {name}", "--network=none", "--cap-drop=ALL", "--read-only", "--device=sealrig.dev/gpu=GPU-1"):
        assert option in run
    assert run.endswith(f"{containers.IMAGE} python3 -m bench.leak.party plant cuda GPU-1 c0ffee stay")
    assert json.loads(containers.listen(CARD, "c0ffee")) == SAID
    assert asked(docker)[-1].endswith("bench.leak.party listen cuda GPU-1 c0ffee")


def test_why_there_are_no_containers_is_said(docker, monkeypatch):
    assert containers.missing(CARD) == ""
    assert "only CDI devices" in containers.missing(replace(CARD, backend="opencl"))
    monkeypatch.setenv("FAKE_IMAGE", "1")
    assert containers.missing(CARD).startswith("no image")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert containers.missing(CARD) == "no Docker Engine answers"
    monkeypatch.setattr(containers, "CDI_FILE", docker / "none")
    assert "no CDI specification" in containers.missing(CARD)


def test_the_rows_of_a_round_in_containers(docker, monkeypatch):
    monkeypatch.setattr(hunt, "_SETTLE_SECONDS", 0)
    monkeypatch.setattr(hunt, "wipe_device", lambda _: type("Report", (), {"ok": True})())
    rows = {row.what: row for row in hunt._rows(CARD, hunt.ENDS[2])}
    name = f"card: victim {hunt.ENDS[2]}"
    assert (rows[f"{name}, the driver alone: global memory"].value, rows[f"{name}, the driver alone: global memory"].ok) == (5, None)
    assert rows[f"{name}, after our wipe: global memory"].ok is False
    assert rows[f"{name}, after our wipe: share planted"].value == 0.05
    assert rows[f"{name}, after our wipe: share looked at"].ok
    assert len([line for line in asked(docker) if line.startswith("kill")]) == 2
