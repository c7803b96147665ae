"""What is known of a GPU: identity, memory, link, health. Values only; ``None`` means that the driver does not say."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Link:
    """The PCIe link: generation and lanes now and at most. Cards lower the generation while they idle."""

    generation: int | None = None
    width: int | None = None
    generation_most: int | None = None
    width_most: int | None = None


@dataclass(frozen=True)
class Errors:
    """Memory errors over the card's life: ECC on or off, counts, pages retired (older cards), rows remapped (newer ones)."""

    ecc: bool | None = None
    corrected: int | None = None
    uncorrected: int | None = None
    retired_pages: int | None = None
    retirement_pending: bool | None = None
    remapped_rows: int | None = None
    remapping_pending: bool | None = None
    remapping_failed: bool | None = None


@dataclass(frozen=True)
class Thermals:
    """Degrees Celsius, watts, and the reasons for which the driver holds the clocks back now."""

    temperature: int | None = None
    slowdown_at: int | None = None
    power: float | None = None
    power_limit: float | None = None
    throttled_by: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG instance where the operator divided a GPU (``parent`` then names the whole one). Sizes in bytes.

    ``processes`` hold it now; None says that the driver does not tell. ``nodes`` are the device files that a container needs, for
    drivers without CDI. ``pci_id`` is ``vendor:device`` in hex. ``lost`` says why the driver cannot read a card that it counts; nothing but
    its place in the list is known of it then.
    """

    uuid: str
    name: str
    memory: int
    reserved: int
    pci: str = ""
    pci_id: str = ""
    subsystem: str = ""
    driver: str = ""
    vbios: str = ""
    serial: str = ""
    minor: int | None = None
    backend: str = "cuda"
    processes: tuple[int, ...] | None = ()
    link: Link = field(default_factory=Link)
    errors: Errors = field(default_factory=Errors)
    thermals: Thermals = field(default_factory=Thermals)
    nvlinks: int | None = None
    mig: bool | None = None
    parent: str = ""
    instance: tuple[int, int] | None = None
    inforom_valid: bool | None = None
    nodes: tuple[str, ...] = ()
    lost: str = ""

    def row(self) -> dict[str, Any]:
        """Return all of it as JSON values, without what holds it now."""
        tree = asdict(self)
        for name in ("processes", "nodes", "minor"):
            del tree[name]
        tree["thermals"]["throttled_by"] = None if self.thermals.throttled_by is None else list(self.thermals.throttled_by)
        tree["instance"] = None if self.instance is None else list(self.instance)
        return tree


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: version, whether confidential computing is on, and its kernel module's parameters that matter here."""

    version: str = ""
    confidential: bool | None = None
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Inventory:
    """All GPUs that the drivers show, how many the PCI bus shows, and why there are none where there are none."""

    gpus: tuple[Gpu, ...]
    on_bus: int
    detail: str
    driver: Driver = field(default_factory=Driver)

    def summary(self) -> dict[str, Any]:
        """Return what is told to the control plane."""
        return {
            "gpus": [gpu.row() for gpu in self.gpus],
            "gpusOnBus": self.on_bus,
            "gpuDetail": self.detail,
            "gpuDriver": asdict(self.driver),
        }
