"""Which lease has which GPU. A GPU (or MIG instance) is leased whole, by UUID, and by one lease at a time.

NVIDIA's reach a container through a CDI device that names them; others by their own device files, of which no other lease has one.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypedDict

from sandbox.errors import JobError

if TYPE_CHECKING:
    from sandbox.node.gpu.model import Inventory


class DeviceFields(TypedDict):
    """The GPU part of ``plan.HostFacts``."""

    devices: tuple[str, ...]
    cdi: tuple[str, ...]


class GpuPool:
    """Safe for use by several threads."""

    def __init__(self, inventory: Inventory, *, cdi: bool) -> None:
        """``cdi`` says whether the engine takes CDI devices; without it no GPU is handed out."""
        self.inventory = inventory
        self._cdi = cdi
        self._held: dict[str, str] = {}
        self._lock = threading.Lock()

    def take(self, lease: str, count: int, memory: int) -> tuple[str, ...]:
        """Return the UUIDs of ``count`` free GPUs with at least ``memory`` bytes. Raises ``JobError`` where there are not as many."""
        if count == 0:
            return ()
        with self._lock:
            fitting = [gpu for gpu in self.inventory.gpus if gpu.uuid not in self._held and gpu.memory - gpu.reserved >= memory]
            # The smallest that fit are given first, so that the large ones are left for those who need them.
            free = [gpu.uuid for gpu in sorted(fitting, key=lambda gpu: gpu.memory)]
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
            self._held.update(dict.fromkeys(taken, lease))
            return taken

    def give_back(self, lease: str) -> None:
        """Free a lease's GPUs, after a proven wipe."""
        with self._lock:
            self._held = {uuid: holder for uuid, holder in self._held.items() if holder != lease}

    def devices(self, uuids: tuple[str, ...]) -> DeviceFields:
        """Return how a plan names these GPUs."""
        nodes = [node for gpu in self.inventory.gpus if gpu.uuid in uuids for node in gpu.nodes]
        return {
            "devices": tuple(dict.fromkeys(nodes)),  # AMD's control device is the same for all cards
            "cdi": tuple(f"sealrig.dev/gpu={uuid}" for uuid in uuids if self._by_cdi(uuid)),
        }

    def _by_cdi(self, uuid: str) -> bool:
        return not next(gpu.nodes for gpu in self.inventory.gpus if gpu.uuid == uuid)
