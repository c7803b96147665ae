"""Takes the documentation's pictures of the console: ``python -m tests.control.pictures`` in the repository's root. Needs Chromium."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.control.browser import chromium, sign_in
from tests.control.conftest import House, open_house
from tests.control.scene import Scene, furnish
from tests.control.serving import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = Path("docs/img")
WIDTH, HEIGHT = 1280, 800


def take(house: House, scene: Scene, address: str, browser: Browser, folder: Path) -> None:
    """Write each picture as ``console-NAME.png``."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    page = context.new_page()
    sign_in(house, page, address)
    for name, (place, scheme, act) in _pictures(scene).items():
        page.emulate_media(color_scheme=scheme)
        page.goto(address + place)
        act(page)
        page.screenshot(path=folder / f"console-{name}.png", full_page=name != "audit-dark")
    context.close()


def _pictures(scene: Scene) -> dict[str, tuple[str, str, Callable[[Page], object]]]:
    return {
        "leases": ("/leases", "light", _look),
        "lease": (f"/leases/{scene.closed}", "light", _look),
        "nodes": ("/nodes", "light", _unfold),
        "policies": ("/policies", "light", _unfold),
        "entry": (f"/leases/{scene.closed}", "light", _verify),
        "audit-dark": ("/audit", "dark", _look),
    }


def _look(page: Page) -> None:
    page.locator("h1").wait_for()


def _unfold(page: Page) -> None:
    page.locator("summary").last.click()
    page.mouse.move(0, 0)


def _verify(page: Page) -> None:
    page.get_by_role("link", name="entry").first.click()
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("bytes that this browser verified").wait_for()
    page.mouse.move(0, 0)


def main() -> None:
    """Furnish a house and take all pictures of it."""
    with ExitStack() as stack:
        house = open_house(stack, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealrig-pictures-"))))
        scene = furnish(house)
        take(house, scene, stack.enter_context(served(house)), stack.enter_context(chromium()), FOLDER)


if __name__ == "__main__":
    sys.exit(main())
