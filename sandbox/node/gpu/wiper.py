"""Wiping the GPUs of a lease: nobody may hold them, each is wiped in a process of its own, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from attestation.wipe import GpuWipe
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.erase import DeviceWipe
from sandbox.node.gpu.inventory import Inventory, inventory
from sandbox.node.gpu.vram import list_devices, wipe_device


class VramWiper:
    """Wipes GPUs by UUID; see ``sandbox.node.gpu.inventory.GpuWiper``. Its parts can be given, so that tests can plant every failure."""

    def __init__(
        self,
        devices: Callable[[], Iterable[DeviceFacts]] = list_devices,
        wipe_one: Callable[[DeviceFacts], DeviceWipe] = wipe_device,
        look: Callable[[], Inventory] = inventory,
    ) -> None:
        self._devices, self._wipe_one, self._look = devices, wipe_one, look

    def wipe(self, uuids: tuple[str, ...]) -> tuple[GpuWipe, ...]:
        """Wipe exactly these GPUs; return one record for each, in order. Never raises."""
        return tuple(record(report) for report in self.reports(uuids))

    def reports(self, uuids: tuple[str, ...]) -> tuple[DeviceWipe, ...]:
        """Wipe exactly these GPUs; return the full report of each, in order. Never raises."""
        if not uuids:
            return ()
        held = {gpu.uuid: gpu.processes for gpu in self._look().gpus}
        known = {facts.uuid: facts for facts in self._devices()}
        with ThreadPoolExecutor(len(uuids)) as pool:
            return tuple(pool.map(lambda uuid: self._one(uuid, known.get(uuid), held.get(uuid, ())), uuids))

    def _one(self, uuid: str, facts: DeviceFacts | None, processes: tuple[int, ...]) -> DeviceWipe:
        if facts is None:
            return DeviceWipe(uuid=uuid, name="", backend="none", failures=("no driver on this node knows this device",))
        if processes:
            shown = ", ".join(str(pid) for pid in processes[:8])
            return DeviceWipe(
                uuid=uuid, name=facts.name, backend=facts.backend, total_bytes=facts.total_bytes, reserved_bytes=facts.reserved_bytes,
                failures=(f"processes still hold the device: {shown}",),
            )  # fmt: skip
        return self._wipe_one(facts)


def record(report: DeviceWipe) -> GpuWipe:
    """Return what of a report stands in the signed wipe report."""
    return GpuWipe(
        uuid=report.uuid,
        name=report.name or "unknown",
        backend=report.backend,
        total_bytes=report.total_bytes,
        reserved_bytes=report.reserved_bytes,
        written_bytes=report.written_bytes,
        verified_bytes=report.verified_bytes,
        mismatches=sum(item.mismatches for item in report.passes),
        residue_words_before=report.residue_words_before or 0,
        local_memory_scrubbed=report.local_memory_scrubbed,
        seconds=report.seconds,
        ok=report.ok,
    )
