"""How fast each GPU is overwritten and compared, against a copy within the device in the same run, and how much of it was reached.

Where there is no GPU, an OpenCL driver on the processor (PoCL) takes its place; that measures the code path, not a card. Goals
hold for cards only. ``--device UUID`` measures one device; ``POCL_MEMORY_LIMIT=1`` keeps PoCL's device at 1 GiB.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

from bench.report import Row, main
from sandbox.node.gpu.device import Device, DeviceFacts
from sandbox.node.gpu.vram import list_devices, wipe_device
from sandbox.node.gpu.worker import open_device

ROUNDS = 5
LARGEST_BUFFER = 8 * 2**30
SEED = 0x5EA1_5EA1_5EA1_5EA1
SHARE_OF_COPY = 0.9
WHOLE_WIPE_SECONDS = 5.0
LEAST_COVERAGE = 0.99


def measure(wanted: str | None = None) -> list[Row]:
    """Measure every device, or the one called ``wanted``."""
    devices = list_devices("auto") or list_devices("opencl")
    rows: list[Row] = []
    for facts in devices:
        if wanted in (None, facts.uuid):
            rows += _device(facts, is_card=facts in list_devices("auto"))
    return rows or [Row("devices that can be wiped", 0, "")]


def _device(facts: DeviceFacts, *, is_card: bool) -> list[Row]:
    device = open_device(facts.backend, facts.uuid)
    try:
        rates = _rates(device)
    finally:
        device.close()
    # A copy reads and writes each byte, so that its traffic is twice its size; fill and compare pass over it once.
    copy = 2 * rates.pop("copy")
    rows = [Row(f"{facts.name}: copy within the device (read and write)", copy, "GB/s")]
    for name, rate in rates.items():
        goal = SHARE_OF_COPY * copy if is_card else None
        rows.append(Row(f"{facts.name}: {name}", rate, "GB/s", "copy within the device", copy, at_least=goal))
    started = time.monotonic()
    report = wipe_device(facts)
    seconds = time.monotonic() - started
    rows.append(Row(f"{facts.name}: whole wipe from process start", seconds, "s", at_most=WHOLE_WIPE_SECONDS if is_card else None))
    rows.append(Row(f"{facts.name}: coverage of (total - reserved)", report.coverage, "", at_least=LEAST_COVERAGE))
    rows.append(Row(f"{facts.name}: proven", float(report.ok), "", at_least=1))
    return rows


def _rates(device: Device) -> dict[str, float]:
    """Return GB/s of copy, fill and compare: medians of interleaved rounds after one that does not count."""
    facts = device.facts
    size = min(LARGEST_BUFFER, facts.largest_block, (facts.total_bytes - facts.reserved_bytes) // 4) // 2**20 * 2**20
    first, second = device.allocate(size), device.allocate(size)
    deeds: dict[str, Callable[[], object]] = {
        "copy": lambda: device.copy(first, second),
        "fill, random pattern": lambda: device.fill(first, SEED),
        "compare, random pattern": lambda: device.compare(first, SEED),
        "fill, zeros": lambda: device.fill(first, 0),
        "compare, zeros": lambda: device.compare(first, 0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in deeds}
    for _ in range(ROUNDS + 1):
        for name, deed in deeds.items():
            started = time.perf_counter()
            deed()
            seconds[name].append(time.perf_counter() - started)
    return {name: size / statistics.median(taken[1:]) / 1e9 for name, taken in seconds.items()}


def _wanted(words: Sequence[str]) -> str | None:
    return words[words.index("--device") + 1] if "--device" in words[:-1] else None


if __name__ == "__main__":
    raise SystemExit(main("wipe", lambda: measure(_wanted(sys.argv[1:])), sys.argv[1:]))
