"""Inputs that are decrypted on demand: a view per input, served by a process of its own that holds that one data key.

The process outlives a killed node, so it is written down with its start time and must be gone before a wipe is proven.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.node.plan import GID, UID
from sandbox.sealing.mount import Mount

if TYPE_CHECKING:
    from sandbox.sealing.bundle import DataKey

GONE_SECONDS = 5.0
_ZOMBIE = "Z"
_PROGRAM = b"sandbox.sealing.mount"


@dataclass(frozen=True)
class Server:
    """A view's process: its id, and the kernel's start time of it, since ids come again."""

    pid: int
    started: str


def available() -> bool:
    """Say whether this node can show views: FUSE in the kernel, and the binding for it."""
    return Path("/dev/fuse").exists() and importlib.util.find_spec("mfusepy") is not None


def show(bundle: Path, place: Path, key: DataKey) -> tuple[Mount, Server]:
    """Show a bundle's files at ``place`` for the container's user. Raises ``InputError`` where it cannot be mounted or does not verify."""
    place.mkdir(parents=True, mode=0o700)
    mount = Mount.start(bundle, place, key, owner=(UID, GID), allow_other=True)
    return mount, Server(mount.process.pid, _stat(mount.process.pid)[1])


def servers(rows: object) -> tuple[Server, ...]:
    """Read what a journal says of views; what is damaged is left out: unmounting ends those."""
    return tuple(Server(row[0], row[1]) for row in (rows if isinstance(rows, list) else []) if _is_server(row))


def _is_server(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and isinstance(row[0], int) and isinstance(row[1], str)


def end(server: Server) -> bool:
    """Wait for a view's process to end, kill it if it does not, and say whether it is gone."""
    deadline = time.monotonic() + GONE_SECONDS
    while _lives(server):
        if time.monotonic() >= deadline - GONE_SECONDS / 2:
            try:
                os.kill(server.pid, signal.SIGKILL)
            except ProcessLookupError:
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _lives(server: Server) -> bool:
    state, started = _stat(server.pid)
    if not started or started != server.started or state == _ZOMBIE:
        return False
    try:
        return _PROGRAM in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    except OSError:
        return False


def _stat(pid: int) -> tuple[str, str]:
    """Return a process's state and start time (proc(5), fields 3 and 22), empty where it is gone."""
    try:
        fields: Any = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return str(fields[0]), str(fields[19])
    except (OSError, IndexError):
        return "", ""
