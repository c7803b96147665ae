"""The wipe: ordered steps that end everything a lease left on this node, each with what was seen and what was wanted.

It needs nothing but the lease's id: all is found again by label and path, so that it also ends what a crash left, and can be run
again. A step that raises, or cannot prove what it wants, is a failed step; the ones after it are still done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.wipe import GpuWipe, Medium, WipeReport, WipeStep
from sandbox.errors import SealrigError
from sandbox.node.layout import LeaseFolder, container_name
from sandbox.node.media import Disk, disk_of
from sandbox.node.scratch.choose import all_kinds, scratch_of
from sandbox.node.scratch.kernel import mounts_under
from sandbox.node.views import Server, drop_pages, end_servers

if TYPE_CHECKING:
    from sandbox.node.engine import Engine
    from sandbox.node.gpu.inventory import GpuWiper
    from sandbox.node.plan import ScratchKind
    from sandbox.node.scratch.base import Proof, Scratch

_Proofs = Iterator[tuple[str, str, str, str, str, bool]]
MAX_TEXT = 1900
PROCESS_SECONDS = 10.0
_KEYS: dict[ScratchKind | None, tuple[str, str]] = {
    "dm-crypt": ("dm-crypt key", "the kernel has given up the mapping, which overwrites its key"),
    "fscrypt": ("fscrypt key", "the kernel reports the key absent"),
    None: ("scratch key", "the kernel has no key of this lease"),
}
"""Encrypted scratch → what its key is called on a certificate, and how its end is seen."""


@dataclass(frozen=True)
class Remains:
    """What is known of a lease that is to be wiped. ``kind`` and ``gpus`` are hints: without them everything possible is looked for."""

    lease: str
    node: str
    folder: LeaseFolder
    kind: ScratchKind | None = None
    gpus: tuple[str, ...] = ()
    servers: tuple[Server, ...] = ()


@dataclass
class _Record:
    steps: list[WipeStep] = field(default_factory=list)

    def run(self, step: str, target: str, deed: Callable[[], _Proofs]) -> bool:
        """Do one deed and record each of its proofs; whatever it raises is a failed step. Say whether all were proven."""
        fine = True
        started = time.monotonic()
        try:
            for name, where, action, seen, wanted, ok in deed():
                now = time.monotonic()
                self.steps.append(
                    WipeStep(
                        step=name,
                        target=where[:MAX_TEXT],
                        action=action,
                        seen=seen[:MAX_TEXT],
                        wanted=wanted,
                        ok=ok,
                        seconds=_round(now - started),
                    )
                )
                fine, started = fine and ok, now
        except (SealrigError, OSError, ValueError) as error:
            seen = error.message if isinstance(error, SealrigError) else f"{type(error).__name__}: {error}"
            self.steps.append(
                WipeStep(
                    step=step,
                    target=target[:MAX_TEXT],
                    action="not finished",
                    seen=seen[:MAX_TEXT],
                    wanted="the step to finish",
                    ok=False,
                    seconds=_round(time.monotonic() - started),
                )
            )
            fine = False
        return fine


def wipe(remains: Remains, engine: Engine, gpu_wiper: GpuWiper) -> WipeReport:
    """End everything that a lease left here. Never raises for what it cannot prove; the report says it."""
    started = datetime.now(UTC)
    record = _Record()
    folder = remains.folder
    disk = disk_of(folder.root)
    had_image = folder.image.exists()
    proven = record.run("views", str(folder.views), lambda: _told(end_servers(remains.servers, folder)))
    record.run("container", container_name(remains.lease), lambda: _containers(remains, engine))
    gpus = _gpus(remains, gpu_wiper, record)
    kinds = [scratch_of(remains.kind)] if remains.kind else list(all_kinds())
    for scratch in kinds:
        proven &= record.run(f"scratch-{scratch.kind}", str(folder.data), partial(_scratch, scratch, folder))
    proven &= record.run("view-pages", str(folder.views), lambda: _told(drop_pages(remains.servers, folder)))
    proven &= record.run("data-folder", str(folder.data), lambda: _data_folder(folder))
    media = []
    if remains.kind == "tmpfs":
        media.append(_memory(proven=proven))
    elif remains.kind or had_image:
        media.append(_encrypted_disk(disk, remains.kind, proven=proven))
    return WipeReport(
        lease=remains.lease,
        node=remains.node,
        started_at=started,
        ended_at=datetime.now(UTC),
        steps=tuple(record.steps),
        gpus=gpus,
        media=tuple(media),
    )


def _containers(remains: Remains, engine: Engine) -> _Proofs:
    """Kill and remove every container of the lease, found by label and by name; then its volumes and processes."""
    name = container_name(remains.lease)
    found = engine.containers(lease=remains.lease)
    ids = [item.id for item in found]
    volumes = [volume for item in ids for volume in engine.volumes_of(item)]
    for item in found:
        engine.kill(item.id)
    for item in found:
        engine.remove(item.id)
    left = [item.name for item in engine.containers(lease=remains.lease)] + ([name] if engine.exists(name) else [])
    yield "container", name, f"kill and remove {len(ids)}", f"{len(left)} left", "0 left", not left
    alive = [volume for volume in volumes if engine.volume_exists(volume)]
    yield "volumes", name, f"remove {len(volumes)} with the container", f"{len(alive)} left", "0 left", not alive
    running = _processes_of(ids)
    deadline = time.monotonic() + PROCESS_SECONDS
    while running and time.monotonic() < deadline:
        time.sleep(0.1)
        running = _processes_of(ids)
    yield "processes", name, "look for the container's control group in /proc", f"{len(running)} left", "0 left", not running


def _processes_of(containers: list[str]) -> list[int]:
    """Return the processes whose control group is of one of these containers."""
    if not containers:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            groups = (entry / "cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if any(container in groups for container in containers):
            found.append(int(entry.name))
    return found


def _gpus(remains: Remains, wiper: GpuWiper, record: _Record) -> tuple[GpuWipe, ...]:
    if not remains.gpus:
        record.run("gpu", "none", lambda: iter([("gpu", "none", "nothing to do", "no GPU was leased", "no GPU was leased", True)]))
        return ()
    started = time.monotonic()
    why = "the wiper said nothing of it"
    try:
        reports = wiper.wipe(remains.gpus)
    except Exception as error:  # noqa: BLE001  (a wiper does not raise; if one does, the steps after it are still done)
        reports, why = (), f"{type(error).__name__}: {error}"
    told = {report.uuid: report for report in reports}
    for uuid in remains.gpus:
        report = told.get(uuid)
        ok = report is not None and report.ok
        seen = "every pass verified" if ok else f"not proven: {why if report is None else report.detail or 'no reason given'}"
        record.steps.append(
            WipeStep(
                step="gpu",
                target=uuid,
                action="overwrite and verify",
                seen=seen[:MAX_TEXT],
                wanted="every pass verified",
                ok=ok,
                seconds=_round(time.monotonic() - started),
            )
        )
    return reports


def _scratch(scratch: Scratch, folder: LeaseFolder) -> _Proofs:
    return _told(scratch.destroy(folder))


def _told(proofs: Iterator[Proof]) -> _Proofs:
    for proof in proofs:
        yield proof.step, proof.target, proof.action, proof.seen, proof.wanted, proof.ok


def _data_folder(folder: LeaseFolder) -> _Proofs:
    """Remove the folder, but never reach into something that is still mounted there."""
    if folder.data.exists() and not mounts_under(folder.data):
        shutil.rmtree(folder.data, ignore_errors=True)
    there = folder.data.exists()
    yield "data-folder", str(folder.data), "remove", "there" if there else "gone", "gone", not there


def _memory(*, proven: bool) -> Medium:
    return Medium(
        kind="RAM",
        source="tmpfs without swap",
        method="clear" if proven else "none",
        technique="release of memory; the kernel clears pages before reuse",
        verification="no mount namespace holds the file system",
        proven=proven,
    )


def _encrypted_disk(disk: Disk, kind: ScratchKind | None, *, proven: bool) -> Medium:
    key, absent = _KEYS[kind]
    return Medium(
        **disk,
        method="purge" if proven else "none",
        proven=proven,
        technique=f"cryptographic erase: destruction of the lease's {key} (AES-256-XTS, 512 bits from the kernel's generator)",
        verification=f"{absent}; mounts, loop device and backing file are gone",
    )


def _round(seconds: float) -> float:
    return round(max(0.0, seconds), 6)
