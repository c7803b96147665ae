"""What the wipe and the qualification need of a device, whichever driver speaks to it, and how devices fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

PAIR_BYTES = 16
"""Kernels handle memory in pairs of 64-bit words."""
MOST_FAULTS = 64
"""How many wrong words a comparison tells of."""
TALLY_WORDS = 4 + 4 * MOST_FAULTS
"""32-bit words of the kernels' tally: three counters, one unused, and two 64-bit words a fault."""
EMPTY_TALLY = (0, 0xFFFFFFFF, 0, 0)
LEAST_REGISTERS = 249
"""Registers a thread that the local scrub must have been built with: it has 248 values alive at once, and their addresses. Registers are
handed out in eights, so that from 249 on a block of 256 threads has all 65,536 of a multiprocessor."""
MATRIX_STEP = 128
"""Matrices are multiplied in tiles of this size."""


class DeviceError(Exception):
    """The driver refused, or the device is lost. The message holds the call and the driver's own code."""


class OutOfDeviceMemoryError(DeviceError):
    """The device has no free block of that size; a smaller one may fit."""


class DeviceNotFoundError(DeviceError):
    """There is no such device, or no driver for it, on this machine."""


@dataclass(frozen=True)
class DeviceFacts:
    """A device as the wipe sees it. Sizes in bytes; ``reserved_bytes`` is what the driver keeps and nobody can allocate.

    ``context_bytes`` of the rest were taken when this process had opened the device and allocated nothing: by its own context, and by
    whoever else holds the device. 0 where the driver does not tell.
    """

    uuid: str
    name: str
    backend: str
    total_bytes: int
    reserved_bytes: int
    largest_block: int
    cache_bytes: int
    units: int
    context_bytes: int = 0


@dataclass(frozen=True)
class Fault:
    """One word that read back wrong: its index in the buffer, and the bits in which it differs from what was written."""

    index: int
    bits: int


@dataclass(frozen=True)
class Comparison:
    """How many 64-bit words differ, the index of the lowest one (None when none differs), and some of them, ``MOST_FAULTS`` at most."""

    mismatches: int
    first: int | None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class LocalScrub:
    """One pass over local memory and registers.

    ``visited`` of ``units`` multiprocessors ran it; ``proven`` says whether the hardware itself told which (CUDA does, OpenCL has no
    word for it, so there it is inferred from the number of groups). ``errors`` counts local words that read back wrong. ``registers`` is
    what a thread of the kernel has as the driver built it, None where it does not tell; ``spilled`` counts bytes a thread that it keeps in
    memory for want of registers.
    """

    units: int
    visited: int
    local_bytes: int
    errors: int
    proven: bool
    registers: int | None = None
    spilled: int = 0

    @property
    def complete(self) -> bool:
        """Whether every unit ran it, all read back right, and its values were in registers, as many as a thread can have."""
        wide = self.registers is None or self.registers >= LEAST_REGISTERS
        return self.visited >= self.units and self.errors == 0 and self.spilled == 0 and wide

    @property
    def seen(self) -> str:
        """In words, what was reached."""
        registers = "" if self.registers is None else f", {self.registers} registers a thread, {self.spilled} bytes spilled"
        return f"{self.visited} of {self.units} multiprocessors, {self.errors} words read back wrong{registers}"


class Device(Protocol):
    """One GPU, opened by one short-lived process.

    Calls return when the device has finished. Any call may raise ``DeviceError``; after it the device must not be used. Buffers
    are named by number and live until ``close``. Nothing is written to memory that was not allocated.
    """

    @property
    def facts(self) -> DeviceFacts:
        """What the device is."""
        ...

    def allocate(self, size: int) -> int:
        """Return a buffer of ``size`` bytes whose content is whatever lay there. Raises ``OutOfDeviceMemoryError``."""
        ...

    def fill(self, buffer: int, seed: int) -> None:
        """Write the pattern of ``seed`` into the whole buffer; seed 0 writes zeros, an even seed the complement of ``seed + 1``'s."""
        ...

    def compare(self, buffer: int, seed: int) -> Comparison:
        """Compare the whole buffer, on the device, with the pattern of ``seed``."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Copy a buffer onto another of the same size (the yardstick for speed)."""
        ...

    def scrub_local(self, seed: int) -> LocalScrub:
        """Overwrite and check local (shared) memory, and overwrite registers, on every multiprocessor."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class Workbench(Device, Protocol):
    """A device that can be measured as well. Everything returns when the device has finished, so that callers can time it."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of numbers that ``multiply`` takes here: of fp64, fp32, fp16, bf16, int8."""
        ...

    def write(self, buffer: int, data: bytes) -> None:
        """Write ``data`` to the buffer's start."""
        ...

    def read(self, buffer: int, size: int) -> bytes:
        """Return the buffer's first ``size`` bytes."""
        ...

    def transfer(self, buffer: int, size: int, *, to_device: bool) -> None:
        """Move ``size`` bytes between pinned host memory, whose content is of no matter, and the buffer's start."""
        ...

    def multiply(self, kind: str, matrices: tuple[int, int, int], n: int, times: int) -> None:
        """Compute C = A B of n x n matrices (row-major, ``n`` a multiple of ``MATRIX_STEP``) in buffers (A, B, C), ``times`` over.

        C holds int32 for int8, fp64 for fp64, and fp32 for all others.
        """
        ...
