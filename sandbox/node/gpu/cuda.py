"""NVIDIA devices through the CUDA driver API (cuda-bindings) and NVML for what the driver reserves.

The kernels are shipped as PTX made from ``kernels.cl`` (``nvcc -ptx -x cu -arch=compute_75 -O3``), so that a node needs the driver only.
"""

from __future__ import annotations

import uuid as uuids
from importlib import resources
from typing import Any

import numpy as np
import pynvml
from cuda.bindings import driver as cu

from sandbox.node.gpu.device import (
    PAIR_BYTES,
    Comparison,
    DeviceError,
    DeviceFacts,
    DeviceNotFoundError,
    LocalScrub,
    OutOfDeviceMemoryError,
)

_BLOCK = 256
_BLOCKS_A_UNIT = 16
_SCRUB_ROUNDS = 64
"""Launches of the local scrub until every multiprocessor has reported."""


def list_devices() -> list[DeviceFacts]:
    """Return every CUDA device that NVML and the driver agree on; an empty list where there is no driver."""
    try:
        _call(cu.cuInit, 0)
    except DeviceError:
        return []
    return [_facts(_call(cu.cuDeviceGet, index)) for index in range(_call(cu.cuDeviceGetCount))]


def _call(function: Any, *arguments: Any) -> Any:  # noqa: ANN401  (cuda-bindings are untyped)
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


def _facts(device: Any) -> DeviceFacts:  # noqa: ANN401  (cuda-bindings are untyped)
    uuid = f"GPU-{uuids.UUID(bytes=bytes(_call(cu.cuDeviceGetUuid, device).bytes))}"
    attribute = cu.CUdevice_attribute
    total, reserved = _memory(uuid)
    return DeviceFacts(
        uuid=uuid,
        name=_call(cu.cuDeviceGetName, 96, device).split(b"\0")[0].decode("ascii", "replace"),
        backend="cuda",
        total_bytes=total,
        reserved_bytes=reserved,
        largest_block=total,
        cache_bytes=_call(cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, device),
        units=_call(cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device),
    )


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
    """One NVIDIA GPU; see ``sandbox.node.gpu.device.Device``."""

    def __init__(self, uuid: str) -> None:
        """Open the GPU called ``uuid`` and load the kernels. Raises ``DeviceNotFoundError``."""
        _call(cu.cuInit, 0)
        devices = [_call(cu.cuDeviceGet, index) for index in range(_call(cu.cuDeviceGetCount))]
        matching = [(device, facts) for device in devices if (facts := _facts(device)).uuid == uuid]
        if not matching:
            raise DeviceNotFoundError(f"no CUDA device {uuid} on this machine")
        self._device, self.facts = matching[0]
        self._context = _call(cu.cuDevicePrimaryCtxRetain, self._device)
        _call(cu.cuCtxSetCurrent, self._context)
        ptx = resources.files("sandbox.node.gpu").joinpath("kernels.ptx").read_bytes()
        module = _call(cu.cuModuleLoadData, ptx + b"\0")
        self._kernels = {name: _call(cu.cuModuleGetFunction, module, name.encode()) for name in ("fill", "compare", "scrub")}
        self._tally = _call(cu.cuMemAlloc, 16)
        self._buffers: list[tuple[Any, int]] = []

    def allocate(self, size: int) -> int:
        """See ``Device.allocate``."""
        self._buffers.append((_call(cu.cuMemAlloc, size), size))
        return len(self._buffers) - 1

    def fill(self, buffer: int, seed: int) -> None:
        """See ``Device.fill``."""
        address, size = self._buffers[buffer]
        self._run("fill", self._grid, _pointer(address), np.uint64(size // PAIR_BYTES), np.uint64(seed))

    def compare(self, buffer: int, seed: int) -> Comparison:
        """See ``Device.compare``."""
        address, size = self._buffers[buffer]
        tally = np.array([0, 0xFFFFFFFF, 0, 0], np.uint32)
        _call(cu.cuMemcpyHtoD, self._tally, tally.ctypes.data, tally.nbytes)
        self._run("compare", self._grid, _pointer(address), np.uint64(size // PAIR_BYTES), np.uint64(seed), _pointer(self._tally))
        _call(cu.cuMemcpyDtoH, tally.ctypes.data, self._tally, tally.nbytes)
        return Comparison(int(tally[0]), int(tally[1]) if tally[0] else None)

    def copy(self, source: int, target: int) -> None:
        """See ``Device.copy``."""
        _call(cu.cuMemcpyDtoD, self._buffers[target][0], self._buffers[source][0], self._buffers[source][1])
        _call(cu.cuCtxSynchronize)

    def scrub_local(self, seed: int) -> LocalScrub:
        """See ``Device.scrub_local``; each block reports the multiprocessor it ran on, and launches go on until all have."""
        kernel = self._kernels["scrub"]
        attribute = cu.CUdevice_attribute
        most = _call(cu.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, self._device)
        _call(cu.cuFuncSetAttribute, kernel, cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most)
        slots = 4096  # %smid may be sparse; the array is larger than any chip's highest number
        units = np.zeros(slots, np.uint32)
        marks = _call(cu.cuMemAlloc, units.nbytes)
        tally = np.zeros(4, np.uint32)
        _call(cu.cuMemcpyHtoD, self._tally, tally.ctypes.data, tally.nbytes)
        _call(cu.cuMemcpyHtoD, marks, units.ctypes.data, units.nbytes)
        for _ in range(_SCRUB_ROUNDS):
            grid = (self.facts.units * 4, _BLOCK)
            self._run("scrub", grid, _pointer(self._tally), _pointer(marks), np.uint64(seed), np.uint32(most // 4), shared=most)
            _call(cu.cuMemcpyDtoH, units.ctypes.data, marks, units.nbytes)
            if int(units.sum()) >= self.facts.units:
                break
        _call(cu.cuMemcpyDtoH, tally.ctypes.data, self._tally, tally.nbytes)
        _call(cu.cuMemFree, marks)
        return LocalScrub(self.facts.units, int(units.sum()), most, int(tally[0]), proven=True)

    def close(self) -> None:
        """See ``Device.close``."""
        for address, _ in self._buffers:
            _call(cu.cuMemFree, address)
        self._buffers.clear()
        _call(cu.cuMemFree, self._tally)
        _call(cu.cuDevicePrimaryCtxRelease, self._device)

    @property
    def _grid(self) -> tuple[int, int]:
        return self.facts.units * _BLOCKS_A_UNIT, _BLOCK

    def _run(self, name: str, grid: tuple[int, int], *arguments: Any, shared: int = 0) -> None:  # noqa: ANN401  (NumPy scalars of several types)
        values = [np.array([argument]) for argument in arguments]
        pointers = np.array([value.ctypes.data for value in values], np.uint64)
        blocks, threads = grid
        _call(cu.cuLaunchKernel, self._kernels[name], blocks, 1, 1, threads, 1, 1, shared, 0, pointers.ctypes.data, 0)
        _call(cu.cuCtxSynchronize)


def _pointer(address: Any) -> np.uint64:  # noqa: ANN401  (a CUdeviceptr)
    return np.uint64(int(address))
