"""Wiping the node's GPUs: which devices there are, and one worker process a device with a time limit."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import ValidationError

from sandbox.node.gpu import child
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.erase import DeviceWipe
from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.model import Gpu

TIME_LIMIT_SECONDS = 300.0
"""The longest one device may take; an 80 GB card behind a slow driver needs under a minute."""
_REPORT_MAX_BYTES = 1024 * 1024


def facts_of(gpu: Gpu) -> DeviceFacts:
    """Return what is known of a GPU of the inventory before a worker opens it."""
    return DeviceFacts(gpu.uuid, gpu.name, gpu.backend, gpu.memory, gpu.reserved, gpu.memory, 0, 0)


def list_devices(backend: str = "auto") -> list[DeviceFacts]:
    """Return the devices that can be worked on.

    ``auto`` takes CUDA for NVIDIA cards and OpenCL for the other GPUs; a CPU that speaks OpenCL is no GPU and is listed only when
    ``opencl`` is asked for by name.
    """
    if backend == "opencl":
        return _opencl(gpus_only=False)
    gpus = inventory().gpus
    found = [facts_of(gpu) for gpu in gpus if backend in ("auto", gpu.backend)]
    if backend == "auto":
        known, nvidia = {facts.uuid for facts in found}, any(gpu.backend == "cuda" for gpu in gpus)
        # NVIDIA's cards speak OpenCL too, under another name; they are wiped once.
        found += [facts for facts in _opencl(gpus_only=True) if facts.uuid not in known and not (nvidia and "NVIDIA" in facts.name)]
    return found


def _opencl(*, gpus_only: bool) -> list[DeviceFacts]:
    try:
        from sandbox.node.gpu import opencl
    except ImportError:
        return []
    return opencl.list_devices(gpus_only=gpus_only)


def wipe_device(
    facts: DeviceFacts, *, limit: float = TIME_LIMIT_SECONDS, command: Sequence[str] | None = None, tell: child.Tell | None = None
) -> DeviceWipe:
    """Wipe one device in a process of its own, ``limit`` seconds at most; ``tell`` hears each of ``erase.STEPS`` as it begins.

    A worker that cannot be started, is killed, hangs, cannot even be killed, or says something unreadable yields a report with ``ok``
    False; nothing is taken for granted.
    """
    argv = [*(command or (sys.executable, "-m", "sandbox.node.gpu.worker")), facts.backend, facts.uuid]
    failed = DeviceWipe(
        uuid=facts.uuid, name=facts.name, backend=facts.backend, total_bytes=facts.total_bytes, reserved_bytes=facts.reserved_bytes
    )
    try:
        said = child.answer(argv, limit, tell)
    except child.WorkerError as error:
        return failed.model_copy(update={"failures": (str(error),)})
    try:
        report = DeviceWipe.model_validate_json(said[:_REPORT_MAX_BYTES])
    except ValidationError:
        return failed.model_copy(update={"failures": ("the worker's report cannot be read",)})
    if (report.uuid, report.backend) != (facts.uuid, facts.backend):
        return failed.model_copy(update={"failures": (f"the worker reported on {report.uuid}",)})
    return report
