"""Which lease has which GPU. A GPU (or MIG instance) is leased whole, by UUID, and by one lease at a time.

NVIDIA's reach a container through a CDI device that names them; others by their own device files, of which no other lease has one.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from sandbox.errors import JobError
from sandbox.wire import GpuOffer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandbox.node.gpu.model import Gpu, Inventory


class DeviceFields(TypedDict):
    """The GPU part of ``plan.HostFacts``."""

    devices: tuple[str, ...]
    cdi: tuple[str, ...]


def usable(gpu: Gpu) -> int:
    """Return the bytes of a GPU that a job can use."""
    return gpu.memory - gpu.reserved


class GpuPool:
    """Safe for use by several threads."""

    def __init__(self, inventory: Inventory, *, cdi: bool, refused: Mapping[str, str] | None = None) -> None:
        """``cdi`` says whether the engine takes CDI devices; without it no GPU is handed out.

        ``refused`` says, by uuid, why a GPU is never leased, beside those that are lost; it is part of the inventory's ``detail``.
        """
        never = {gpu.uuid: gpu.lost for gpu in inventory.gpus if gpu.lost} | dict(refused or {})
        self._why = [f"{uuid} is not leased: {reason}" for uuid, reason in never.items()]
        self.inventory = self.described(inventory)
        self.leasable = tuple(gpu for gpu in inventory.gpus if gpu.uuid not in never)
        self._cdi = cdi
        self._held: set[tuple[str, str]] = set()
        self._changed = threading.Condition()

    def described(self, found: Inventory) -> Inventory:
        """Return an inventory whose ``detail`` also says which GPUs are never leased, and why."""
        return replace(found, detail="; ".join([found.detail, *self._why]))

    def take(self, lease: str, count: int, memory: int, *, patience: float = 0) -> tuple[str, ...]:
        """Return the UUIDs of ``count`` free GPUs with at least ``memory`` bytes. Raises ``JobError`` where there are not as many.

        ``patience`` is how many seconds to wait for GPUs that are about to be given back: the control plane knows of a lease's end, and
        may place the next one, a moment before this node has put away what it keeps of the last.
        """
        if count == 0:
            return ()
        with self._changed:
            enough = sum(usable(gpu) >= memory for gpu in self.leasable) >= count
            self._changed.wait_for(lambda: len(self._free(memory)) >= count, patience if enough else 0)
            free = self._free(memory)
            if len(free) < count:
                raise JobError(
                    "not enough free GPUs on this node",
                    rule="gpus",
                    seen=f"{len(free)} free ({self.inventory.detail})",
                    wanted=f"{count} with {memory} bytes each",
                    fix="ask for fewer GPUs, or wait",
                )
            taken = tuple(free[:count])
            if not self._cdi and any(self._by_cdi(uuid) for uuid in taken):
                raise JobError(
                    "the Docker Engine cannot hand out single GPUs",
                    rule="cdi",
                    seen="no CDI support",
                    wanted="Docker Engine 25 or newer with CDI",
                    fix='update Docker on this node; before 28.3 also set {"features": {"cdi": true}} in its daemon.json',
                )
            self._held.update((lease, uuid) for uuid in taken)
            return taken

    def hold(self, lease: str, uuids: Iterable[str] | None) -> None:
        """Keep GPUs from others for a lease that an earlier process left; None, where nobody knows which it had, keeps all.

        A GPU may be held for several such leases, and is free when it was given back for each.
        """
        with self._changed:
            self._held.update((lease, uuid) for uuid in (uuids if uuids is not None else [gpu.uuid for gpu in self.inventory.gpus]))

    def give_back(self, lease: str) -> None:
        """Free a lease's GPUs, once their wipe is proven and stands in the audit log."""
        with self._changed:
            self._held = {(holder, uuid) for holder, uuid in self._held if holder != lease}
            self._changed.notify_all()

    def offers(self) -> tuple[GpuOffer, ...]:
        """Return all GPUs that are leased, with whom each is held for now: the control plane places by it."""
        with self._changed:
            return tuple(
                GpuOffer(uuid=gpu.uuid, memory=usable(gpu), leases=tuple(sorted(lease for lease, uuid in self._held if uuid == gpu.uuid)))
                for gpu in self.leasable
            )

    def devices(self, uuids: tuple[str, ...]) -> DeviceFields:
        """Return how a plan names these GPUs."""
        nodes = [node for gpu in self.inventory.gpus if gpu.uuid in uuids for node in gpu.nodes]
        return {
            "devices": tuple(dict.fromkeys(nodes)),  # AMD's control device is the same for all cards
            "cdi": tuple(f"sealrig.dev/gpu={uuid}" for uuid in uuids if self._by_cdi(uuid)),
        }

    def _free(self, memory: int) -> list[str]:
        """Return the free GPUs that fit, the smallest first, so that the large ones are left for those who need them."""
        held = {uuid for _, uuid in self._held}
        fitting = [gpu for gpu in self.leasable if gpu.uuid not in held and usable(gpu) >= memory]
        return [gpu.uuid for gpu in sorted(fitting, key=usable)]

    def _by_cdi(self, uuid: str) -> bool:
        return not next(gpu.nodes for gpu in self.inventory.gpus if gpu.uuid == uuid)
