"""Wiping the GPUs of a lease: nobody may hold them, each is wiped in a process of its own, side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from attestation.wipe import GpuWipe
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.erase import DeviceWipe
from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.model import Gpu, Inventory
from sandbox.node.gpu.vram import facts_of, wipe_device


class VramWiper:
    """Wipes GPUs by UUID; see ``sandbox.node.gpu.inventory.GpuWiper``. Its parts can be given, so that tests can plant every failure."""

    def __init__(
        self,
        wipe_one: Callable[[DeviceFacts], DeviceWipe] = wipe_device,
        look: Callable[[], Inventory] = inventory,
    ) -> None:
        self._wipe_one, self._look = wipe_one, look

    def wipe(self, uuids: tuple[str, ...]) -> tuple[GpuWipe, ...]:
        """Wipe exactly these GPUs; return one record for each, in order. Never raises."""
        return tuple(record(report) for report in self.reports(uuids))

    def reports(self, uuids: tuple[str, ...]) -> tuple[DeviceWipe, ...]:
        """Wipe exactly these GPUs; return the full report of each, in order. Never raises."""
        if not uuids:
            return ()
        known = {gpu.uuid: gpu for gpu in self._look().gpus}
        with ThreadPoolExecutor(len(uuids)) as pool:
            return tuple(pool.map(lambda uuid: self._one(uuid, known.get(uuid)), uuids))

    def _one(self, uuid: str, gpu: Gpu | None) -> DeviceWipe:
        if gpu is None:
            return DeviceWipe(uuid=uuid, name="", backend="none", failures=("no driver on this node knows this device",))
        if gpu.processes is None:
            return _refused(gpu, "the driver does not tell which processes hold the device")
        if gpu.processes:
            return _refused(gpu, f"processes still hold the device: {', '.join(str(pid) for pid in gpu.processes[:8])}")
        return self._wipe_one(facts_of(gpu))


def _refused(gpu: Gpu, why: str) -> DeviceWipe:
    return DeviceWipe(
        uuid=gpu.uuid, name=gpu.name, backend=gpu.backend, total_bytes=gpu.memory, reserved_bytes=gpu.reserved, failures=(why,)
    )


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
