"""GPUs as the kernel shows them on the PCI bus: AMD's in full (the amdgpu driver says much), others by their place."""

from __future__ import annotations

import re
from pathlib import Path

from sandbox.node.gpu.model import Errors, Gpu, Link, Thermals

DEVICES = Path("/sys/bus/pci/devices")
PROCESSES = Path("/proc")
NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")
_ACCELERATOR = "0x1200"
_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
"""GT/s of a lane → PCIe generation."""
_MOST_PAGES = 100_000


def gpus_on_bus(devices: Path = DEVICES) -> int:
    """Return how many NVIDIA or AMD GPUs the PCI bus shows, driver or not."""
    return len(_displays(devices, (NVIDIA, AMD)))


def intel_on_bus(devices: Path = DEVICES) -> int:
    """Return how many GPUs of Intel's the PCI bus shows: no driver that this node asks tells of them."""
    return len(_displays(devices, (INTEL,)))


def read_gpus(devices: Path = DEVICES, processes: Path = PROCESSES) -> tuple[Gpu, ...]:
    """Return the GPUs that amdgpu drives, with the processes that have their device files open."""
    cards = [device for device in _displays(devices, (AMD,)) if _text(device / "mem_info_vram_total")]
    return tuple(_amd(device, processes) for device in cards)


def holders(nodes: tuple[str, ...], processes: Path = PROCESSES) -> tuple[int, ...] | None:
    """Return the processes that have one of these device files open; None for whoever may not look (only root may)."""
    wanted, found = set(nodes), set()
    for entry in processes.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if any(str(link.readlink()) in wanted for link in (entry / "fd").iterdir()):
                found.add(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        except PermissionError:
            return None
    return tuple(sorted(found))


def pci_uuid(address: str, devices: Path = DEVICES) -> str:
    """Name the GPU at a PCI address: by the chip's own serial number where the driver tells it, else by the address."""
    number = _text(devices / address / "unique_id")
    return f"AMD-{number}" if re.fullmatch(r"[0-9a-f]{1,32}", number) else f"PCI-{address}"


def _displays(devices: Path, vendors: tuple[str, ...]) -> list[Path]:
    found = []
    for device in sorted(devices.glob("*")) if devices.exists() else ():
        kind = _text(device / "class")
        if _text(device / "vendor") in vendors and (kind.startswith(_DISPLAY_CLASSES) or kind.startswith(_ACCELERATOR)):
            found.append(device)
    return found


def _amd(device: Path, processes: Path) -> Gpu:
    renders = tuple(f"/dev/dri/{path.name}" for path in sorted((device / "drm").glob("renderD*")))
    vendor, model = (_text(device / name).removeprefix("0x") for name in ("vendor", "device"))
    sensors = next(iter(sorted((device / "hwmon").glob("hwmon*"))), device / "hwmon")
    temperature, power, limit = (_number(sensors / name) for name in ("temp1_input", "power1_average", "power1_cap"))
    threshold = _number(sensors / "temp1_crit")
    return Gpu(
        uuid=pci_uuid(device.name, device.parent),
        name=_text(device / "product_name") or f"AMD GPU {vendor}:{model}",
        memory=_number(device / "mem_info_vram_total") or 0,
        reserved=0,  # amdgpu does not say; counting nothing as reserved can only make coverage look worse
        pci=device.name,
        pci_id=f"{vendor}:{model}",
        subsystem=":".join(_text(device / name).removeprefix("0x") for name in ("subsystem_vendor", "subsystem_device")),
        driver=(device / "driver").resolve().name if (device / "driver").exists() else "",
        vbios=_text(device / "vbios_version"),
        serial=_text(device / "serial_number"),
        backend="opencl",
        processes=holders(renders, processes) if renders else None,
        link=Link(
            generation=_generation(device / "current_link_speed"),
            width=_number(device / "current_link_width"),
            generation_most=_generation(device / "max_link_speed"),
            width_most=_number(device / "max_link_width"),
        ),
        errors=_errors(device / "ras"),
        thermals=Thermals(
            temperature=None if temperature is None else temperature // 1000,
            slowdown_at=None if threshold is None else threshold // 1000,
            power=None if power is None else power / 1e6,
            power_limit=None if limit is None else limit / 1e6,
        ),
        nodes=("/dev/kfd", *renders) if renders else (),
    )


def _errors(ras: Path) -> Errors:
    """Read amdgpu's counters of the memory controller (umc): lines ``ue: N`` and ``ce: N``, and its list of bad pages."""
    if not ras.exists():
        return Errors()
    counts = dict(re.findall(r"^(ue|ce):\s*(\d+)$", _text(ras / "umc_err_count"), re.MULTILINE))
    pages = _text(ras / "gpu_vram_bad_pages").splitlines() if (ras / "gpu_vram_bad_pages").exists() else None
    return Errors(
        ecc=bool(counts) or None,
        corrected=int(counts["ce"]) if "ce" in counts else None,
        uncorrected=int(counts["ue"]) if "ue" in counts else None,
        retired_pages=None if pages is None else len(pages[:_MOST_PAGES]),
        retirement_pending=None if pages is None else any(line.rstrip().endswith(": P") for line in pages),
    )


def _generation(path: Path) -> int | None:
    match = re.match(r"([0-9.]+) GT/s", _text(path))
    return _GENERATIONS.get(float(match[1])) if match else None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
