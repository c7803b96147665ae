"""Scratch on disk: ext4 in a sparse-free file on a loop device, its one folder encrypted by the kernel under a key of this lease.

The key is made here, handed to the kernel, and kept nowhere else: erasing means that the kernel gives it up and says so. While files
are open the kernel keeps their keys ("busy"), so the wipe ends the container first and asks again until the status is ``absent``.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from sandbox.node.scratch import base, image, kernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.node.layout import LeaseFolder
    from sandbox.node.plan import ScratchKind

KEY_SECONDS = 10.0


class FscryptScratch:
    """See ``base.Scratch``. Needs root, ext4 with ``encrypt``, loop devices and mkfs.ext4."""

    kind: ScratchKind = "fscrypt"

    def open(self, folder: LeaseFolder, size: int) -> None:
        """Make the file, the file system, the key and the encrypted folder. Raises ``ScratchError``."""
        base.prepare(folder)
        try:
            image.reserve(folder.image, size)
            image.format_ext4(folder.image, "encrypt")
            device, fd = kernel.attach_loop(folder.image)
            try:
                kernel.mount(str(device), folder.scratch, "ext4", kernel.MS_NOSUID | kernel.MS_NODEV)
            finally:
                os.close(fd)
            kernel.mount("", folder.scratch, "", kernel.MS_PRIVATE)
            folder.scratch.chmod(0o711)
            folder.vault.mkdir(mode=0o711)
            key = bytearray(os.urandom(kernel.KEY_BYTES))
            try:
                identifier = kernel.add_key(folder.scratch, bytes(key))
            finally:
                key[:] = bytes(len(key))
            kernel.set_policy(folder.vault, identifier)
            base.furnish(folder)
        except OSError as error:
            raise image.failed(size, error, "run as root on a kernel with ext4 encryption, or pin tmpfs") from error

    def destroy(self, folder: LeaseFolder) -> Iterator[base.Proof]:
        """Take the key from the kernel, unmount, and remove the loop device and the file; each step with proof."""
        root = folder.scratch.resolve()
        mounted = any(item.point == root and item.kind == "ext4" for item in kernel.mounts_under(folder.data))
        if mounted:
            yield from base.unmount_all(folder, keep=root)
        yield _key_proof(folder, mounted=mounted)
        yield from base.unmount_all(folder)
        yield from image.removed(folder.image)


def _key_proof(folder: LeaseFolder, *, mounted: bool) -> base.Proof:
    """Have the kernel forget the key. A file system that is not mounted has no keys: they live in its superblock."""
    action, wanted = "FS_IOC_REMOVE_ENCRYPTION_KEY", "the kernel says absent"
    vault, target = folder.vault, str(folder.vault)
    if not mounted:
        loops = kernel.loops_of(folder.image)
        seen = f"not mounted; loop devices {', '.join(loops) or 'none'}"
        return base.Proof("scratch-key", target, "none needed", seen, "not mounted; loop devices none", ok=not loops)
    identifier = kernel.get_policy(vault) if vault.exists() else None
    if identifier is None:
        entries = sorted(path.name for path in vault.iterdir()) if vault.exists() else []
        return base.Proof(
            "scratch-key", target, "none set yet", f"no policy, {len(entries)} entries", "no policy, 0 entries", ok=not entries
        )
    deadline = time.monotonic() + KEY_SECONDS
    while True:
        # Asked through the root of the file system: a descriptor of the encrypted folder itself would keep its key in use.
        seen, absent = _remove(folder.scratch, identifier)
        if absent or time.monotonic() >= deadline:
            return base.Proof("scratch-key", target, action, f"the kernel says {seen}", wanted, ok=absent)
        time.sleep(0.1)


def _remove(root: Path, identifier: bytes) -> tuple[str, bool]:
    """Ask once; return what the kernel says, and whether that is proof."""
    busy = []
    try:
        flags = kernel.remove_key(root, identifier)
        busy = [name for bit, name in ((kernel.FILES_BUSY, "files busy"), (kernel.OTHER_USERS, "other users")) if flags & bit]
    except OSError as error:
        if error.errno != errno.ENOKEY:
            busy = [error.strerror or str(error)]  # no such key is no trouble: the status decides
    try:
        status = kernel.key_status(root, identifier)
    except OSError as error:
        return error.strerror or str(error), False
    return ", ".join([kernel.STATUS_NAMES.get(status, str(status)), *busy]), status == kernel.STATUS_ABSENT and not busy
