"""The backing file of scratch on disk: reserved whole, formatted as ext4, freed with its loop device. Both encrypted kinds stand on one."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from typing import TYPE_CHECKING

from sandbox.errors import ScratchError
from sandbox.node.scratch import base, kernel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOOL_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
FLOOR_BYTES = 8 * 2**20
MKFS_SECONDS = 300
_OVERHEAD = 1.02
_BLOCK_BYTES = 2**20
"""Whole sectors of any size: a device mapping has no place for a broken one."""


def reserve(image: Path, size: int) -> None:
    """Make a file that can hold an ext4 file system with ``size`` usable bytes. Raises ``OSError``."""
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Reserved now: a host disk that fills up later must not turn into I/O errors inside the job.
        os.posix_fallocate(fd, 0, -(-int(size * _OVERHEAD + FLOOR_BYTES) // _BLOCK_BYTES) * _BLOCK_BYTES)
    finally:
        os.close(fd)


def format_ext4(place: Path, *features: str) -> None:
    """Make an ext4 file system without a journal in a file or on a device. Raises ``ScratchError``."""
    options = ["-q", "-F", "-b", "4096", "-m", "0", "-O", ",".join([*features, "^has_journal"]), "-E", "lazy_itable_init=1,nodiscard"]
    run_tool(["mkfs.ext4", *options, str(place)], wanted="a file system", package="e2fsprogs", seconds=MKFS_SECONDS)


def run_tool(command: list[str], *, wanted: str, package: str, seconds: float, stdin: bytes = b"") -> None:
    """Run a system tool; what it must not tell others goes to its standard input. Raises ``ScratchError`` with the tool's own words."""
    tool = command[0]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False, input=stdin, env={"PATH": TOOL_PATH})
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScratchError(
            f"scratch: {tool} did not run",
            rule="scratch",
            seen=type(error).__name__,
            wanted=f"{tool} on this node",
            fix=f"install {package}",
        ) from error
    if done.returncode != 0:
        raise ScratchError(
            f"scratch: {tool} failed",
            rule="scratch",
            seen=done.stderr.decode(errors="replace")[:300],
            wanted=wanted,
            fix="look at the node's disk and kernel log",
        )


def failed(size: int, error: OSError, fix: str) -> ScratchError:
    """Return the error for encrypted scratch of ``size`` bytes that could not be made; a full disk has a fix of its own."""
    fix = "free disk space for the scratch size" if error.errno == errno.ENOSPC else fix
    return base.failed(f"an encrypted file system of {size} bytes", error, fix)


def removed(image: Path) -> Iterator[base.Proof]:
    """Prove that no loop device has the file any more, then remove it."""
    deadline = time.monotonic() + base.UNMOUNT_SECONDS
    while (left := kernel.loops_of(image)) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield base.Proof("loop-device", str(image), "freed with its last user", ", ".join(left) or "none", "none", ok=not left)
    image.unlink(missing_ok=True)
    there = image.exists()
    yield base.Proof("backing-file", str(image), "unlink", "there" if there else "gone", "gone", ok=not there)
