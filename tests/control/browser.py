"""A real Chromium in front of a house's console, for tests and for the pictures in the documentation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
