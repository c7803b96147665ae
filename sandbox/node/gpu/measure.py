"""What a card can do, measured by one algorithm through either driver.

1. speed: a copy within the device, fill and compare, and the link both ways from pinned memory
2. matrix products in every kind of number that the device has; each result is checked whole by Freivalds' method: C r = A (B r) for random
   vectors r, in exact integer arithmetic (Freivalds, "Probabilistic machines can use less running time", IFIP 1977)
3. load: the fastest kind again and again; how much of the first speed is left at the end
4. memory: random patterns and their complements in all that can be had, each address with another word; what reads back wrong, and where

What it reports are figures. Judging them is ``judge.py``'s.
"""

from __future__ import annotations

import math
import secrets
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from sandbox.node.gpu.device import MATRIX_STEP, DeviceError, Workbench
from sandbox.node.gpu.erase import allocate_all, block_seed

Clock = Callable[[], float]
Progress = Callable[[str], None]
_ROUNDS = 3
_RATE_BYTES = 2**30
_LINK_BYTES = 256 * 2**20
_SMALLEST_MATRIX = 256
_ENOUGH_SECONDS = 0.02
"""A matrix is large enough when one product takes this long."""
_SLICES = 8
_TRIALS = 2
_LIMIT = 3
"""Elements are whole numbers from -3 to 3: every sum of products is exact in each kind, 9 * 8192 < 2^24."""
MAX_FAULTS = 64


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class Effort(_Figures):
    """How long to look: seconds of load, the least number of patterns, seconds to spend on further ones, and the limit to all of it."""

    mode: Literal["quick", "full"]
    limit: float
    load_seconds: float
    patterns: int
    pattern_seconds: float
    largest_matrix: int = 4096


QUICK = Effort(mode="quick", limit=120, load_seconds=15, patterns=2, pattern_seconds=0)
# Full is to end in about seven minutes on a card that is well: the rest of its limit is for those that are slow.
FULL = Effort(mode="full", limit=900, load_seconds=150, patterns=4, pattern_seconds=240)


class Product(_Figures):
    """The product of two n x n matrices. ``tflops`` counts 2 n³ operations; ``wrong`` counts rows of C that the check refused."""

    kind: str
    n: int
    tflops: float
    wrong: int


class MemoryFault(_Figures):
    """A 64-bit word that read back wrong: which block, at which byte of it, and the differing bits in hex."""

    block: int
    offset: int
    bits: str


class Measured(_Figures):
    """Everything that was measured on one device; None is what was not. Rates in GB/s (10^9 bytes)."""

    uuid: str
    name: str
    backend: str
    total_bytes: int = 0
    reserved_bytes: int = 0
    copy_rate: float | None = None
    fill_rate: float | None = None
    compare_rate: float | None = None
    to_device_rate: float | None = None
    from_device_rate: float | None = None
    products: tuple[Product, ...] = ()
    sustained: float | None = None
    tested_bytes: int = 0
    patterns: int = 0
    wrong_words: int | None = None
    faults: tuple[MemoryFault, ...] = ()
    seconds: float = 0.0
    failures: tuple[str, ...] = ()


def measure(device: Workbench, effort: Effort, *, clock: Clock = time.perf_counter, progress: Progress = lambda _: None) -> Measured:
    """Measure one device. Never raises for what the device does: what failed is in ``failures``, and its figures stay None."""
    facts = device.facts
    figures: dict[str, Any] = {
        "uuid": facts.uuid,
        "name": facts.name,
        "backend": facts.backend,
        "total_bytes": facts.total_bytes,
        "reserved_bytes": facts.reserved_bytes,
    }
    started = clock()
    blocks: list[tuple[int, int]] = []
    failures: list[str] = []
    try:
        progress("speed of memory and link")
        figures |= _speeds(device, blocks, clock)
        products, matrices = _products(device, effort, blocks, clock, progress)
        figures["products"] = products
        if products:
            progress(f"load for {effort.load_seconds:.0f} s")
            figures["sustained"] = _sustained(device, effort, max(products, key=lambda item: item.tflops), matrices, clock)
        blocks += allocate_all(device, sum(size for _, size in blocks))
        figures |= _memory(device, effort, blocks, clock, progress)
    except DeviceError as error:
        failures.append(str(error))
    return Measured(**figures, seconds=round(clock() - started, 3), failures=tuple(failures))


