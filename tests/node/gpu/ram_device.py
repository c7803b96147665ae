"""A device made of ordinary memory that keeps the ``Device`` contract, and ways in which a real one goes wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sandbox.node.gpu.device import (
    LEAST_REGISTERS,
    MOST_FAULTS,
    Comparison,
    DeviceError,
    DeviceFacts,
    Fault,
    LocalScrub,
    OutOfDeviceMemoryError,
)
from sandbox.node.gpu.erase import SMALLEST_BLOCK

MIB = 2**20
Words = npt.NDArray[np.uint64]


class RamDevice:
    """Memory of ``size`` bytes, of which ``held`` are taken by somebody else; ``residue`` words lie there at the start."""

    def __init__(self, size: int = 4 * MIB, *, held: int = 0, residue: int = 0, units: int = 4) -> None:
        self.facts = DeviceFacts("RAM-0", "memory", "ram", size, 0, size, MIB, units)
        self.free = size - held
        self.residue = residue
        self.buffers: list[Words] = []
        self.visited = units

    def allocate(self, size: int) -> int:
        if size > self.free:
            raise OutOfDeviceMemoryError("full")
        self.free -= size
        words = np.zeros(size // 8, np.uint64)
        words[: self.residue] = 0xDEAD
        self.residue = max(0, self.residue - len(words))
        self.buffers.append(words)
        return len(self.buffers) - 1

    def fill(self, buffer: int, seed: int) -> None:
        self.buffers[buffer][:] = pattern(len(self.buffers[buffer]), seed)

    def compare(self, buffer: int, seed: int) -> Comparison:
        words = self.buffers[buffer]
        wanted = pattern(len(words), seed)
        wrong = np.flatnonzero(words != wanted)
        faults = tuple(Fault(int(index), int(words[index] ^ wanted[index])) for index in wrong[:MOST_FAULTS])
        return Comparison(len(wrong), int(wrong[0]) if len(wrong) else None, faults)

    def copy(self, source: int, target: int) -> None:
        self.buffers[target][:] = self.buffers[source]

    def scrub_local(self, seed: int) -> LocalScrub:
        return LocalScrub(self.facts.units, self.visited, 65536, 0, proven=True)

    def close(self) -> None:
        self.buffers.clear()


def pattern(words: int, seed: int) -> Words:
    """The pattern of ``kernels.cl``, written a second time as its specification."""
    if seed == 0:
        return np.zeros(words, np.uint64)
    pairs = np.arange(words // 2, dtype=np.uint64)
    z = (pairs + np.uint64(seed | 1)) * np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(32)
    z *= np.uint64(0xD6E8FEB86659FD93)
    z ^= z >> np.uint64(29)
    return np.stack([z, ~z] if seed & 1 else [~z, z], axis=1).reshape(-1)


class SkipsABlock(RamDevice):
    """Says it filled, but left the last block as it was."""

    def fill(self, buffer: int, seed: int) -> None:
        if buffer != len(self.buffers) - 1:
            super().fill(buffer, seed)


class FlipsAWord(RamDevice):
    """One bit of one word changes between fill and compare."""

    def fill(self, buffer: int, seed: int) -> None:
        super().fill(buffer, seed)
        self.buffers[buffer][5] ^= np.uint64(1)


class AliasesBlocks(RamDevice):
    """Two blocks are the same memory."""

    def allocate(self, size: int) -> int:
        number = super().allocate(size)
        same = [block for block in self.buffers[:-1] if len(block) == len(self.buffers[-1])]
        if same:
            self.buffers[-1] = same[0]
        return number


class IsLost(RamDevice):
    """The driver reports an error in the middle of the second fill."""

    def fill(self, buffer: int, seed: int) -> None:
        if seed == 0:
            raise DeviceError("CUDA_ERROR_DEVICE_LOST")
        super().fill(buffer, seed)


class ComparesHalf(RamDevice):
    """Says it compared, but looked at the first half of each block only."""

    def compare(self, buffer: int, seed: int) -> Comparison:
        words, self.buffers[buffer] = self.buffers[buffer], self.buffers[buffer][: len(self.buffers[buffer]) // 2]
        try:
            return super().compare(buffer, seed)
        finally:
            self.buffers[buffer] = words


class ChangesLate(RamDevice):
    """A word comes back after both passes were verified."""

    def scrub_local(self, seed: int) -> LocalScrub:
        for words in self.buffers[:1]:
            words[7] = 1
        return super().scrub_local(seed)


class AllocatesAtFirstLaunch(RamDevice):
    """The driver allocates when a kernel of this kind is launched for the first time, and fails where nothing is left."""

    launched = False

    def scrub_local(self, seed: int) -> LocalScrub:
        if not self.launched:
            if self.free < SMALLEST_BLOCK:
                raise DeviceError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")
            self.launched, self.free = True, self.free - SMALLEST_BLOCK
        return super().scrub_local(seed)


class MissesAUnit(RamDevice):
    """One multiprocessor never ran the local scrub."""

    def scrub_local(self, seed: int) -> LocalScrub:
        self.visited = self.facts.units - 1
        return super().scrub_local(seed)


class ScrubsFewRegisters(RamDevice):
    """The driver built the scrub with fewer registers than it has values."""

    def scrub_local(self, seed: int) -> LocalScrub:
        return replace(super().scrub_local(seed), registers=LEAST_REGISTERS - 1)


class SpillsRegisters(RamDevice):
    """The driver built the scrub so that some of its values are in memory."""

    def scrub_local(self, seed: int) -> LocalScrub:
        return replace(super().scrub_local(seed), registers=255, spilled=16)


class CorruptsLocalMemory(RamDevice):
    """Local memory reads back wrong."""

    def scrub_local(self, seed: int) -> LocalScrub:
        return LocalScrub(self.facts.units, self.facts.units, 65536, 1, proven=True)
