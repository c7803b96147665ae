"""A house's control plane on a real socket, in a thread of this process, so that tests can plant faults in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from sandbox.control.app import create_app
from tests.control.conftest import House
from tests.patience import eventually


@contextmanager
def served(house: House) -> Iterator[str]:
    """Serve it; yields its address."""
    server = uvicorn.Server(uvicorn.Config(create_app(house.control), host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
