"""Ports for programs that must be told theirs beforehand. Whatever can be asked for port 0 and says which it got does not need this.

A port that the kernel hands out (``bind`` to 0, then ``close``) may be anybody's a moment later: every connection that goes out takes one
from the same range. These are outside that range, and no two test processes take the same: each holds a name for as long as it lives.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_LOOPBACK = "127.0.0.1"
_OURS = range(20_000, 32_000)
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_held: list[int] = []


def candidates(text: str) -> list[int]:
    """Return the ports to choose from, given the kernel's range for connections as it writes it; all of ours if it has them all."""
    low, high = map(int, text.split())
    return [port for port in _OURS if not low <= port <= high] or list(_OURS)


def free_port() -> int:
    """Return a port of loopback that nobody listens on, and that no other process of these tests gets while this one lives."""
    ports = candidates(_RANGE.read_text())
    random.SystemRandom().shuffle(ports)
    for port in ports:
        with contextlib.ExitStack() as stack:
            # A name without a file, known in the same network namespace as the port, and gone with the process.
            name = stack.enter_context(socket.socket(socket.AF_UNIX))
            probe = stack.enter_context(socket.socket())
            try:
                name.bind(f"\0sealrig-test-port-{port}")
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
            probe.close()
            _held.append(name.detach())
            return port
    raise AssertionError(f"no port of {_OURS} is free")
