"""Wiping the GPUs of a lease: nobody may hold them, before and after; each is wiped in a process of its own, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attestation.document import MAX_TEXT
from attestation.wipe import GpuWipe
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.erase import DeviceWipe
from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.model import Gpu, Inventory
from sandbox.node.gpu.vram import facts_of, wipe_device

PATIENCE_SECONDS = 5.0
"""How long a driver may go on showing a process that has ended, or is about to."""
_PAUSE_SECONDS = 0.2


class VramWiper:
    """Wipes GPUs by UUID; see ``sandbox.node.gpu.inventory.GpuWiper``. Its parts can be given, so that tests can plant every failure."""

    def __init__(
        self,
        wipe_one: Callable[[DeviceFacts], DeviceWipe] = wipe_device,
        look: Callable[[], Inventory] = inventory,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._wipe_one, self._look, self._patience = wipe_one, look, patience

    def wipe(self, uuids: tuple[str, ...]) -> tuple[GpuWipe, ...]:
        """Wipe exactly these GPUs; return one record for each, in order. Never raises."""
        return tuple(record(report) for report in self.reports(uuids))

    def reports(self, uuids: tuple[str, ...]) -> tuple[DeviceWipe, ...]:
        """Wipe exactly these GPUs; return the full report of each, in order. Never raises."""
        if not uuids:
            return ()
        with ThreadPoolExecutor(len(uuids)) as pool:
            return tuple(pool.map(self._one, uuids))

    def _one(self, uuid: str) -> DeviceWipe:
        # The job's processes have just been killed; the driver may still be taking their contexts down.
        gpu = self._free(uuid, lambda _: True)
        if gpu is None:
            return DeviceWipe(uuid=uuid, name="", backend="none", failures=("no driver on this node knows this device",))
        if why := _held(gpu):
            return _refused(gpu, why)
        report = self._wipe_one(facts_of(gpu))
        # The wipe's own worker is waited for. Whoever else lives and is on the card now may have been there while it was wiped.
        after = self._free(uuid, lambda pid: not Path(f"/proc/{pid}").exists())
        why = "no driver on this node knows this device any more" if after is None else _held(after)
        return report.model_copy(update={"ok": False, "failures": (*report.failures, f"after the wipe: {why}")}) if why else report

    def _free(self, uuid: str, may_go: Callable[[int], bool]) -> Gpu | None:
        """Return the GPU as it is once nobody holds it, or one who will not go, or time is up; None where it is not known."""
        deadline = time.monotonic() + self._patience
        while True:
            gpu = next((gpu for gpu in self._look().gpus if gpu.uuid == uuid), None)
            if gpu is None or not gpu.processes or not all(map(may_go, gpu.processes)) or time.monotonic() > deadline:
                return gpu
            time.sleep(_PAUSE_SECONDS)


def _held(gpu: Gpu) -> str:
    """Say who holds the GPU, or that nobody can know; nothing where nobody does."""
    if gpu.lost:
        return gpu.lost
    if gpu.processes is None:
        return "the driver does not tell which processes hold the device"
    return f"processes still hold the device: {', '.join(str(pid) for pid in gpu.processes[:8])}" if gpu.processes else ""


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
        residue_words_before=report.residue_words_before,
        local_memory_scrubbed=report.local_memory_scrubbed,
        seconds=report.seconds,
        ok=report.ok,
        coverage=report.coverage,
        rest_bytes=report.rest_bytes,
        fill_gb_per_s=min((item.gb_per_s for item in report.passes), default=None),
        compare_gb_per_s=min((item.compare_gb_per_s for item in report.passes), default=None),
        local_memory_proven=report.local_memory_proven,
        detail="; ".join(report.failures)[:MAX_TEXT] or None,
    )
