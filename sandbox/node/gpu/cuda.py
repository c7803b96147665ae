"""NVIDIA devices through the CUDA driver API (cuda-bindings), and NVML for what the driver reserves.

The kernels are shipped as PTX (``deploy/dev/ptx.py`` makes it): a node needs the driver only. They want compute capability 7.5, as do
all drivers that are still maintained.

What this relies on, by the CUDA driver API's documentation: ``cuMemAlloc`` returns memory as it is, not cleared; launches are
asynchronous, so that each is followed by ``cuCtxSynchronize`` and a failure is told there; after a failure the context stays broken.
``CUDA_VISIBLE_DEVICES`` shows this process one device, whole GPU or MIG instance, and keeps the others untouched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid as uuids
from importlib import resources
from typing import Any

import numpy as np
import pynvml
from cuda.bindings import driver as cu

from sandbox.node.gpu.device import (
    EMPTY_TALLY,
    MATRIX_STEP,
    PAIR_BYTES,
    TALLY_WORDS,
    Comparison,
    DeviceError,
    DeviceFacts,
    DeviceNotFoundError,
    LocalScrub,
    OutOfDeviceMemoryError,
)
from sandbox.node.gpu.tally import comparison

_BLOCK = 256
_BLOCKS_A_UNIT = 16
_SCRUB_ROUNDS = 64
"""Launches of the local scrub until every multiprocessor has reported."""
_SLOTS = 4096
"""``%smid`` may be sparse; this is more than any chip's highest number."""
_OLDEST = (7, 5)
_SMALL_LIMITS = {"CU_LIMIT_STACK_SIZE": 1024, "CU_LIMIT_PRINTF_FIFO_SIZE": 64 * 1024, "CU_LIMIT_MALLOC_HEAP_SIZE": 4 * 1024 * 1024}
"""What the kernels do not need is not taken from the memory that is to be wiped. A driver may refuse one: then coverage tells."""
_KINDS = {"matmul.ptx": (7, 5), "matmul_80.ptx": (8, 0)}
ATTRIBUTE = cu.CUdevice_attribute


def call(function: Any, *arguments: Any) -> Any:  # noqa: ANN401  (cuda-bindings are untyped)
    """Call the driver. Raises ``DeviceError`` with the call and the driver's code, ``OutOfDeviceMemoryError`` where memory is short."""
    try:
        code, *values = function(*arguments)
    except (RuntimeError, OSError, ImportError) as error:  # raised where the driver library is missing
        raise DeviceNotFoundError(f"{function.__name__}: no NVIDIA driver on this machine") from error
    if code == cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise OutOfDeviceMemoryError(f"{function.__name__}: out of device memory")
    if code != cu.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"{function.__name__}: {code.name}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _memory(uuid: str) -> tuple[int, int]:
    try:
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            return int(memory.total), int(memory.reserved)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise DeviceError(f"NVML does not know {uuid}: {error}") from error


