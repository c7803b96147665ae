"""Scratch in memory: a tmpfs that is never swapped. Gone when unmounted; its pages are zeroed before anybody else gets them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.node.scratch import base, kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.node.layout import LeaseFolder
    from sandbox.node.plan import ScratchKind

MAX_INODES = 1_000_000


class TmpfsScratch:
    """See ``base.Scratch``. Needs Linux 6.4 for ``noswap``, or a host without swap."""

    kind: ScratchKind = "tmpfs"

    def open(self, folder: LeaseFolder, size: int) -> None:
        """Mount a tmpfs of ``size`` bytes, with huge pages where the kernel has them. Raises ``ScratchError``."""
        base.prepare(folder)
        wanted = f"size={size},nr_inodes={MAX_INODES},mode=0711"
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        options = [f"{wanted},noswap,huge=within_size", f"{wanted},noswap"] + ([] if swap_active() else [wanted])
        try:
            for number, option in enumerate(options):
                try:
                    kernel.mount("sealrig", folder.scratch, "tmpfs", flags, option)
                    break
                except OSError as error:
                    if error.errno != errno.EINVAL or number == len(options) - 1:
                        raise
            kernel.mount("", folder.scratch, "", kernel.MS_PRIVATE)
            folder.vault.mkdir(mode=0o711)
            base.furnish(folder)
        except OSError as error:
            raise base.failed(
                f"a tmpfs of {size} bytes that is never swapped", error, "use Linux 6.4 or newer, turn swap off, or pin scratch to fscrypt"
            ) from error

    def destroy(self, folder: LeaseFolder) -> Iterator[base.Proof]:
        """Unmount; the memory is free once no mount namespace holds the file system."""
        yield from base.unmount_all(folder)


def swap_active() -> bool:
    """Say whether the host swaps anywhere (zram counts)."""
    try:
        return len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) > 1
    except OSError:
        return True  # not knowing is not knowing that there is none
