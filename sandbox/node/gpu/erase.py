"""The VRAM wipe: one algorithm for every driver.

1. run the scrub of step 6 once, so that what the driver allocates at a first launch is allocated while there is memory
2. allocate everything that can be allocated, in blocks from 8 GiB down to 64 KiB
3. read before writing: count the words that are not zero, as evidence of what the driver left behind
4. fill with a random pattern, compare on the device; then compare with its complement, where every single word has to count as wrong: a
   comparison that leaves words out would find none
5. fill with zeros, compare on the device
6. overwrite local (shared) memory and registers of every multiprocessor
7. stream more than the cache holds, so that no line of the pattern stays in it; what is streamed has to be zero still

The report says exactly how much was written and verified. ``ok`` is computed from the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, computed_field

from sandbox.node.gpu.device import Device, DeviceError, LocalScrub, OutOfDeviceMemoryError

LARGEST_BLOCK = 8 * 2**30
SMALLEST_BLOCK = 64 * 2**10
WORD_BYTES = 8
LEAST_COVERAGE = 0.99
"""Least share of (total - reserved) that must have been written and verified for a wipe to count."""

Progress = Callable[[str], None]


class Pass(BaseModel):
    """One fill and its comparison. ``seconds`` and ``gb_per_s`` (10^9 bytes) are of the fill; ``compare_*`` of the comparison."""

    model_config = ConfigDict(frozen=True)

    pattern: str
    seconds: float
    gb_per_s: float
    compare_seconds: float
    compare_gb_per_s: float
    mismatches: int


class DeviceWipe(BaseModel):
    """What was done to one device and what was proven. Sizes in bytes; words are 64 bits wide.

    ``coverage`` is what was written and verified as a share of (total - reserved), never rounded up. ``context_bytes`` were taken before
    the wipe began, as a rule by the driver for the wipe's own process.
    """

    model_config = ConfigDict(frozen=True)

    uuid: str
    name: str
    backend: str
    total_bytes: int = 0
    reserved_bytes: int = 0
    written_bytes: int = 0
    verified_bytes: int = 0
    coverage: Annotated[float, Field(ge=0)] = 0.0
    context_bytes: int = 0
    passes: tuple[Pass, ...] = ()
    residue_words_before: int | None = None
    local_memory_scrubbed: bool = False
    local_memory_proven: bool = False
    seconds: float = 0.0
    ok: bool = False
    failures: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use over a property
    @property
    def rest_bytes(self) -> int:
        """What of (total - reserved) was not both written and verified."""
        return max(0, self.total_bytes - self.reserved_bytes) - min(self.written_bytes, self.verified_bytes)


STEPS = {
    "first launch": 0,
    "allocate": 0,
    "read before writing": 0,
    "fill and compare: random": 1,
    "fill and compare: zeros": 4,  # the random pattern is compared once more, with what it is not
    "local memory and registers": 6,
    "stream past the cache": 6,
}
"""What is announced, in this order, and how many passes over all memory are done by then."""
PASSES = 6


def erase(device: Device, seed: int, *, progress: Progress = lambda _: None) -> DeviceWipe:
    """Wipe and verify one device; ``seed`` (non-zero, 64 bits) makes the random pattern.

    Never raises for what the device does: a failure is in the report, and ``ok`` is then False.
    """
    started = time.monotonic()
    facts = device.facts
    blocks: list[tuple[int, int]] = []
    passes: list[Pass] = []
    failures: list[str] = []
    residue: int | None = None
    local: LocalScrub | None = None
    verified = unseen = late = 0
    try:
        progress("first launch")
        device.scrub_local(seed)
        progress("allocate")
        blocks = allocate_all(device)
        progress("read before writing")
        residue = sum(device.compare(block, 0).mismatches for block, _ in blocks)
        for pattern, value in (("random", seed), ("zeros", 0)):
            progress(f"fill and compare: {pattern}")
            result, verified = _pass(device, blocks, pattern, value)
            passes.append(result)
            if value:
                unseen = _unseen(device, blocks, value)
        progress("local memory and registers")
        local = device.scrub_local(seed)
        progress("stream past the cache")
        late = _stream(device, blocks, facts.cache_bytes)
    except DeviceError as error:
        failures.append(str(error))
        verified = 0
    if unseen:
        failures.append(f"the comparison does not see: of a pattern that is wrong in every word it missed {unseen} words")
        verified = 0
    written = sum(size for _, size in blocks) if len(passes) == 2 else 0
    available = max(0, facts.total_bytes - facts.reserved_bytes)
    coverage = share(min(written, verified), available)
    if coverage < LEAST_COVERAGE:
        failures.append(f"coverage {coverage:.6f} of {available} bytes is under {LEAST_COVERAGE}; {facts.context_bytes} were taken before")
    failures += [f"pattern {item.pattern}: {item.mismatches} words read back wrong" for item in passes if item.mismatches]
    if late:
        failures.append(f"{late} words were not zero any more at the end")
    scrubbed = local is not None and local.complete
    if not scrubbed:
        seen = "not run" if local is None else local.seen
        failures.append(f"local memory and registers were not overwritten on every multiprocessor: {seen}")
    return DeviceWipe(
        uuid=facts.uuid,
        name=facts.name,
        backend=facts.backend,
        total_bytes=facts.total_bytes,
        reserved_bytes=facts.reserved_bytes,
        written_bytes=written,
        verified_bytes=verified,
        coverage=coverage,
        context_bytes=facts.context_bytes,
        passes=tuple(passes),
        residue_words_before=residue,
        local_memory_scrubbed=scrubbed,
        local_memory_proven=scrubbed and local is not None and local.proven,
        seconds=round(time.monotonic() - started, 3),
        ok=not failures,
        failures=tuple(failures),
    )


def allocate_all(device: Device, taken: int = 0) -> list[tuple[int, int]]:
    """Take all memory that can be had, in blocks that halve where one is refused; return each block's number and bytes.

    ``taken`` bytes were allocated before: drivers that promise more than there is would else give them twice.
    """
    blocks: list[tuple[int, int]] = []
    # Powers of two fit the pages that drivers hand out, so that no block leaves a part of one unused.
    size = 1 << (min(LARGEST_BLOCK, device.facts.largest_block).bit_length() - 1)
    left = device.facts.total_bytes - device.facts.reserved_bytes - taken
    while size >= SMALLEST_BLOCK and left >= SMALLEST_BLOCK:
        if size > left:
            size //= 2
            continue
        try:
            blocks.append((device.allocate(size), size))
            left -= size
        except OutOfDeviceMemoryError:
            size //= 2
    return blocks


def share(part: int, whole: int) -> float:
    """Return ``part / whole`` in steps of 10^-6, rounded down: what is not all never reads as 1."""
    return part * 10**6 // whole / 10**6 if whole > 0 else 0.0


def _pass(device: Device, blocks: list[tuple[int, int]], pattern: str, seed: int) -> tuple[Pass, int]:
    total = sum(size for _, size in blocks)
    started = time.monotonic()
    for number, (block, _) in enumerate(blocks):
        device.fill(block, block_seed(seed, number))
    filled = time.monotonic()
    found = [device.compare(block, block_seed(seed, number)).mismatches for number, (block, _) in enumerate(blocks)]
    compared = time.monotonic()
    verified = sum(size for (_, size), wrong in zip(blocks, found, strict=True) if not wrong)
    fill_seconds, compare_seconds = filled - started, compared - filled
    return Pass(
        pattern=pattern,
        seconds=round(fill_seconds, 4),
        gb_per_s=_rate(total, fill_seconds),
        compare_seconds=round(compare_seconds, 4),
        compare_gb_per_s=_rate(total, compare_seconds),
        mismatches=sum(found),
    ), verified


def block_seed(seed: int, number: int) -> int:
    """Give each block another stretch of the pattern, so that two blocks mapped onto the same memory are noticed."""
    return (seed + (number << 33)) % 2**64 or 1 if seed else 0


def _unseen(device: Device, blocks: list[tuple[int, int]], seed: int) -> int:
    """Compare what was filled with its complement (``Device.fill``); return the words that were not told as wrong."""
    told = [device.compare(block, block_seed(seed, number) ^ 1).mismatches for number, (block, _) in enumerate(blocks)]
    return sum(abs(size // WORD_BYTES - seen) for (_, size), seen in zip(blocks, told, strict=True))


def _rate(size: int, seconds: float) -> float:
    return round(size / seconds / 1e9, 2) if seconds > 0 else 0.0


def _stream(device: Device, blocks: list[tuple[int, int]], cache_bytes: int) -> int:
    """Read more than the cache holds; return how many words of it are not zero."""
    streamed = wrong = 0
    for block, size in blocks:
        if streamed > 2 * cache_bytes:
            break
        wrong += device.compare(block, 0).mismatches
        streamed += size
    return wrong
