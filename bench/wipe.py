"""How fast each GPU is overwritten and compared, against a copy within the device in the same run, and how much of it was reached.

One command on a rig: ``./dev bench wipe [--device UUID] [--json]``. Goals hold for cards only. Where there is no GPU, an OpenCL driver on
the processor (PoCL) takes its place, beside the C library's memcpy; that measures the code path, not a card. ``--device UUID`` measures
one device; ``POCL_MEMORY_LIMIT=1`` keeps PoCL's device at 1 GiB.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.report import Row, main
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.erase import LEAST_COVERAGE, DeviceWipe
from sandbox.node.gpu.vram import list_devices
from sandbox.node.gpu.worker import open_device

ROUNDS = 5
LARGEST_BUFFER = 8 * 2**30
MEMCPY_BYTES = 256 * 2**20
SEED = 0x5EA1_5EA1_5EA1_5EA1
SHARE_OF_COPY = 0.9
WHOLE_WIPE_SECONDS = 5.0
COPY = "copy within the device"


def measure(wanted: str | None = None) -> list[Row]:
    """Measure every device, or the one called ``wanted``."""
    cards = list_devices("auto")
    rows: list[Row] = []
    for facts in cards or list_devices("opencl"):
        if wanted in (None, facts.uuid):
            # Rates in a process of their own: CUDA shows one device to a process, and the wipe is to find the memory free.
            program = [sys.executable, "-m", "bench.wipe", "--rates", facts.backend, facts.uuid]
            said = subprocess.run(program, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=True).stdout
            rates = {name: float(rate) for name, _, rate in (line.rpartition("=") for line in said.splitlines())}
            rows += [*_rows(facts, rates, is_card=bool(cards)), *_whole(facts, is_card=bool(cards))]
    return rows or [Row("devices that can be wiped", 0, "")]


def _rows(facts: DeviceFacts, rates: dict[str, float], *, is_card: bool) -> list[Row]:
    # A copy reads and writes each byte, so that its traffic is twice its size; fill and compare pass over it once.
    copy, goal = 2 * rates.pop(COPY), SHARE_OF_COPY if is_card else None
    others = {name: rates.pop(name) for name in ("driver's memset", "memcpy on the processor") if name in rates}
    rows = [Row(f"{facts.name}: {COPY} (read and write)", copy, "GB/s")]
    for name, rate in rates.items():
        rows.append(Row(f"{facts.name}: {name}", rate, "GB/s", COPY, copy, ratio_at_least=goal))
        rows += [Row(f"{facts.name}: {name}", rate, "GB/s", other, value) for other, value in others.items()]
    return rows


def _whole(facts: DeviceFacts, *, is_card: bool) -> list[Row]:
    """Run the wipe's own worker and look at the clock: from its start to its first step, and to its end."""
    started = time.perf_counter()
    argv = [sys.executable, "-m", "sandbox.node.gpu.worker", facts.backend, facts.uuid]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        assert worker.stdout is not None
        worker.stderr.readline()
        opened = time.perf_counter() - started
        report = DeviceWipe.model_validate_json(worker.stdout.read())
        worker.wait()
    seconds = time.perf_counter() - started
    return [
        Row(f"{facts.name}: start of the process and the driver", opened, "s"),
        Row(f"{facts.name}: whole wipe from process start", seconds, "s", at_most=WHOLE_WIPE_SECONDS if is_card else None),
        Row(f"{facts.name}: coverage of (total - reserved)", report.coverage, "", at_least=LEAST_COVERAGE),
        Row(f"{facts.name}: proven", float(report.ok), "", at_least=1),
    ]


def rates_of(backend: str, uuid: str) -> dict[str, float]:
    """Return GB/s of each deed: medians of interleaved rounds after one that does not count."""
    device: Any = open_device(backend, uuid)
    facts: DeviceFacts = device.facts
    size = min(LARGEST_BUFFER, facts.largest_block, (facts.total_bytes - facts.reserved_bytes) // 4) // 2**20 * 2**20
    first, second = device.allocate(size), device.allocate(size)
    deeds: dict[str, tuple[int, Callable[[], object]]] = {
        COPY: (size, lambda: device.copy(first, second)),
        "fill, random pattern": (size, lambda: device.fill(first, SEED)),
        "compare, random pattern": (size, lambda: device.compare(first, SEED)),
        "fill, zeros": (size, lambda: device.fill(first, 0)),
        "compare, zeros": (size, lambda: device.compare(first, 0)),
    }
    if backend == "cuda":
        deeds["driver's memset"] = size, lambda: device.clear(first)
    else:
        one, two = (ctypes.create_string_buffer(MEMCPY_BYTES) for _ in range(2))
        deeds["memcpy on the processor"] = MEMCPY_BYTES, lambda: ctypes.memmove(one, two, MEMCPY_BYTES)
    seconds: dict[str, list[float]] = {name: [] for name in deeds}
    for _ in range(ROUNDS + 1):
        for name, (_, deed) in deeds.items():
            started = time.perf_counter()
            deed()
            seconds[name].append(time.perf_counter() - started)
    device.close()
    return {name: deeds[name][0] / statistics.median(taken[1:]) / 1e9 for name, taken in seconds.items()}


def _wanted(words: Sequence[str]) -> str | None:
    return words[words.index("--device") + 1] if "--device" in words[:-1] else None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rates"]:
        print("\n".join(f"{name}={rate}" for name, rate in rates_of(*sys.argv[2:4]).items()))
        raise SystemExit(0)
    raise SystemExit(main("wipe", lambda: measure(_wanted(sys.argv[1:])), sys.argv[1:], about=__doc__))
