"""OpenCL devices (AMD, Intel, and PoCL on a CPU) through pyopencl."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

import numpy as np
import pyopencl as cl

from sandbox.node.gpu.device import (
    PAIR_BYTES,
    Comparison,
    DeviceError,
    DeviceFacts,
    DeviceNotFoundError,
    LocalScrub,
    OutOfDeviceMemoryError,
)

_GROUP = 64
_VISITS = 8
"""Groups a unit in the local scrub: each fills a unit's local memory, so that units are visited several times over."""
_NO_MEMORY = {cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE, cl.status_code.OUT_OF_RESOURCES, cl.status_code.INVALID_BUFFER_SIZE,
              cl.status_code.OUT_OF_HOST_MEMORY}  # fmt: skip


def list_devices(*, gpus_only: bool) -> list[DeviceFacts]:
    """Return the OpenCL devices of this machine; an empty list where no OpenCL driver is installed."""
    wanted = cl.device_type.GPU if gpus_only else cl.device_type.ALL
    return [_facts(device, index) for index, device in enumerate(_devices()) if device.type & wanted]


def _devices() -> list[cl.Device]:
    try:
        return [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error:  # the loader answers "platform not found" where there is no driver
        return []


def _facts(device: cl.Device, index: int) -> DeviceFacts:
    name = device.name.strip()
    # OpenCL has no portable serial number; vendor, name and position name the device within this machine.
    identity = hashlib.sha256(f"{device.vendor}|{name}|{index}".encode()).hexdigest()[:24]
    return DeviceFacts(
        uuid=f"OCL-{identity}",
        name=name,
        backend="opencl",
        total_bytes=device.global_mem_size,
        reserved_bytes=0,  # OpenCL does not say; counting nothing as reserved can only make coverage look worse
        largest_block=device.max_mem_alloc_size,
        cache_bytes=device.global_mem_cache_size,
        units=device.max_compute_units,
    )


class OpenClDevice:
    """One OpenCL device; see ``sandbox.node.gpu.device.Device``."""

    def __init__(self, uuid: str) -> None:
        """Open the device called ``uuid``. Raises ``DeviceNotFoundError``."""
        found = [(device, _facts(device, index)) for index, device in enumerate(_devices())]
        matching = [(device, facts) for device, facts in found if facts.uuid == uuid]
        if not matching:
            names = ", ".join(facts.uuid for _, facts in found) or "none"
            raise DeviceNotFoundError(f"no OpenCL device {uuid}; this machine has: {names}")
        self._device, self.facts = matching[0]
        try:
            self._context = cl.Context([self._device])
            self._queue = cl.CommandQueue(self._context)
            source = resources.files("sandbox.node.gpu").joinpath("kernels.cl").read_text("utf-8")
            program = cl.Program(self._context, source).build()
            self._kernels: dict[str, Any] = {name: cl.Kernel(program, name) for name in ("fill", "compare", "scrub")}
        except cl.Error as error:
            raise DeviceError(f"opening the device: {error}") from error
        self._tally = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, 16)
        self._buffers: dict[int, cl.Buffer] = {}

    def allocate(self, size: int) -> int:
        """See ``Device.allocate``."""
        try:
            buffer = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, size)
            # Drivers allocate on first use; reading one byte makes this buffer real without writing to it.
            cl.enqueue_copy(self._queue, np.empty(1, np.uint8), buffer, is_blocking=True)
        except cl.Error as error:
            if getattr(error, "code", None) in _NO_MEMORY or isinstance(error, cl.MemoryError):
                raise OutOfDeviceMemoryError(f"allocating {size} bytes: {error}") from error
            raise DeviceError(f"allocating {size} bytes: {error}") from error
        number = len(self._buffers)
        self._buffers[number] = buffer
        return number

    def fill(self, buffer: int, seed: int) -> None:
        """See ``Device.fill``."""
        target = self._buffers[buffer]
        self._run(self._kernels["fill"], self._grid, target, np.uint64(target.size // PAIR_BYTES), np.uint64(seed))

    def compare(self, buffer: int, seed: int) -> Comparison:
        """See ``Device.compare``."""
        target = self._buffers[buffer]
        tally = np.array([0, 0xFFFFFFFF, 0, 0], np.uint32)
        self._write_tally(tally)
        self._run(self._kernels["compare"], self._grid, target, np.uint64(target.size // PAIR_BYTES), np.uint64(seed), self._tally)
        self._read_tally(tally)
        return Comparison(int(tally[0]), int(tally[1]) if tally[0] else None)

    def copy(self, source: int, target: int) -> None:
        """See ``Device.copy``."""
        try:
            cl.enqueue_copy(self._queue, self._buffers[target], self._buffers[source])
            self._queue.finish()
        except cl.Error as error:
            raise DeviceError(f"copying: {error}") from error

    def scrub_local(self, seed: int) -> LocalScrub:
        """See ``Device.scrub_local``; visits are inferred from the number of groups, since OpenCL does not name units."""
        kernel = self._kernels["scrub"]
        used = kernel.get_work_group_info(cl.kernel_work_group_info.LOCAL_MEM_SIZE, self._device)
        words = (self._device.local_mem_size - used) // 4
        groups = self.facts.units * _VISITS
        units = np.zeros(groups, np.uint32)
        marks = cl.Buffer(self._context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=units)
        tally = np.zeros(4, np.uint32)
        self._write_tally(tally)
        local = cl.LocalMemory(words * 4)
        self._run(kernel, (groups * _GROUP, _GROUP), self._tally, marks, np.uint64(seed), np.uint32(words), local)
        self._read_tally(tally)
        cl.enqueue_copy(self._queue, units, marks, is_blocking=True)
        marks.release()
        visited = self.facts.units if bool(units.all()) else 0
        return LocalScrub(self.facts.units, visited, words * 4, int(tally[0]), proven=False)

    def close(self) -> None:
        """See ``Device.close``."""
        for buffer in self._buffers.values():
            buffer.release()
        self._buffers.clear()

    @property
    def _grid(self) -> tuple[int, int]:
        if self._device.type & cl.device_type.CPU:
            return self.facts.units, 1  # one long loop a core: neighbours stay in one cache line
        return self.facts.units * _VISITS * _GROUP, _GROUP

    def _run(self, kernel: Any, grid: tuple[int, int], *arguments: object) -> None:  # noqa: ANN401  (pyopencl kernels are untyped)
        try:
            kernel(self._queue, grid[:1], grid[1:], *arguments)
            self._queue.finish()
        except cl.Error as error:
            raise DeviceError(f"running a kernel: {error}") from error

    def _write_tally(self, values: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        cl.enqueue_copy(self._queue, self._tally, values, is_blocking=True)

    def _read_tally(self, values: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        cl.enqueue_copy(self._queue, values, self._tally, is_blocking=True)