def _speeds(device: Workbench, blocks: list[tuple[int, int]], clock: Clock) -> dict[str, float]:
    facts = device.facts
    free = facts.total_bytes - facts.reserved_bytes
    size = 1 << (min(_RATE_BYTES, facts.largest_block, free // 8).bit_length() - 1)
    first, second = device.allocate(size), device.allocate(size)
    blocks += [(first, size), (second, size)]
    linked = min(size, _LINK_BYTES)
    deeds: dict[str, tuple[int, Callable[[], object]]] = {
        # A copy reads and writes each byte, so that its traffic is twice its size.
        "copy_rate": (2 * size, lambda: device.copy(first, second)),
        "fill_rate": (size, lambda: device.fill(first, 1)),
        "compare_rate": (size, lambda: device.compare(first, 1)),
        "to_device_rate": (linked, lambda: device.transfer(second, linked, to_device=True)),
        "from_device_rate": (linked, lambda: device.transfer(second, linked, to_device=False)),
    }
    rates = {}
    for name, (moved, deed) in deeds.items():
        deed()  # the first one pays for pinning and warming up
        rates[name] = round(moved / statistics.median(_timed(deed, clock) for _ in range(_ROUNDS)) / 1e9, 3)
    return rates


def _products(
    device: Workbench, effort: Effort, blocks: list[tuple[int, int]], clock: Clock, progress: Progress
) -> tuple[tuple[Product, ...], dict[str, tuple[int, int, int]]]:
    """Multiply in every kind; return the figures, and where the largest matrices of each kind lie."""
    found: list[Product] = []
    places: dict[str, tuple[int, int, int]] = {}
    facts = device.facts
    most = math.isqrt((facts.total_bytes - facts.reserved_bytes) // (8 * 8 * 3)) // MATRIX_STEP * MATRIX_STEP
    largest = max(_SMALLEST_MATRIX, min(effort.largest_matrix, most))
    sizes = [8 * largest * largest] * 3
    matrices = tuple(device.allocate(size) for size in sizes)
    blocks += list(zip(matrices, sizes, strict=True))
    one, two, three = matrices
    for kind in device.kinds:
        progress(f"matrix products: {kind}")
        n = _SMALLEST_MATRIX
        while True:
            left, right = _matrix(n), _matrix(n)
            device.write(one, _encode(kind, left))
            device.write(two, _encode(kind, right))
            device.multiply(kind, (one, two, three), n, 1)
            seconds = _timed(lambda kind=kind, n=n: device.multiply(kind, (one, two, three), n, 1), clock)  # type: ignore[misc]
            if seconds >= _ENOUGH_SECONDS or 2 * n > largest:
                break
            n *= 2
        times = max(1, min(1000, math.ceil(0.1 / max(seconds, 1e-6))))
        taken = min(_timed(lambda: device.multiply(kind, (one, two, three), n, times), clock) for _ in range(_ROUNDS)) / times  # noqa: B023
        wrong = _wrong_rows(left, right, _decode(kind, device.read(three, n * n * (8 if kind == "fp64" else 4)), n))
        found.append(Product(kind=kind, n=n, tflops=round(2 * n**3 / taken / 1e12, 6), wrong=wrong))
        places[kind] = (one, two, three)
    return tuple(found), places


def _sustained(device: Workbench, effort: Effort, product: Product, places: dict[str, tuple[int, int, int]], clock: Clock) -> float:
    """Return the speed in the last slice of the load as a share of the first's."""
    matrices, n, kind = places[product.kind], product.n, product.kind
    device.write(matrices[0], _encode(kind, _matrix(n)))
    device.write(matrices[1], _encode(kind, _matrix(n)))
    each = 2 * n**3 / (product.tflops * 1e12)
    times = max(1, min(10_000, int(0.1 / each)))
    rates = []
    for _ in range(_SLICES):
        done, started = 0, clock()
        while (now := clock()) - started < effort.load_seconds / _SLICES or done == 0:
            device.multiply(kind, matrices, n, times)
            done += times
        now = clock()
        rates.append(done / (now - started))
    return round(statistics.median(rates[-2:]) / statistics.median(rates[:2]), 4)


def _memory(device: Workbench, effort: Effort, blocks: list[tuple[int, int]], clock: Clock, progress: Progress) -> dict[str, Any]:
    total = sum(size for _, size in blocks)
    wrong, done, seed, started = 0, 0, 0, clock()
    faults: list[MemoryFault] = []
    while done < effort.patterns or done % 2 or clock() - started < effort.pattern_seconds:
        progress(f"memory pattern {done + 1}")
        # Each pattern is followed by its complement: a bit that is stuck at either value is found.
        seed = seed - 1 if done % 2 else secrets.randbits(63) | 1
        for number, (block, _) in enumerate(blocks):
            device.fill(block, block_seed(seed, number))
        for number, (block, _) in enumerate(blocks):
            seen = device.compare(block, block_seed(seed, number))
            wrong += seen.mismatches
            faults += [MemoryFault(block=number, offset=8 * fault.index, bits=f"{fault.bits:016x}") for fault in seen.faults]
        done += 1
    return {"tested_bytes": total, "patterns": done, "wrong_words": wrong, "faults": tuple(faults[:MAX_FAULTS])}


def _timed(deed: Callable[[], object], clock: Clock) -> float:
    started = clock()
    deed()
    return max(clock() - started, 1e-9)


def _matrix(n: int) -> npt.NDArray[np.int8]:
    return np.random.default_rng().integers(-_LIMIT, _LIMIT + 1, (n, n), np.int8)


def _encode(kind: str, matrix: npt.NDArray[np.int8]) -> bytes:
    if kind == "bf16":  # the upper half of an fp32
        return (matrix.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return matrix.astype({"fp64": np.float64, "fp32": np.float32, "fp16": np.float16, "int8": np.int8}[kind]).tobytes()


def _decode(kind: str, raw: bytes, n: int) -> npt.NDArray[Any]:
    return np.frombuffer(raw, {"fp64": np.float64, "int8": np.int32}.get(kind, np.float32)).reshape(n, n)


def _wrong_rows(left: npt.NDArray[np.int8], right: npt.NDArray[np.int8], product: npt.NDArray[Any]) -> int:
    """Count rows of ``product`` that are not those of left x right; one that is wrong escapes with probability under 2^-20."""
    bad = np.zeros(len(left), bool)
    exact = product.astype(np.float64)  # all numbers here are whole and under 2^53
    for _ in range(_TRIALS):
        vector = np.random.default_rng().integers(0, 1024, len(left)).astype(np.float64)
        bad |= exact @ vector != left.astype(np.float64) @ (right.astype(np.float64) @ vector)
    return int(bad.sum())
