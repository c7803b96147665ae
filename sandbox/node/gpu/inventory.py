"""Which GPUs this node has, as NVML tells, and what a wipe has to know of them. Works, and says so plainly, without any GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from attestation.wipe import GpuWipe

_NVIDIA_VENDOR = "0x10de"
_AMD_VENDOR = "0x1002"
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``memory`` and ``reserved`` in bytes."""

    uuid: str
    name: str
    memory: int
    reserved: int
    pci: str = ""
    driver: str = ""
    vbios: str = ""
    serial: str = ""
    minor: int | None = None
    processes: tuple[int, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inventory:
    """All GPUs that the driver shows, how many the PCI bus shows, and why there are none where there are none."""

    gpus: tuple[Gpu, ...]
    on_bus: int
    detail: str

    def summary(self) -> dict[str, Any]:
        """Return what is told to the control plane."""
        rows = [
            {"uuid": gpu.uuid, "name": gpu.name, "memory": gpu.memory, "pci": gpu.pci, "driver": gpu.driver, "vbios": gpu.vbios}
            for gpu in self.gpus
        ]
        return {"gpus": rows, "gpusOnBus": self.on_bus, "gpuDetail": self.detail}


class GpuWiper(Protocol):
    """Wipes the GPUs of one lease with proof. An implementation never raises: what it cannot prove has ``ok`` False."""

    def wipe(self, uuids: tuple[str, ...]) -> tuple[GpuWipe, ...]:
        """Wipe exactly these GPUs; return one record for each."""
        ...


def inventory() -> Inventory:
    """Ask NVML and the PCI bus. Never raises: what cannot be asked is said in ``detail``."""
    on_bus = gpus_on_bus()
    try:
        import pynvml
    except ImportError:
        return Inventory((), on_bus, "nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Inventory((), on_bus, "no GPU on this node" if on_bus == 0 else f"{on_bus} GPUs on the bus, but NVML says: {error}")
    try:
        gpus = tuple(_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return Inventory((), on_bus, f"{on_bus} GPUs on the bus, but NVML says: {error}")
    finally:
        pynvml.nvmlShutdown()
    return Inventory(gpus, on_bus, f"{len(gpus)} GPUs" if gpus else "no GPU on this node")


def _gpu(nvml: Any, index: int) -> Gpu:  # noqa: ANN401  (the library is untyped)
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(name: str, *arguments: object) -> Any:  # noqa: ANN401  (the library is untyped)
        try:
            return getattr(nvml, name)(*arguments)
        except nvml.NVMLError:
            return None

    memory = ask("nvmlDeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2) or nvml.nvmlDeviceGetMemoryInfo(handle)
    pci = ask("nvmlDeviceGetPciInfo", handle)
    processes = ask("nvmlDeviceGetComputeRunningProcesses", handle) or []
    return Gpu(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory=int(memory.total),
        reserved=int(getattr(memory, "reserved", 0)),
        pci=_text(pci.busId) if pci else "",
        driver=_text(ask("nvmlSystemGetDriverVersion") or ""),
        vbios=_text(ask("nvmlDeviceGetVbiosVersion", handle) or ""),
        serial=_text(ask("nvmlDeviceGetSerial", handle) or ""),
        minor=ask("nvmlDeviceGetMinorNumber", handle),
        processes=tuple(int(item.pid) for item in processes),
    )


def gpus_on_bus(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """Return how many NVIDIA or AMD display controllers the PCI bus shows, driver or not."""
    count = 0
    for device in devices.glob("*") if devices.exists() else ():
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor in (_NVIDIA_VENDOR, _AMD_VENDOR) and kind.startswith(_DISPLAY_CLASSES)
    return count


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
