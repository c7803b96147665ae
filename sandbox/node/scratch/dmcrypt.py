"""Scratch on disk: ext4 on a dm-crypt mapping (plain mode, no header) over a loop device, under a key of this lease.

The key is made here, handed to cryptsetup through its standard input, and stands nowhere but in the kernel's mapping: when the kernel
gives the mapping up, it overwrites the key (``crypt_dtr``), and what is left of the file is noise. A mapping with anything mounted or
open on it cannot be given up, and then nothing is proven.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import ScratchError
from sandbox.node.scratch import base, image, kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.node.layout import LeaseFolder
    from sandbox.node.plan import ScratchKind

CIPHER = "aes-xts-plain64"
KEY_BYTES = 64
"""Two AES-256 keys, as XTS takes them."""
CLOSE_SECONDS = 10.0
_TOOL_SECONDS = 60
_MAPPER = Path("/dev/mapper")
_MODULES = Path("/lib/modules")


class DmcryptScratch:
    """See ``base.Scratch``. Needs root, device-mapper with dm-crypt, loop devices, cryptsetup and mkfs.ext4."""

    kind: ScratchKind = "dm-crypt"

    def open(self, folder: LeaseFolder, size: int) -> None:
        """Make the file, the key, the mapping and the file system on it. Raises ``ScratchError``."""
        base.prepare(folder)
        try:
            image.reserve(folder.image, size)
            device, fd = kernel.attach_loop(folder.image)
            try:
                _map(device, mapping_of(folder))
            finally:
                os.close(fd)
            mapped = _MAPPER / mapping_of(folder)
            image.format_ext4(mapped)
            kernel.mount(str(mapped), folder.scratch, "ext4", kernel.MS_NOSUID | kernel.MS_NODEV)
            kernel.mount("", folder.scratch, "", kernel.MS_PRIVATE)
            folder.scratch.chmod(0o711)
            folder.vault.mkdir(mode=0o711)
            base.furnish(folder)
        except OSError as error:
            raise image.failed(size, error, "run as root on a kernel with dm-crypt, or pin another kind") from error

    def destroy(self, folder: LeaseFolder) -> Iterator[base.Proof]:
        """Unmount, have the kernel give the mapping up and with it the key, and remove the loop device and the file."""
        name = mapping_of(folder)
        if not is_mapped(name) and any(item.point == folder.scratch.resolve() for item in kernel.mounts_under(folder.data)):
            # What is mounted there is of another kind, whose own proof must find it as it was left.
            yield base.Proof("scratch-key", name, "none needed", "no mapping", "no mapping", ok=True)
            return
        yield from base.unmount_all(folder)
        yield _key_proof(name)
        yield from image.removed(folder.image)


def possible(mapper: Path = _MAPPER, modules: Path = _MODULES, loaded: Path = Path("/sys/module/dm_crypt")) -> bool:
    """Say whether this host has cryptsetup and a kernel with dm-crypt, without loading or making anything."""
    if shutil.which("cryptsetup", path=image.TOOL_PATH) is None or not (mapper / "control").exists():
        return False
    lists = [modules / os.uname().release / name for name in ("modules.dep", "modules.builtin")]
    return loaded.is_dir() or any("/dm-crypt.ko" in path.read_text(encoding="utf-8") for path in lists if path.is_file())


def mapping_of(folder: LeaseFolder) -> str:
    """Return the mapping's name: it follows from the lease's folder, so that a crash cannot lose it, and two nodes do not meet."""
    return f"sealrig-{hashlib.sha256(bytes(folder.root.resolve())).hexdigest()[:32]}"


def is_mapped(name: str) -> bool:
    """Say whether the kernel has a mapping of this name. Raises ``OSError`` where it cannot be asked."""
    return any(_name_of(place) == name for place in Path("/sys/block").glob("dm-*/dm/name"))


def _name_of(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""  # given up while we looked


def _map(device: Path, name: str) -> None:
    key = bytearray(os.urandom(KEY_BYTES))
    command = ["cryptsetup", "open", "--type", "plain", "--cipher", CIPHER, "--key-size", str(KEY_BYTES * 8), "--key-file", "-"]
    try:
        # What comes from standard input is hashed as if somebody had typed it, unless the hash is "plain" (cryptsetup-open(8)).
        image.run_tool(
            [*command, "--keyfile-size", str(KEY_BYTES), "--hash", "plain", "--batch-mode", str(device), name],
            wanted="a dm-crypt mapping",
            package="cryptsetup-bin",
            seconds=_TOOL_SECONDS,
            stdin=bytes(key),
        )
    finally:
        key[:] = bytes(len(key))


def _key_proof(name: str) -> base.Proof:
    """Have the kernel give the mapping up; it is the only place where the key stands."""
    deadline = time.monotonic() + CLOSE_SECONDS
    problem = ""
    while is_mapped(name):
        try:
            image.run_tool(["cryptsetup", "close", name], wanted="no mapping", package="cryptsetup-bin", seconds=_TOOL_SECONDS)
        except ScratchError as error:
            problem = f": {error.details.get('seen')}"
        if time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    there = is_mapped(name)
    seen = f"the mapping is still there{problem}" if there else "no mapping"
    return base.Proof("scratch-key", name, "cryptsetup close", seen, "no mapping", ok=not there)
