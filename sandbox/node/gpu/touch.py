"""Was a GPU used since it was wiped? Known only where the driver keeps accounts; where it is not known the GPU is wiped again.

NVML's accounting lists every process that held a context on a GPU, also after it has ended, with the time of its start. A mark is taken
right after a proven wipe: the boot, the load of the driver, and that list. As long as the mark comes out the same, nothing but the
wipe's own worker has touched the card. Cards without accounting (or divided by MIG) have no mark, and neither has another vendor's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.node.gpu.nvml import Card

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MODULE = Path("/sys/module/nvidia")


def mark(uuid: str) -> str | None:
    """Return the mark of a GPU as it is now; None where its use is not accounted for."""
    try:
        import pynvml

        from sandbox.node.gpu.nvml import Card, NvmlUnavailableError, session
    except ImportError:
        return None
    try:
        with session():
            card = Card(pynvml.nvmlDeviceGetHandleByUUID(uuid))
            if card.ask("nvmlDeviceGetAccountingMode") != pynvml.NVML_FEATURE_ENABLED:
                return None
            users = card.ask("nvmlDeviceGetAccountingPids")
            if users is None:
                return None
            # The start's time tells processes apart that had the same id.
            used = sorted((pid, _started(card, pid)) for pid in users)
    except (NvmlUnavailableError, pynvml.NVMLError):
        return None
    loaded = _MODULE.stat().st_ctime_ns if _MODULE.exists() else 0
    return hashlib.sha256(json.dumps([_BOOT.read_text().strip(), loaded, used]).encode()).hexdigest()


def keep_accounts(uuid: str) -> bool:
    """Switch accounting on for a GPU (needs root; lasts until the driver is unloaded). Say whether it is on."""
    try:
        import pynvml

        from sandbox.node.gpu.nvml import Card, NvmlUnavailableError, session
    except ImportError:
        return False
    try:
        with session():
            card = Card(pynvml.nvmlDeviceGetHandleByUUID(uuid))
            if card.ask("nvmlDeviceGetAccountingMode") == pynvml.NVML_FEATURE_DISABLED:
                card.ask("nvmlDeviceSetAccountingMode", pynvml.NVML_FEATURE_ENABLED)
            return bool(card.ask("nvmlDeviceGetAccountingMode") == pynvml.NVML_FEATURE_ENABLED)
    except (NvmlUnavailableError, pynvml.NVMLError):
        return False


def _started(card: Card, pid: int) -> int:
    stats = card.ask("nvmlDeviceGetAccountingStats", pid)
    return int(stats.startTime) if stats is not None else 0
