"""Inputs that are decrypted on demand: a view per input, served by a process of its own that holds that one data key.

The process outlives a killed node, so it is written down with its start time and must be gone before a wipe is proven; so must the view's
file system, and with it every decrypted page that the kernel kept, and the ciphertext that was fetched for it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.node.plan import GID, UID
from sandbox.node.scratch import kernel
from sandbox.node.scratch.base import Proof
from sandbox.sealing.mount import PROGRAM, Mount, Problem
from sandbox.sealing.mountinfo import source_name

if TYPE_CHECKING:
    from sandbox.node.layout import LeaseFolder
    from sandbox.sealing.bundle import DataKey
    from sandbox.sealing.mount import Remote, Spare

GONE_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_ZOMBIE = "Z"
_FILE_SYSTEMS = Path("/sys/class/bdi")


@dataclass(frozen=True)
class Server:
    """A view's process: its id, the kernel's start time of it, since ids come again, and its file system's ``major:minor``."""

    pid: int
    started: str
    device: str = ""

    def row(self) -> list[object]:
        """Return it as a journal keeps it."""
        return [self.pid, self.started, self.device]


def available() -> bool:
    """Say whether this node can show views: FUSE in the kernel, and the binding for it."""
    return Path("/dev/fuse").exists() and importlib.util.find_spec("mfusepy") is not None


def show(
    bundle: Path | Remote,
    place: Path,
    key: DataKey,
    *,
    header: str | None = None,
    spare: Spare | None = None,
    tell: Callable[[Problem], None] | None = None,
) -> tuple[Mount, Server]:
    """Show a bundle's files at ``place`` for the container's user.

    Raises ``InputError`` where it cannot be mounted or does not verify, ``ServerError`` where its server does not answer.
    """
    place.mkdir(parents=True, mode=0o700, exist_ok=True)
    mount = Mount.start(bundle, place, key, header=header, owner=(UID, GID), allow_other=True, spare=spare, tell=tell)
    number = place.stat().st_dev
    if spare is not None:
        spare.prepare()  # after this view stands, so that it does not slow it down
    return mount, Server(mount.process.pid, _stat(mount.process.pid)[1], f"{os.major(number)}:{os.minor(number)}")


def servers(rows: object) -> tuple[Server, ...]:
    """Read what a journal says of views; what is damaged is left out: unmounting ends those."""
    return tuple(Server(*row) for row in (rows if isinstance(rows, list) else []) if _is_server(row))


def _is_server(row: object) -> bool:
    return isinstance(row, list) and len(row) == 3 and isinstance(row[0], int) and all(isinstance(part, str) for part in row[1:])


def end_servers(found: tuple[Server, ...], folder: LeaseFolder) -> Iterator[Proof]:
    """Kill the processes that served decrypted views. Each held a data key; and no job hangs in a read that nobody answers any more."""
    left = [str(server.pid) for server in found if not end(server)]
    seen = f"{', '.join(left) or 'none'} of {len(found)} processes left"
    yield Proof("views", str(folder.views), "kill", seen, "none left", ok=not left)


def drop_pages(found: tuple[Server, ...], folder: LeaseFolder) -> Iterator[Proof]:
    """Prove that each view's file system is gone from the kernel, which drops its decrypted pages first; then drop the ciphertext."""
    deadline = time.monotonic() + GONE_SECONDS
    for server in found:
        while (there := _file_system(server)) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        yield Proof(
            "view-pages", f"file system {server.device}", "unmount", there or "gone, with its pages", "gone, with its pages", ok=not there
        )
    for path in sorted(folder.fetched.iterdir()) if folder.fetched.is_dir() else ():
        before, after = _drop_file(path)
        seen = f"{after} cached pages, {'there' if path.exists() else 'gone'}"
        wanted = "0 cached pages, gone"
        yield Proof("fetched", str(path), f"truncate (it had {before} cached pages) and remove", seen, wanted, ok=seen == wanted)


def _file_system(server: Server) -> str:
    """Say where a view's file system still is; empty once the kernel has ended it. A number that another one was given since is not ours.

    The kernel ends the backing device (``/sys/class/bdi``) of a FUSE file system after it has evicted all its inodes and their pages, and
    does neither while anything is mounted or open (fs/super.c, ``generic_shutdown_super``).
    """
    holders = kernel.namespaces_where(lambda item: item.source == source_name(server.pid))
    if holders:
        return f"mounted for process {', '.join(holders)}"
    if not _FILE_SYSTEMS.is_dir():
        return f"unknown: no {_FILE_SYSTEMS}"
    if not server.device or not (_FILE_SYSTEMS / server.device).exists() or kernel.namespaces_with(server.device):
        return ""
    return "held by open files"


def _drop_file(path: Path) -> tuple[str, str]:
    """Free a file's blocks and pages at once, unwritten ones too, and remove it; return how many pages were cached before and after."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        before = kernel.cached_pages(fd)
        os.ftruncate(fd, 0)
        after = kernel.cached_pages(fd)
        path.unlink()
    finally:
        os.close(fd)
    # An empty file has no pages; a kernel before 6.5 cannot be asked.
    return ("unknown" if before is None else str(before)), str(after or 0)


def end(server: Server) -> bool:
    """Kill a view's process and say whether it is gone."""
    deadline = time.monotonic() + GONE_SECONDS
    while _lives(server):
        try:
            os.kill(server.pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _lives(server: Server) -> bool:
    state, started = _stat(server.pid)
    if not started or started != server.started or state == _ZOMBIE:
        return False
    try:
        return PROGRAM.encode() in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    except OSError:
        return False


def _stat(pid: int) -> tuple[str, str]:
    """Return a process's state and start time (proc(5), fields 3 and 22), empty where it is gone."""
    try:
        fields: Any = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return str(fields[0]), str(fields[19])
    except (OSError, IndexError):
        return "", ""