class CudaDevice:
    """One NVIDIA GPU or MIG instance; see ``sandbox.node.gpu.device.Workbench``. One a process: the driver is told of no other."""

    def __init__(self, uuid: str) -> None:
        """Open the device called ``uuid`` (as NVML names it) and load the kernels. Raises ``DeviceError``."""
        # Eager: later there is no memory left to load a kernel into.
        os.environ.update({"CUDA_VISIBLE_DEVICES": uuid, "CUDA_MODULE_LOADING": "EAGER"})
        call(cu.cuInit, 0)
        if call(cu.cuDeviceGetCount) != 1:
            raise DeviceNotFoundError(f"no CUDA device {uuid} on this machine")
        self.device = call(cu.cuDeviceGet, 0)
        found = uuids.UUID(bytes=bytes(call(cu.cuDeviceGetUuid, self.device).bytes))
        if str(found) != uuid.partition("-")[2]:
            raise DeviceNotFoundError(f"the driver opened {found}, not {uuid}")
        self._capability = tuple(self._attribute(f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR"))
        if self._capability < _OLDEST:
            raise DeviceError(f"compute capability {self._capability[0]}.{self._capability[1]} is older than 7.5, which the kernels need")
        self.context = call(cu.cuDevicePrimaryCtxRetain, self.device)
        call(cu.cuCtxSetCurrent, self.context)
        for name, size in _SMALL_LIMITS.items():
            with contextlib.suppress(DeviceError):
                call(cu.cuCtxSetLimit, getattr(cu.CUlimit, name), size)
        total, reserved = _memory(uuid)
        free, _ = call(cu.cuMemGetInfo)
        self.facts = DeviceFacts(
            uuid=uuid,
            name=call(cu.cuDeviceGetName, 96, self.device).split(b"\0")[0].decode("ascii", "replace"),
            backend="cuda",
            total_bytes=total,
            reserved_bytes=reserved,
            largest_block=total,
            cache_bytes=self._attribute("CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE"),
            units=self._attribute("CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT"),
            context_bytes=max(0, total - reserved - int(free)),
        )
        self._kernels = self.load(resources.files("sandbox.node.gpu").joinpath("kernels.ptx").read_bytes(), "fill", "compare", "scrub")
        # All that is needed beside the blocks is taken first: these take the rest.
        self._tally = call(cu.cuMemAlloc, 4 * TALLY_WORDS)
        self._marks = call(cu.cuMemAlloc, 4 * _SLOTS)
        self._buffers: list[tuple[Any, int]] = []
        self._staging: tuple[int, int] | None = None

    def load(self, ptx: bytes, *names: str) -> dict[str, Any]:
        """Load a module and return its kernels by name."""
        module = call(cu.cuModuleLoadData, ptx + b"\0")
        return {name: call(cu.cuModuleGetFunction, module, name.encode()) for name in names}

    def allocate(self, size: int) -> int:
        """See ``Device.allocate``."""
        self._buffers.append((call(cu.cuMemAlloc, size), size))
        return len(self._buffers) - 1

    def fill(self, buffer: int, seed: int) -> None:
        """See ``Device.fill``."""
        address, size = self._buffers[buffer]
        self.run(self._kernels["fill"], self._grid, _pointer(address), np.uint64(size // PAIR_BYTES), np.uint64(seed))

    def compare(self, buffer: int, seed: int) -> Comparison:
        """See ``Device.compare``."""
        address, size = self._buffers[buffer]
        tally = np.zeros(TALLY_WORDS, np.uint32)
        tally[:4] = EMPTY_TALLY
        call(cu.cuMemcpyHtoD, self._tally, tally.ctypes.data, tally.nbytes)
        pairs = np.uint64(size // PAIR_BYTES)
        self.run(self._kernels["compare"], self._grid, _pointer(address), pairs, np.uint64(seed), _pointer(self._tally))
        call(cu.cuMemcpyDtoH, tally.ctypes.data, self._tally, tally.nbytes)
        return comparison(tally)

    def copy(self, source: int, target: int) -> None:
        """See ``Device.copy``."""
        call(cu.cuMemcpyDtoD, self._buffers[target][0], self._buffers[source][0], self._buffers[source][1])
        call(cu.cuCtxSynchronize)

    def clear(self, buffer: int) -> None:
        """Write zeros as the driver itself does it (the second yardstick for speed)."""
        address, size = self._buffers[buffer]
        call(cu.cuMemsetD32, address, 0, size // 4)
        call(cu.cuCtxSynchronize)

    def scrub_local(self, seed: int) -> LocalScrub:
        """See ``Device.scrub_local``."""
        kernel, attributes = self._kernels["scrub"], cu.CUfunction_attribute
        return dataclasses.replace(
            self.visit_units(kernel, seed)[0],
            registers=int(call(cu.cuFuncGetAttribute, attributes.CU_FUNC_ATTRIBUTE_NUM_REGS, kernel)),
            spilled=int(call(cu.cuFuncGetAttribute, attributes.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, kernel)),
        )

    def visit_units(self, kernel: Any, seed: int) -> tuple[LocalScrub, int]:  # noqa: ANN401  (a CUfunction)
        """Run a kernel of the scrub's form with all shared memory that a block can have, until every multiprocessor has run a block.

        A block of 256 threads with up to 256 registers each takes all 65,536 registers of a multiprocessor, and with the largest
        shared memory there is room for one block only, so that blocks spread over all multiprocessors. Each writes down its ``%smid``.
        Returns what was seen, and how many blocks ran.
        """
        most = self._attribute("CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        attributes = cu.CUfunction_attribute
        # More than 48 KiB has to be asked for; the carve-out gives shared memory all of the cache that it shares with L1.
        call(cu.cuFuncSetAttribute, kernel, attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most)
        call(cu.cuFuncSetAttribute, kernel, attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)
        units, tally = np.zeros(_SLOTS, np.uint32), np.zeros(4, np.uint32)
        call(cu.cuMemcpyHtoD, self._tally, tally.ctypes.data, tally.nbytes)
        call(cu.cuMemcpyHtoD, self._marks, units.ctypes.data, units.nbytes)
        grid, launches = (self.facts.units * 4, _BLOCK), 0
        while launches < _SCRUB_ROUNDS and int(units.sum()) < self.facts.units:
            self.run(kernel, grid, _pointer(self._tally), _pointer(self._marks), np.uint64(seed), np.uint32(most // 4), shared=most)
            call(cu.cuMemcpyDtoH, units.ctypes.data, self._marks, units.nbytes)
            launches += 1
        call(cu.cuMemcpyDtoH, tally.ctypes.data, self._tally, tally.nbytes)
        return LocalScrub(self.facts.units, int(units.sum()), most, int(tally[0]), proven=True), launches * grid[0]

    def count(self, kernel: Any, buffer: int, word: int) -> int:  # noqa: ANN401  (a CUfunction)
        """Run a kernel ``(memory, words, word, tally)`` over a buffer and return the tally."""
        address, size = self._buffers[buffer]
        tally = np.zeros(4, np.uint32)
        call(cu.cuMemcpyHtoD, self._tally, tally.ctypes.data, tally.nbytes)
        self.run(kernel, self._grid, _pointer(address), np.uint64(size // 8), np.uint64(word), _pointer(self._tally))
        call(cu.cuMemcpyDtoH, tally.ctypes.data, self._tally, tally.nbytes)
        return int(tally[0])

    @property
    def kinds(self) -> tuple[str, ...]:
        """See ``Workbench.kinds``."""
        return ("fp64", "fp32", "fp16", "int8", *(("bf16",) if self._capability >= (8, 0) else ()))

    def write(self, buffer: int, data: bytes) -> None:
        """See ``Workbench.write``."""
        held = np.frombuffer(data, np.uint8)
        call(cu.cuMemcpyHtoD, self._buffers[buffer][0], held.ctypes.data, held.nbytes)

    def read(self, buffer: int, size: int) -> bytes:
        """See ``Workbench.read``."""
        data = np.empty(size, np.uint8)
        call(cu.cuMemcpyDtoH, data.ctypes.data, self._buffers[buffer][0], size)
        return data.tobytes()

    def transfer(self, buffer: int, size: int, *, to_device: bool) -> None:
        """See ``Workbench.transfer``."""
        if self._staging is None or self._staging[1] < size:
            self._staging = int(call(cu.cuMemHostAlloc, size, 0)), size
        if to_device:
            call(cu.cuMemcpyHtoD, self._buffers[buffer][0], self._staging[0], size)
        else:
            call(cu.cuMemcpyDtoH, self._staging[0], self._buffers[buffer][0], size)
        call(cu.cuCtxSynchronize)

    def multiply(self, kind: str, matrices: tuple[int, int, int], n: int, times: int) -> None:
        """See ``Workbench.multiply``; fp16, bf16 and int8 run on tensor cores."""
        name = f"multiply_{kind}"
        if name not in self._kernels:
            file = next(file for file, needed in reversed(_KINDS.items()) if self._capability >= needed)
            self._kernels |= self.load(resources.files("sandbox.node.gpu").joinpath(file).read_bytes(), name)
        pointers = (_pointer(self._buffers[matrix][0]) for matrix in matrices)
        arguments = (*pointers, np.uint32(n))
        for _ in range(times):
            self._launch(self._kernels[name], ((n // MATRIX_STEP) ** 2, _BLOCK), arguments, 0)
        call(cu.cuCtxSynchronize)

    def close(self) -> None:
        """See ``Device.close``."""
        for address, _ in self._buffers:
            call(cu.cuMemFree, address)
        self._buffers.clear()
        for address in (self._tally, self._marks):
            call(cu.cuMemFree, address)
        if self._staging is not None:
            call(cu.cuMemFreeHost, self._staging[0])
        call(cu.cuDevicePrimaryCtxRelease, self.device)

    def run(self, kernel: Any, grid: tuple[int, int], *arguments: Any, shared: int = 0) -> None:  # noqa: ANN401  (NumPy scalars)
        """Launch a kernel on ``grid`` (blocks, threads) with NumPy scalars and wait for its end."""
        self._launch(kernel, grid, arguments, shared)
        call(cu.cuCtxSynchronize)

    @property
    def _grid(self) -> tuple[int, int]:
        return self.facts.units * _BLOCKS_A_UNIT, _BLOCK

    def _attribute(self, name: str) -> int:
        return int(call(cu.cuDeviceGetAttribute, getattr(ATTRIBUTE, name), self.device))

    def _launch(self, kernel: Any, grid: tuple[int, int], arguments: tuple[Any, ...], shared: int) -> None:  # noqa: ANN401  (a CUfunction)
        # The driver copies the arguments during the launch; these arrays hold them until then.
        values = [np.array([argument]) for argument in arguments]
        pointers = np.array([value.ctypes.data for value in values], np.uint64)
        blocks, threads = grid
        call(cu.cuLaunchKernel, kernel, blocks, 1, 1, threads, 1, 1, shared, 0, pointers.ctypes.data, 0)


def _pointer(address: Any) -> np.uint64:  # noqa: ANN401  (a CUdeviceptr)
    return np.uint64(int(address))
