"""Downloads that their clients leave early."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.control.conftest import House
from tests.control.serving import served
from tests.patience import eventually

SIZE = 32 * 2**20
"""More than the sockets on both sides hold, where the client's is bounded."""


@pytest.fixture
def address(house: House) -> Iterator[str]:
    with served(house) as url:
        yield url


def open_below(folder: Path) -> list[str]:
    """Name what this process has open below a folder."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return [name for name in names if name.startswith(str(folder))]


def test_a_client_that_leaves_early_leaves_no_file_open(house: House, address: str) -> None:
    customer = house.customer()
    bundle = house.bundle(customer, os.urandom(SIZE))
    kept = house.control.settings.data / "bundles"
    server = urlsplit(address)
    lines = [f"GET /v1/bundles/{bundle.digest}/content HTTP/1.1", "Host: server", f"Authorization: Bearer {customer.token}", "", ""]
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        line.connect((server.hostname, server.port))
        line.sendall("\r\n".join(lines).encode())
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        assert open_below(kept) != []
    eventually(lambda: not open_below(kept))
