"""The console in a real browser: a person signs in, finds a lease, and verifies an entry without asking the server to."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from sandbox.control.app import create_app
from tests.control.conftest import House
from tests.control.test_story import admitted

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"), pytest.mark.slow]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def address(house: House) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(house.control), host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page() -> Iterator[playwright.Page]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page()
        opened.problems = []
        opened.on("console", lambda message: opened.problems.append(message.text))
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        yield opened
        browser.close()


def sign_in(house: House, page: playwright.Page, address: str) -> None:
    page.goto(address)
    page.get_by_label("Token").fill(house.token("auditor", "audit"))
    page.get_by_role("button", name="Sign in").click()


def test_an_auditor_finds_a_lease_and_verifies_its_entry_alone(house: House, page: playwright.Page, address: str) -> None:
    lease = admitted(house, house.customer())
    sign_in(house, page, address)
    page.get_by_role("link", name=lease[:18]).click()
    assert page.locator("ol.timeline li").count() == 2
    page.get_by_role("link", name="entry").last.click()
    page.get_by_role("button", name="Verify").click()
    page.locator("#verify-steps li").nth(4).wait_for()
    assert page.locator("#verify-steps li.good").count() == 5
    assert page.problems == []


def test_another_logs_key_and_another_entrys_proof_do_not_verify(house: House, page: playwright.Page, address: str) -> None:
    admitted(house, house.customer())
    sign_in(house, page, address)
    page.goto(f"{address}/audit/1")
    name, _, _ = house.control.vkey.partition("+")
    page.get_by_label("Log key").fill(f"{name}+00000000+AQ{'A' * 42}")
    page.get_by_role("button", name="Verify").click()
    bad = page.locator("#verify-steps li.bad")
    bad.wait_for()
    assert "no signature by the key you entered" in bad.inner_text()
    page.get_by_label("Log key").fill(house.control.vkey)
    page.route("**/audit/1/proof", lambda route: route.fulfill(response=route.fetch(url=f"{address}/audit/0/proof")))
    page.get_by_role("button", name="Verify").click()
    bad.wait_for()
    assert "it is for entry 0" in bad.inner_text()
    page.unroute("**/audit/1/proof")
    page.route("**/audit/1/leaf", lambda route: route.fulfill(body="{}"))
    page.get_by_role("button", name="Verify").click()
    page.locator("#verify-steps li").nth(4).wait_for()
    assert "another root" in page.locator("#verify-steps li.bad").inner_text()


def test_the_pages_work_from_the_keyboard(house: House, page: playwright.Page, address: str) -> None:
    sign_in(house, page, address)
    page.goto(f"{address}/audit")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    unlabelled = page.evaluate("[...document.querySelectorAll('input:not([type=hidden]),select')].filter(e => !e.labels.length).length")
    assert unlabelled == 0
    assert page.evaluate("document.documentElement.lang") == "en"
