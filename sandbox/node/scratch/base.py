"""What every kind of scratch can do, and what they share."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sandbox.errors import ScratchError
from sandbox.node.plan import GID, UID
from sandbox.node.scratch import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.node.layout import LeaseFolder
    from sandbox.node.plan import ScratchKind

UNMOUNT_SECONDS = 5.0
HOLDERS_SECONDS = 20.0
"""How long a copy of the mounts in another namespace is waited for: a container that starts has one until it has its own root, which
takes seconds on a busy host."""
_RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class Proof:
    """One thing that ending a scratch did: on what, what was done, what was then seen, what was wanted, whether that was proven."""

    step: str
    target: str
    action: str
    seen: str
    wanted: str
    ok: bool


class Scratch(Protocol):
    """A file system for one lease's plaintext.

    ``open`` leaves ``folder.inputs``, ``folder.out`` and ``folder.tmp`` usable, at most ``size`` bytes in all, or raises
    ``ScratchError`` and leaves at most what ``destroy`` removes. ``destroy`` yields one ``Proof`` a step, works on whatever a crash
    left (also after nothing was ever opened), never raises for what it could not prove, and can be called again.
    """

    kind: ScratchKind

    def open(self, folder: LeaseFolder, size: int) -> None:
        """Make the scratch."""
        ...

    def destroy(self, folder: LeaseFolder) -> Iterator[Proof]:
        """End the scratch, with proof."""
        ...


def prepare(folder: LeaseFolder) -> None:
    """Make the lease's data folder and mount points. Only root passes through the folders above."""
    for path, mode in ((folder.data, 0o711), (folder.scratch, 0o711), (folder.work, 0o711)):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)


def furnish(folder: LeaseFolder) -> None:
    """Make the folders inside a mounted scratch, and mount its writable part a second time so that nothing there can be executed."""
    folder.inputs.mkdir(mode=0o711)
    for name in ("out", "tmp"):
        place = folder.vault / name
        place.mkdir(mode=0o700)
        os.chown(place, UID, GID)
    kernel.mount(str(folder.vault), folder.work, "", kernel.MS_BIND)
    kernel.mount("", folder.work, "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.mount("", folder.work, "", kernel.MS_PRIVATE)


def unmount_all(folder: LeaseFolder, *, keep: Path | None = None) -> Iterator[Proof]:
    """Unmount everything below the lease's data folder, innermost first, except ``keep``; prove that no mount namespace still has it."""
    deadline = time.monotonic() + UNMOUNT_SECONDS
    found = [item for item in kernel.mounts_under(folder.data) if item.point != keep]
    devices = {item.device for item in found}
    problem = ""
    while found and time.monotonic() < deadline:
        problem = ""
        for item in found:
            try:
                kernel.unmount(item.point)
            except OSError as error:
                # What was mounted before stays, so that a later attempt still finds the file system's root.
                problem = f"{item.point}: {error.strerror}"
                break
        found = [item for item in kernel.mounts_under(folder.data) if item.point != keep]
        if found:
            time.sleep(_RETRY_SECONDS)
    holders = [] if keep else _holders(devices, deadline if found else time.monotonic() + HOLDERS_SECONDS)
    seen = f"{len(found)} mounts left ({problem})" if found else f"0 mounts left; held by {', '.join(holders) or 'no mount namespace'}"
    yield Proof(
        "mounts" if keep else "mounts-gone",
        str(folder.data),
        "unmount",
        seen,
        "0 mounts left; held by no mount namespace" if not keep else "0 mounts left",
        ok=not found and not holders,
    )


def _holders(devices: set[str], deadline: float) -> list[str]:
    while True:
        holders = [f"process {pid}" for device in sorted(devices) for pid in kernel.namespaces_with(device)]
        if not holders or time.monotonic() >= deadline:
            return holders
        time.sleep(_RETRY_SECONDS)


def failed(what: str, error: OSError, fix: str) -> ScratchError:
    """Return the error for a scratch that could not be made."""
    return ScratchError(f"scratch: {what}: {error.strerror or error}", rule="scratch", seen=str(error)[:300], wanted=what, fix=fix)
