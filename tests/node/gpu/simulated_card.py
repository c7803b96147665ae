"""A card that computes in ordinary memory and takes, on a clock of its own, the time that a real one of its speed would take."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sandbox.node.gpu.device import DeviceFacts
from tests.node.gpu.ram_device import MIB, RamDevice

TYPES = {"fp64": np.float64, "fp32": np.float32, "fp16": np.float16, "int8": np.int8}
SUMS = {"fp64": np.float64, "int8": np.int32}


@dataclass(frozen=True)
class Speed:
    """GB/s and TFLOPS. ``tires`` is the share of speed that is left after the first second of load."""

    memory: float = 900.0
    link: float = 12.0
    tflops: dict[str, float] = field(default_factory=lambda: {"fp32": 20.0, "fp16": 80.0})
    tires: float = 1.0


class SimulatedCard(RamDevice):
    """``claimed`` bytes in all; what is really there is small."""

    def __init__(self, speed: Speed, size: int = 16 * MIB) -> None:
        super().__init__(size)
        self.facts = DeviceFacts("GPU-1", "simulated", "cuda", size, 0, size, MIB, 4)
        self.speed, self.now, self.worked = speed, 0.0, 0.0
        self.made: tuple[str, int] | None = None

    def clock(self) -> float:
        return self.now

    @property
    def kinds(self):
        return tuple(self.speed.tflops)

    def allocate(self, size: int) -> int:
        return super().allocate(size // 8 * 8)

    def fill(self, buffer: int, seed: int) -> None:
        super().fill(buffer, seed)
        self.now += self.buffers[buffer].nbytes / self.speed.memory / 1e9

    def compare(self, buffer: int, seed: int):
        self.now += self.buffers[buffer].nbytes / self.speed.memory / 1e9
        return super().compare(buffer, seed)

    def copy(self, source: int, target: int) -> None:
        super().copy(source, target)
        self.now += 2 * self.buffers[source].nbytes / self.speed.memory / 1e9

    def write(self, buffer: int, data: bytes) -> None:
        self.made = None
        self.buffers[buffer].view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)

    def read(self, buffer: int, size: int) -> bytes:
        return self.buffers[buffer].view(np.uint8)[:size].tobytes()

    def transfer(self, buffer: int, size: int, *, to_device: bool) -> None:
        self.now += size / self.speed.link / 1e9

    def multiply(self, kind: str, matrices, n: int, times: int) -> None:
        taken = times * 2 * n**3 / self.speed.tflops[kind] / 1e12
        self.worked += taken
        self.now += taken / (self.speed.tires if self.worked > 1 else 1)
        if self.made == (kind, n):
            return  # the same again
        one, two = (
            self.buffers[matrix].view(np.uint8)[: n * n * np.dtype(TYPES[kind]).itemsize].view(TYPES[kind]).reshape(n, n)
            for matrix in matrices[:2]
        )
        product = (one.astype(np.float32) @ two.astype(np.float32)).astype(SUMS.get(kind, np.float32))
        self.write(matrices[2], self.product(product).tobytes())
        self.made = (kind, n)

    def product(self, right):
        """What the card makes of a right product."""
        return right


class Miscalculates(SimulatedCard):
    """One element of a product is off by one."""

    def product(self, right):
        right[3, 5] += 1
        return right


class ForgetsABit(SimulatedCard):
    """One bit of its memory is always 0."""

    def fill(self, buffer: int, seed: int) -> None:
        super().fill(buffer, seed)
        if buffer == 0:
            self.buffers[0][1000] &= ~np.uint64(1 << 40)
