"""A real Chromium in front of a house's console, for tests and for the pictures in the documentation."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from sandbox.control.app import create_app
from tests.control.conftest import House

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def served(house: House) -> Iterator[str]:
    """Let the house listen on the loopback; yields its address."""
    server = uvicorn.Server(uvicorn.Config(create_app(house.control), host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run one browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def sign_in(house: House, page: Page, address: str, role: str = "auditor") -> None:
    """Sign in as a person does."""
    page.goto(address)
    page.get_by_label("Token").fill(house.token(role, "audit" if role == "auditor" else "operator"))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Leases").wait_for()
