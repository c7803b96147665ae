"""Which GPUs this node has: NVIDIA's as NVML tells, others as the kernel and OpenCL do. Works, and says so plainly, without any GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from sandbox.node.gpu import sysfs
from sandbox.node.gpu.model import Driver, Gpu, Inventory

if TYPE_CHECKING:
    from attestation.wipe import GpuWipe


class GpuWiper(Protocol):
    """Wipes the GPUs of one lease with proof. An implementation never raises: what it cannot prove has ``ok`` False."""

    def wipe(self, uuids: tuple[str, ...]) -> tuple[GpuWipe, ...]:
        """Wipe exactly these GPUs; return one record for each."""
        ...


def inventory() -> Inventory:
    """Ask the drivers and the PCI bus. Never raises: what cannot be asked is said in ``detail``."""
    on_bus = sysfs.gpus_on_bus()
    found, driver, trouble = _nvidia()
    gpus = (*found, *sysfs.read_gpus())
    return Inventory(gpus, on_bus, "; ".join(_words(gpus, on_bus, trouble)), driver)


def _words(gpus: Sequence[Gpu], on_bus: int, trouble: str) -> Iterator[str]:
    lost = [gpu.lost for gpu in gpus if gpu.lost]
    seen = len(gpus) - len(lost)
    if gpus:
        yield f"{seen} GPU{'' if seen == 1 else 's'}"
    if lost:
        yield f"{len(lost)} lost: {', '.join(sorted(set(lost)))}"
    if gpus and on_bus > len({gpu.parent or gpu.uuid for gpu in gpus}):
        yield f"{on_bus} on the bus"
    if not gpus:
        yield f"{on_bus} on the bus, but no driver shows one: {trouble or 'none is loaded'}" if on_bus else "no GPU on this node"
    if intel := sysfs.intel_on_bus():
        yield f"{intel} of Intel's on the bus, which {'is' if intel == 1 else 'are'} never leased"


def watch(gpu: Gpu) -> Gpu | None:
    """Ask NVML again for what changes under load in one GPU: link and heat. None where it does not answer."""
    try:
        from sandbox.node.gpu import nvml
    except ImportError:
        return None
    try:
        with nvml.session():
            return nvml.read_again(gpu)
    except nvml.NvmlUnavailableError:
        return None


def _nvidia() -> tuple[tuple[Gpu, ...], Driver, str]:
    try:
        from sandbox.node.gpu import nvml
    except ImportError:
        return (), Driver(), "nvidia-ml-py is not installed"
    try:
        with nvml.session():
            return nvml.read_gpus(), nvml.read_driver(), ""
    except nvml.NvmlUnavailableError as error:
        return (), Driver(), f"NVML says: {error}"
