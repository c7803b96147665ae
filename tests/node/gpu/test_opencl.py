"""The OpenCL backend on a real OpenCL driver (PoCL runs it on the CPU)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandbox.node.gpu import worker
from sandbox.node.gpu.device import DeviceNotFoundError, OutOfDeviceMemoryError
from sandbox.node.gpu.erase import DeviceWipe, erase
from tests.node.gpu.ram_device import MIB, pattern

opencl = pytest.importorskip("sandbox.node.gpu.opencl", reason="the opencl extra is not installed")
np = pytest.importorskip("numpy")
cl = pytest.importorskip("pyopencl")

DEVICES = opencl.list_devices(gpus_only=False)
pytestmark = pytest.mark.skipif(not DEVICES, reason="no OpenCL driver on this machine (pip install pocl-binary-distribution)")
SEED = 0xFEDCBA9876543211


@pytest.fixture
def device():
    opened = opencl.OpenClDevice(DEVICES[0].uuid)
    yield opened
    opened.close()


def read(device, buffer, words):
    out = np.empty(words, np.uint64)
    cl.enqueue_copy(device._queue, out, device._buffers[buffer], is_blocking=True)
    return out


@pytest.mark.parametrize("seed", [0, 1, SEED - 1, SEED, 2**64 - 1])
def test_fill_writes_exactly_the_specified_pattern(device, seed: int) -> None:
    buffer = device.allocate(MIB)
    device.fill(buffer, seed)
    assert (read(device, buffer, MIB // 8) == pattern(MIB // 8, seed)).all()
    assert device.compare(buffer, seed).mismatches == 0


def test_compare_counts_each_wrong_word_and_finds_the_first(device) -> None:
    buffer = device.allocate(MIB)
    device.fill(buffer, SEED)
    words = pattern(MIB // 8, SEED)
    for index in (77, 78, 100_000):
        words[index] ^= np.uint64(2**40)
    cl.enqueue_copy(device._queue, device._buffers[buffer], words, is_blocking=True)
    found = device.compare(buffer, SEED)
    assert (found.mismatches, found.first) == (3, 77)


def test_local_memory_is_written_and_read_back(device) -> None:
    result = device.scrub_local(SEED)
    assert result.visited == result.units >= 1
    assert result.local_bytes >= 16 * 1024
    assert result.errors == 0
    assert not result.proven  # OpenCL cannot say which unit ran a group


@pytest.fixture
def small(device):
    """A device that says that it has little: what PoCL offers is the machine's own memory."""
    device.facts = replace(device.facts, total_bytes=40 * MIB, largest_block=16 * MIB, cache_bytes=MIB)
    return device


def test_a_whole_wipe_runs_through_opencl(small) -> None:
    said: list[str] = []
    report = erase(small, SEED, progress=said.append)
    assert report.ok, report.failures
    assert (report.backend, report.written_bytes, report.verified_bytes, report.coverage) == ("opencl", 40 * MIB, 40 * MIB, 1)
    assert [(each.pattern, each.mismatches) for each in report.passes] == [("random", 0), ("zeros", 0)]
    assert (report.local_memory_scrubbed, report.local_memory_proven) == (True, False)
    blocks = [number for number in small._buffers if small._buffers[number].size > 64 * 1024]
    assert all(not read(small, block, small._buffers[block].size // 8).any() for block in blocks)
    assert said


def test_a_word_that_flips_between_fill_and_compare_is_told(small, monkeypatch) -> None:
    fill = small.fill

    def flips(buffer: int, seed: int) -> None:
        fill(buffer, seed)
        if seed == 0 and buffer == 0:
            cl.enqueue_copy(small._queue, small._buffers[0], np.full(1, 7, np.uint64), is_blocking=True)

    monkeypatch.setattr(small, "fill", flips)
    report = erase(small, SEED)
    assert not report.ok
    assert "pattern zeros: 1 words read back wrong" in "; ".join(report.failures)


def test_the_worker_prints_one_report(small, monkeypatch, capsys) -> None:
    monkeypatch.setattr(worker, "open_device", lambda *_: small)
    monkeypatch.setattr(worker.sys, "argv", ["worker", "opencl", small.facts.uuid])
    worker.main()
    said = capsys.readouterr()
    report = DeviceWipe.model_validate_json(said.out)
    assert (report.ok, report.uuid, report.coverage) == (True, small.facts.uuid, 1)
    assert "fill" in said.err


def test_more_than_the_device_has_is_refused(device) -> None:
    with pytest.raises(OutOfDeviceMemoryError):
        device.allocate(2**50)


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(DeviceNotFoundError, match=DEVICES[0].uuid):
        opencl.OpenClDevice("OCL-none")
