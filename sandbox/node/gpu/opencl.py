"""OpenCL devices (AMD, Intel, and PoCL on a CPU) through pyopencl."""

from __future__ import annotations

import contextlib
import hashlib
from importlib import resources
from typing import Any

import numpy as np
import pyopencl as cl

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
from sandbox.node.gpu.sysfs import pci_uuid
from sandbox.node.gpu.tally import comparison

_GROUP = 64
_PRODUCT_GROUP = 256
_EXTENSIONS = {"fp64": "cl_khr_fp64", "fp16": "cl_khr_fp16"}
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
    return DeviceFacts(
        uuid=_uuid(device, name, index),
        name=name,
        backend="opencl",
        total_bytes=device.global_mem_size,
        reserved_bytes=0,  # OpenCL does not say; counting nothing as reserved can only make coverage look worse
        largest_block=device.max_mem_alloc_size,
        cache_bytes=device.global_mem_cache_size,
        units=device.max_compute_units,
    )


def _uuid(device: cl.Device, name: str, index: int) -> str:
    """Name a device by its place on the PCI bus, as the kernel does; where OpenCL does not tell it, by vendor, name and position."""
    with contextlib.suppress(cl.Error, AttributeError):
        place: Any = device.get_info(cl.device_info.TOPOLOGY_AMD)
        return pci_uuid(f"0000:{place.bus:02x}:{place.device:02x}.{place.function}")
    return f"OCL-{hashlib.sha256(f'{device.vendor}|{name}|{index}'.encode()).hexdigest()[:24]}"


class OpenClDevice:
    """One OpenCL device; see ``sandbox.node.gpu.device.Workbench``."""

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
            self._kernels = self.load(source, "fill", "compare", "scrub")
        except cl.Error as error:
            raise DeviceError(f"opening the device: {error}") from error
        self._tally = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, 4 * TALLY_WORDS)
        self._marks = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, 4 * self.facts.units * _VISITS)
        # Drivers allocate on first use, and later there is no memory left for these.
        for buffer in (self._tally, self._marks):
            self._move(buffer, np.zeros(buffer.size, np.uint8))
        self._products: Any = None
        self._staging: tuple[cl.Buffer, Any] | None = None
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
        tally = np.zeros(TALLY_WORDS, np.uint32)
        tally[:4] = EMPTY_TALLY
        self._move(self._tally, tally)
        self._run(self._kernels["compare"], self._grid, target, np.uint64(target.size // PAIR_BYTES), np.uint64(seed), self._tally)
        self._move(tally, self._tally)
        return comparison(tally)

    def copy(self, source: int, target: int) -> None:
        """See ``Device.copy``."""
        self._move(self._buffers[target], self._buffers[source])

    def scrub_local(self, seed: int) -> LocalScrub:
        """See ``Device.scrub_local``."""
        return self.visit_units(self._kernels["scrub"], seed)[0]

    def visit_units(self, kernel: Any, seed: int) -> tuple[LocalScrub, int]:  # noqa: ANN401  (pyopencl kernels are untyped)
        """Run a kernel of the scrub's form with all local memory, in more groups than there are units.

        Visits are inferred from the number of groups, since OpenCL does not name units. Returns what was seen, and how many groups ran.
        """
        used = kernel.get_work_group_info(cl.kernel_work_group_info.LOCAL_MEM_SIZE, self._device)
        words = (self._device.local_mem_size - used) // 4
        groups = self.facts.units * _VISITS
        units = np.zeros(groups, np.uint32)
        self._move(self._marks, units)
        tally = np.zeros(4, np.uint32)
        self._move(self._tally, tally)
        local = cl.LocalMemory(words * 4)
        self._run(kernel, (groups * _GROUP, _GROUP), self._tally, self._marks, np.uint64(seed), np.uint32(words), local)
        self._move(tally, self._tally)
        self._move(units, self._marks)
        visited = self.facts.units if bool(units.all()) else 0
        return LocalScrub(self.facts.units, visited, words * 4, int(tally[0]), proven=False), groups

    def count(self, kernel: Any, buffer: int, word: int) -> int:  # noqa: ANN401  (pyopencl kernels are untyped)
        """Run a kernel ``(memory, words, word, tally)`` over a buffer and return the tally."""
        tally = np.zeros(TALLY_WORDS, np.uint32)
        self._move(self._tally, tally)
        target = self._buffers[buffer]
        self._run(kernel, self._grid, target, np.uint64(target.size // 8), np.uint64(word), self._tally)
        self._move(tally, self._tally)
        return int(tally[0])

    def load(self, source: str, *names: str) -> dict[str, Any]:
        """Build OpenCL C and return its kernels by name."""
        try:
            program = cl.Program(self._context, source).build()
            return {name: cl.Kernel(program, name) for name in names}
        except cl.Error as error:
            raise DeviceError(f"building kernels: {error}") from error

    @property
    def kinds(self) -> tuple[str, ...]:
        """See ``Workbench.kinds``; each but fp32 and int8 is an extension that devices may lack."""
        return ("fp32", *(kind for kind, word in _EXTENSIONS.items() if word in self._device.extensions.split()), "int8")

    def write(self, buffer: int, data: bytes) -> None:
        """See ``Workbench.write``."""
        self._move(self._buffers[buffer], np.frombuffer(data, np.uint8))

    def read(self, buffer: int, size: int) -> bytes:
        """See ``Workbench.read``."""
        data = np.empty(size, np.uint8)
        self._move(data, self._buffers[buffer])
        return data.tobytes()

    def transfer(self, buffer: int, size: int, *, to_device: bool) -> None:
        """See ``Workbench.transfer``; drivers pin what they allocate themselves, and mapping keeps it so."""
        if self._staging is None or self._staging[0].size < size:
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.ALLOC_HOST_PTR
            pinned = cl.Buffer(self._context, flags, size)
            both = cl.map_flags.READ | cl.map_flags.WRITE
            mapped: Any = cl.enqueue_map_buffer  # its stub knows neither plain sizes nor NumPy's scalar types
            view, _ = mapped(self._queue, pinned, both, 0, size, np.uint8)
            self._staging = pinned, view
        host, device = self._staging[1][:size], self._buffers[buffer]
        self._move(*((device, host) if to_device else (host, device)))

    def multiply(self, kind: str, matrices: tuple[int, int, int], n: int, times: int) -> None:
        """See ``Workbench.multiply``."""
        if self._products is None:
            source = resources.files("sandbox.node.gpu").joinpath("matmul.cl").read_text("utf-8")
            options = [f"-D{name.upper()}" for name in _EXTENSIONS if name in self.kinds]
            try:
                self._products = cl.Program(self._context, source).build(options)
            except cl.Error as error:
                raise DeviceError(f"building the matrix products: {error}") from error
        kernel = cl.Kernel(self._products, f"multiply_{kind}")
        grid = ((n // MATRIX_STEP) ** 2 * _PRODUCT_GROUP, _PRODUCT_GROUP)
        for _ in range(times):
            self._run(kernel, grid, *(self._buffers[matrix] for matrix in matrices), np.uint32(n))

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

    def _move(self, target: Any, source: Any) -> None:  # noqa: ANN401  (buffers and arrays)
        try:
            cl.enqueue_copy(self._queue, target, source)
            self._queue.finish()
        except cl.Error as error:
            raise DeviceError(f"copying: {error}") from error
