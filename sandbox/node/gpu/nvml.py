"""NVIDIA GPUs as NVML tells of them (nvidia-ml-py). What a card does not support is None, never a guess."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from sandbox.node.gpu.model import Driver, Errors, Gpu, Link, Thermals

PARAMETERS = Path("/proc/driver/nvidia/params")
_TOLD_PARAMETERS = (
    "RegistryDwords",
    "InitializeSystemMemoryAllocations",
    "RmProfilingAdminOnly",
    "PreserveVideoMemoryAllocations",
    "OpenRmEnableUnsupportedGpus",
)
_MAX_NVLINKS = 18
_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReason* (nvml.h) that lower clocks under load; idle and settings are not among them."""


class NvmlUnavailableError(Exception):
    """NVML is not installed, or its driver is not loaded; the message says which."""


@dataclass(frozen=True)
class Card:
    """An open handle to one GPU or MIG instance."""

    handle: Any

    def ask(self, name: str, *arguments: object) -> Any:  # noqa: ANN401  (nvidia-ml-py is untyped)
        """Return NVML's answer; None where this card or driver has none."""
        try:
            return getattr(pynvml, name)(self.handle, *arguments)
        except (pynvml.NVMLError, AttributeError):
            return None


@contextmanager
def session() -> Iterator[None]:
    """Keep NVML open. Raises ``NvmlUnavailableError``."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailableError(str(error)) from error
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def read_gpus() -> tuple[Gpu, ...]:
    """Return all GPUs; one that is divided into MIG instances is replaced by these. Call inside ``session``.

    One that cannot be read stands in the list as lost: it neither hides the others, whose wipes go on, nor is left out itself. Raises
    ``NvmlUnavailableError`` where NVML does not tell how many there are.
    """
    try:
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        raise NvmlUnavailableError(str(error)) from error
    return tuple(gpu for index in range(count) for gpu in _at(index))


def _at(index: int) -> list[Gpu]:
    uuid = f"LOST-{index}"
    try:
        card = Card(pynvml.nvmlDeviceGetHandleByIndex(index))
        uuid = _text(pynvml.nvmlDeviceGetUUID(card.handle))
        whole = _gpu(card)
        return _instances(card, whole) if whole.mig else [whole]
    except pynvml.NVMLError as error:
        return [Gpu(uuid, "an NVIDIA GPU that is lost", 0, 0, processes=None, lost=f"the driver cannot read it ({error})")]


def read_again(gpu: Gpu) -> Gpu:
    """Return a GPU with its link and heat as they are now, and the rest as it was. Call inside ``session``.

    Nothing is asked that the driver would have to look for on the board. Raises ``NvmlUnavailableError``.
    """
    try:
        card = Card(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
    except pynvml.NVMLError as error:
        raise NvmlUnavailableError(str(error)) from error
    return replace(gpu, link=_link(card), thermals=_thermals(card))


def read_driver(parameters: Path = PARAMETERS) -> Driver:
    """Return what is known of the driver itself. Call inside ``session``."""
    try:
        version = _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        version = ""
    try:
        confidential: bool | None = bool(pynvml.nvmlSystemGetConfComputeState().ccFeature)
    except pynvml.NVMLError:
        confidential = None
    try:
        pairs = (line.partition(":") for line in parameters.read_text("utf-8", "replace").splitlines())
        told = {name.strip(): value.strip().strip('"')[:500] for name, colon, value in pairs if colon}
    except OSError:
        told = {}
    return Driver(version, confidential, {name: told[name] for name in _TOLD_PARAMETERS if name in told})


def _gpu(card: Card) -> Gpu:
    total, reserved = _memory(card)
    pci = card.ask("nvmlDeviceGetPciInfo")
    mig = card.ask("nvmlDeviceGetMigMode")
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        driver = ""
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(card.handle)),
        name=_text(pynvml.nvmlDeviceGetName(card.handle)),
        memory=total,
        reserved=reserved,
        pci=_text(pci.busId).lower() if pci else "",
        # NVML has the device in the upper half of the word and the vendor in the lower, as the bus does.
        pci_id=f"{pci.pciDeviceId & 0xFFFF:04x}:{pci.pciDeviceId >> 16:04x}" if pci else "",
        subsystem=f"{pci.pciSubSystemId & 0xFFFF:04x}:{pci.pciSubSystemId >> 16:04x}" if pci else "",
        driver=driver,
        vbios=_text(card.ask("nvmlDeviceGetVbiosVersion") or ""),
        serial=_text(card.ask("nvmlDeviceGetSerial") or ""),
        minor=card.ask("nvmlDeviceGetMinorNumber"),
        processes=_processes(card),
        link=_link(card),
        errors=_errors(card),
        thermals=_thermals(card),
        nvlinks=_nvlinks(card),
        mig=None if mig is None else mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        inforom_valid=_inforom(card),
    )


def _link(card: Card) -> Link:
    return Link(
        generation=card.ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        width=card.ask("nvmlDeviceGetCurrPcieLinkWidth"),
        generation_most=card.ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        width_most=card.ask("nvmlDeviceGetMaxPcieLinkWidth"),
    )


def _instances(card: Card, whole: Gpu) -> list[Gpu]:
    found = []
    for index in range(card.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
        handle = card.ask("nvmlDeviceGetMigDeviceHandleByIndex", index)
        if handle is None:
            continue
        part = Card(handle)
        total, reserved = _memory(part)
        found.append(
            Gpu(
                uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
                name=_text(part.ask("nvmlDeviceGetName") or f"{whole.name} MIG"),
                memory=total,
                reserved=reserved,
                pci=whole.pci,
                pci_id=whole.pci_id,
                subsystem=whole.subsystem,
                driver=whole.driver,
                vbios=whole.vbios,
                serial=whole.serial,
                minor=whole.minor,
                processes=_processes(part),
                link=whole.link,
                errors=whole.errors,
                thermals=whole.thermals,
                mig=True,
                parent=whole.uuid,
                instance=(pynvml.nvmlDeviceGetGpuInstanceId(handle), pynvml.nvmlDeviceGetComputeInstanceId(handle)),
            )
        )
    return found


def _memory(card: Card) -> tuple[int, int]:
    memory = card.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2) or pynvml.nvmlDeviceGetMemoryInfo(card.handle)
    return int(memory.total), int(getattr(memory, "reserved", 0))


def _processes(card: Card) -> tuple[int, ...] | None:
    """Return who computes or draws with the card; None where NVML does not tell of computing (drawing is not told of on all cards)."""
    computing = card.ask("nvmlDeviceGetComputeRunningProcesses")
    if computing is None:
        return None
    drawing = card.ask("nvmlDeviceGetGraphicsRunningProcesses") or []
    return tuple(sorted({int(item.pid) for item in (*computing, *drawing)}))


def _errors(card: Card) -> Errors:
    mode = card.ask("nvmlDeviceGetEccMode")
    lifetime = pynvml.NVML_AGGREGATE_ECC
    rows = card.ask("nvmlDeviceGetRemappedRows")
    causes = (
        pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
        pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
    )
    pages = [card.ask("nvmlDeviceGetRetiredPages", cause) for cause in causes]
    pending = card.ask("nvmlDeviceGetRetiredPagesPendingStatus")
    return Errors(
        ecc=None if mode is None else mode[0] == pynvml.NVML_FEATURE_ENABLED,
        corrected=card.ask("nvmlDeviceGetTotalEccErrors", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, lifetime),
        uncorrected=card.ask("nvmlDeviceGetTotalEccErrors", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, lifetime),
        retired_pages=None if None in pages else sum(len(found) for found in pages),
        retirement_pending=None if pending is None else bool(pending),
        remapped_rows=None if rows is None else int(rows[0]) + int(rows[1]),
        remapping_pending=None if rows is None else bool(rows[2]),
        remapping_failed=None if rows is None else bool(rows[3]),
    )


def _thermals(card: Card) -> Thermals:
    reasons = card.ask("nvmlDeviceGetCurrentClocksEventReasons")
    power, limit = card.ask("nvmlDeviceGetPowerUsage"), card.ask("nvmlDeviceGetEnforcedPowerLimit")
    return Thermals(
        temperature=card.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        slowdown_at=card.ask("nvmlDeviceGetTemperatureThreshold", pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        power=None if power is None else power / 1000,
        power_limit=None if limit is None else limit / 1000,
        throttled_by=None if reasons is None else tuple(name for bit, name in _REASONS.items() if reasons & bit),
    )


def _nvlinks(card: Card) -> int | None:
    states = [card.ask("nvmlDeviceGetNvLinkState", link) for link in range(_MAX_NVLINKS)]
    return None if all(state is None for state in states) else sum(state == pynvml.NVML_FEATURE_ENABLED for state in states)


def _inforom(card: Card) -> bool | None:
    """Say whether the board's own data (InfoROM: identity, ECC history) is intact."""
    try:
        pynvml.nvmlDeviceValidateInforom(card.handle)
    except pynvml.NVMLError_CorruptedInforom:
        return False
    except (pynvml.NVMLError, AttributeError):
        return None
    return True


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
