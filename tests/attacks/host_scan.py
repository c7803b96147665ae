"""Searches this host for a canary: every place where a container's data could come to rest.

Files are read as bytes, the raw free space of file-system images among them (an image is a file), overlay folders through their
backing directories, core dumps and journals, swap devices, and files that were deleted but are still open somewhere. Names of files
count as well. What is not searched: free blocks of the host's own disks, and the memory of processes and of the kernel.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST_PLACES = ("/tmp", "/var", "/run", "/root", "/home", "/etc", "/srv", "/opt", "/mnt", "/dev/shm")
MEMORY_KINDS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
SKIPPED_KINDS = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "debugfs", "tracefs", "securityfs", "nsfs", "bpf"})
MAX_FILE_BYTES = 4 * 2**30
TAIL_BYTES = 24


@dataclass(frozen=True, order=True)
class Sighting:
    """A canary found in a file, or in its name. ``tail`` is what follows the common prefix."""

    tail: str
    place: str


def scan(prefix: bytes, roots: Sequence[Path], *, outside_ram: bool, without: Sequence[Path] = (), since: float = 0.0) -> set[Sighting]:
    """Return every sighting of ``prefix`` below the roots, on swap, and in deleted files that are still open.

    With ``outside_ram`` memory-backed file systems are passed over; ``without`` names folders that are not looked into. Files whose inode
    did not change since ``since`` (seconds of the epoch; a program cannot set this time) are passed over too.
    """
    found: set[Sighting] = set()
    open_still = deleted(outside_ram=outside_ram)
    for path in (*files(roots, outside_ram=outside_ram, without=without, since=since), *map(Path, swap_devices()), *open_still):
        found |= {Sighting(_tail(os.fsencode(path), prefix), str(path))} if prefix in os.fsencode(path) else set()
        found |= _scan_file(path, prefix)
    return found


def files(roots: Sequence[Path], *, outside_ram: bool, without: Sequence[Path], since: float) -> Iterator[Path]:
    """Yield each plain file below the roots."""
    kinds = mounts()
    passed = SKIPPED_KINDS | (MEMORY_KINDS if outside_ram else frozenset())
    closed = {str(path) for path in without}
    for root in roots:
        if _kind(str(root), kinds) in passed:
            continue
        pending = [str(root)]  # os.walk calls itself for each folder within a folder, up to Python 3.11, and some are a thousand deep
        while pending:
            try:
                with os.scandir(pending.pop()) as opened:
                    entries = list(opened)
            except OSError:
                continue  # gone meanwhile
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending += [entry.path] if kinds.get(entry.path) not in passed and entry.path not in closed else []
                    continue
                try:
                    state = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISREG(state.st_mode) and state.st_ctime >= since:
                    yield Path(entry.path)


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


def deleted(*, outside_ram: bool) -> Iterator[Path]:
    """Yield files without a name that a process still holds; not those of this process."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        if folder.parent.name == str(os.getpid()):
            continue
        try:
            for link in folder.iterdir():
                target = str(link.readlink())
                memory = target.startswith(("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV"))
                if target.endswith(" (deleted)") and not (memory and outside_ram) and stat.S_ISREG(link.stat().st_mode):
                    yield link
        except OSError:
            continue  # the process ended while we looked


def _kind(folder: str, kinds: dict[str, str]) -> str:
    place = Path(folder)
    return next(kinds[str(parent)] for parent in (place, *place.parents) if str(parent) in kinds)


def _scan_file(path: Path, prefix: bytes) -> set[Sighting]:
    found: set[Sighting] = set()
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            if size == 0:
                return found
            written = list(_extents(handle.fileno(), size))
            if sum(end - start for start, end in written) > MAX_FILE_BYTES:
                raise AssertionError(f"{path} is too large to be searched whole")
            with mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ) as data:
                for start, end in written:
                    offset = data.find(prefix, start, end)
                    while offset >= 0:
                        found.add(Sighting(_tail(data[offset : offset + len(prefix) + TAIL_BYTES], prefix), str(path)))
                        offset = data.find(prefix, offset + 1, end)
    except (FileNotFoundError, ProcessLookupError, ValueError, PermissionError):
        pass  # gone meanwhile, or shrunk to nothing
    return found


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has bytes; holes are passed over. What knows no holes (a block device) is one extent."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: only a hole is left
                yield 0, size
            return
        yield start, end


def _tail(text: bytes, prefix: bytes) -> str:
    """Return number and place of a canary: ``3-out``."""
    return b"-".join(text.partition(prefix)[2].split(b"-")[:2]).decode("ascii", "replace")
