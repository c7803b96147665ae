"""Put a node together from its data folder and this machine."""

from __future__ import annotations

import os
import platform
import shutil
from typing import TYPE_CHECKING

import structlog

from attestation.signing import SigningKey
from policies.model import NodeFacts
from sandbox.errors import EngineError, UsageError
from sandbox.node.apparmor import profile_for_jobs
from sandbox.node.client import ControlClient
from sandbox.node.context import Node
from sandbox.node.devices import evidence_sources, measure_start, reachable_level
from sandbox.node.engine import Engine
from sandbox.node.gpu import cdi
from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.model import Gpu
from sandbox.node.gpu.pool import GpuPool
from sandbox.node.gpu.reach import unleasable
from sandbox.node.gpu.touch import keep_accounts
from sandbox.node.gpu.wiper import VramWiper
from sandbox.node.layout import NodeFolder
from sandbox.node.posture import posture_facts
from sandbox.node.scratch.choose import available_kinds, available_memory
from sandbox.node.seccomp import shipped_profile
from sandbox.node.settings import NodeSettings, load_node_settings, load_token
from sandbox.node.state import NodeState
from sandbox.node.supervisor import Supervisor
from sandbox.wire import Capacity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_log = structlog.get_logger("sealrig.node")
_MEMORY_SHARE = 0.9
_DISK_SHARE = 0.8


def make_node(root: Path) -> tuple[Node, NodeSettings, Capacity]:
    """Read the folder, ask engine and GPUs. Raises ``UsageError`` or ``EngineError`` with what to do."""
    folder = NodeFolder(root.absolute())
    settings = load_node_settings(folder)
    if os.geteuid() != 0:
        raise UsageError(
            "a node needs root",
            rule="root",
            seen=f"uid {os.geteuid()}",
            wanted="uid 0: scratch is mounted and containers are ended",
            fix="run it as root (sudo)",
        )
    for path, mode in ((folder.leases, 0o711), (folder.cache, 0o700)):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    engine = Engine(settings.docker_url)
    facts = engine.facts()
    found = inventory()
    there = [gpu for gpu in found.gpus if not gpu.lost]
    accounted = [gpu.uuid for gpu in there if gpu.backend == "cuda" and keep_accounts(gpu.uuid)]
    if found.gpus:
        _log.info("gpus", found=len(found.gpus), accounted=len(accounted), why="those not accounted for are wiped before each lease too")
    refused = unleasable(there)
    for uuid, why in [*refused.items(), *((gpu.uuid, gpu.lost) for gpu in found.gpus if gpu.lost)]:
        _log.warning("gpu-not-leased", gpu=uuid, why=why)
    pool = GpuPool(found, cdi=facts.cdi and _gpus_described(there), refused=refused)
    isolation = ("container", "gvisor") if "runsc" in facts.runtimes else ("container",)
    kinds = available_kinds()
    confinement, why = profile_for_jobs(engine_confines=facts.apparmor)
    _log.info("apparmor", profile=confinement or "none", why=why)
    node = Node(
        id=settings.id,
        folder=folder,
        key=SigningKey.load(folder.key),
        client=ControlClient(settings.server, load_token(folder, settings), settings.id),
        engine=engine,
        state=NodeState(folder),
        gpus=pool,
        gpu_wiper=VramWiper(),
        facts=NodeFacts(
            node=settings.id,
            level=int(reachable_level(settings.evidence)),
            isolation=isolation,
            scratch=kinds,
            engine={"version": facts.version, "api": facts.api_version, "cgroup": facts.cgroup_version, "runsc": facts.gvisor_args},
        ),
        posture=lambda: posture_facts(engine.facts()),
        seccomp=shipped_profile(),
        apparmor=confinement,
        view_cache=settings.view_cache,
        devices=evidence_sources(settings.evidence, [gpu.uuid for gpu in there]),
    )
    capacity = Capacity(
        slots=settings.slots,
        cpus=settings.cpus or float(os.cpu_count() or 1),
        memory=settings.memory if settings.memory is not None else int(available_memory() * _MEMORY_SHARE),
        scratch=settings.scratch if settings.scratch is not None else int(shutil.disk_usage(folder.root).free * _DISK_SHARE),
        gpus=tuple(gpu.uuid for gpu in pool.leasable),
        isolation=isolation,
    )
    return node, settings, capacity


def _gpus_described(gpus: Sequence[Gpu]) -> bool:
    """Tell the engine of this node's GPUs; where that fails none is handed out, and the log says why."""
    try:
        cdi.prepare([gpu for gpu in gpus if gpu.backend == "cuda"], machine=platform.machine())
    except EngineError as error:
        _log.error("gpus-not-described", error=error.message, **error.details)
        return False
    return True


def make_supervisor(root: Path) -> tuple[Supervisor, NodeFolder]:
    """Return a node that is ready to run, its runner measured into its TPM where it has one."""
    node, settings, capacity = make_node(root)
    if not measure_start(settings.evidence):
        _log.warning(
            "runner-not-measured", why="another runner was measured since boot, or the PCR was changed", fix="boot the machine anew"
        )
    return Supervisor(node, capacity, cache_bytes=settings.cache), node.folder
