"""Searches this host for a canary: every place where a container's data could come to rest outside of RAM.

Files are read as bytes, the raw free space of file-system images among them (an image is a file), overlay folders through their
backing directories, and core dumps, journals and swap devices where there are any. Memory-backed file systems are left out on
request: during a lease plaintext may live there, and nowhere else.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST_PLACES = ("/tmp", "/var/tmp", "/var/log", "/var/lib/systemd/coredump", "/var/crash", "/run", "/root", "/home", "/dev/shm")
MEMORY_KINDS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
SKIPPED_KINDS = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "debugfs", "tracefs", "securityfs", "nsfs", "bpf"})
MAX_FILE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Sighting:
    """A canary found at a byte offset of a file."""

    canary: str
    place: str
    offset: int


def mounts() -> dict[str, str]:
    """Return mount point → file system kind, the last one winning where several lie over each other."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        found[left.split()[4].replace("\\040", " ")] = right.split()[0]
    return found


def swap_devices() -> list[str]:
    """Return the active swap devices and files."""
    return [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]


def files(roots: Sequence[Path], *, outside_ram: bool) -> Iterator[Path]:
    """Yield each regular file below the roots; with ``outside_ram`` memory-backed file systems are passed over."""
    kinds = mounts()
    passed = SKIPPED_KINDS | (MEMORY_KINDS if outside_ram else frozenset())
    for root in roots:
        for folder, names, entries in os.walk(root):
            names[:] = [name for name in names if kinds.get(f"{folder}/{name}") not in passed]
            if _kind(folder, kinds) in passed:
                names.clear()
                continue
            for entry in entries:
                path = Path(folder, entry)
                if path.is_file() and not path.is_symlink():
                    yield path


def _kind(folder: str, kinds: dict[str, str]) -> str:
    place = Path(folder)
    return next(kinds[str(parent)] for parent in (place, *place.parents) if str(parent) in kinds)


def scan(canaries: dict[str, bytes], roots: Sequence[Path], *, outside_ram: bool) -> list[Sighting]:
    """Return every sighting of every canary below the roots and on swap."""
    found: list[Sighting] = []
    for path in (*files(roots, outside_ram=outside_ram), *(Path(device) for device in swap_devices())):
        found += _scan_file(path, canaries)
    return found


def _scan_file(path: Path, canaries: dict[str, bytes]) -> list[Sighting]:
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            if size == 0:
                return []
            if size > MAX_FILE_BYTES:
                raise AssertionError(f"{path} is too large to be searched whole")
            with mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ) as data:
                places = ((name, data.find(value)) for name, value in canaries.items())
                return [Sighting(name, str(path), offset) for name, offset in places if offset >= 0]
    except (FileNotFoundError, ProcessLookupError, ValueError, PermissionError):
        return []  # gone meanwhile, or shrunk to nothing
