"""Which kind of scratch a lease gets: memory where it fits, else encrypted disk; a policy can pin the kind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import ScratchError
from sandbox.node.scratch import dmcrypt, image
from sandbox.node.scratch.fscrypt import FscryptScratch
from sandbox.node.scratch.tmpfs import TmpfsScratch

if TYPE_CHECKING:
    from sandbox.node.plan import ScratchKind
    from sandbox.node.scratch.base import Scratch

MEMORY_SHARE = 0.25
"""The part of the available memory that one lease's scratch may take."""
_SCRATCHES: dict[ScratchKind, type[Scratch]] = {"dm-crypt": dmcrypt.DmcryptScratch, "fscrypt": FscryptScratch, "tmpfs": TmpfsScratch}


def scratch_of(kind: ScratchKind) -> Scratch:
    """Return the scratch of a kind."""
    return _SCRATCHES[kind]()


def all_kinds() -> tuple[Scratch, ...]:
    """Return every kind, keys first, for ending what a crash left when its journal does not say which it was."""
    return tuple(scratch() for scratch in _SCRATCHES.values())


def available_kinds() -> tuple[ScratchKind, ...]:
    """Return the kinds that this host can make, without making one."""
    if os.geteuid() != 0:
        return ()
    if not Path("/dev/loop-control").exists() or shutil.which("mkfs.ext4", path=image.TOOL_PATH) is None:
        return ("tmpfs",)
    encrypts = Path("/sys/fs/ext4/features/encryption").exists()
    possible: dict[ScratchKind, bool] = {"tmpfs": True, "dm-crypt": dmcrypt.possible(), "fscrypt": encrypts}
    return tuple(kind for kind, there in possible.items() if there)


def choose(size: int, pin: str, *, available_memory: int, kinds: tuple[ScratchKind, ...]) -> ScratchKind:
    """Return the kind for ``size`` bytes. ``pin`` is ``auto`` or the kind that the policy demands. Pure.

    Raises ``ScratchError`` where the demanded kind is not possible here; nothing weaker or other is ever taken in its place.
    """
    for kind in kinds:
        if pin == kind:
            return kind
    if pin != "auto":
        raise ScratchError(
            f"scratch of kind {pin} is pinned by the policy, but this host cannot make it",
            rule="scratch-kind",
            seen=", ".join(kinds) or "none",
            wanted=pin,
            fix="place the lease on another node, or let the policy allow another kind",
        )
    if "tmpfs" in kinds and size <= available_memory * MEMORY_SHARE:
        return "tmpfs"
    for kind in ("dm-crypt", "fscrypt"):
        if kind in kinds:
            return kind
    raise ScratchError(
        "no kind of scratch can hold this lease",
        rule="scratch-kind",
        seen=f"{size} bytes wanted, {available_memory} bytes of memory free",
        wanted="encrypted disk, or four times as much free memory",
        fix="run the node as root on a kernel with dm-crypt or ext4 encryption",
    )


def available_memory() -> int:
    """Return the bytes that could be used without pushing anything out (MemAvailable of proc(5))."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
