"""The console in a real browser: a person signs in, finds a lease, and verifies an entry without asking the server to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.cli import main
from sandbox.control.web.sessions import COOKIE
from tests.control import pictures
from tests.control.browser import CHROMIUM, chromium, sign_in
from tests.control.conftest import House, open_house
from tests.control.scene import Scene, furnish
from tests.control.serving import served
from tests.control.test_story import admitted

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"), pytest.mark.slow]
LOOKING = Path(__file__).with_name("looking.js").read_text()
DOCUMENT = Path(__file__).parents[2] / "docs" / "console.md"
STORED = "localStorage.getItem('sealrig-log-key')"


@pytest.fixture
def address(house: House) -> Iterator[str]:
    with served(house) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: playwright.Browser) -> Iterator[playwright.Page]:
    """A page of its own. What the browser complains of fails the test, unless the test planted it and emptied ``problems``."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.problems = []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    yield opened
    context.close()
    assert opened.problems == []


def verify(page: playwright.Page, steps: int = 5) -> None:
    page.get_by_role("button", name="Verify").click()
    page.locator("#verify-steps li").nth(steps - 1).wait_for()


def bad(page: playwright.Page) -> str:
    (line,) = page.locator("#verify-steps li.bad").all_inner_texts()
    return line


# ---- verification


def test_an_auditor_finds_a_lease_and_verifies_its_entry_alone(house: House, page: playwright.Page, address: str) -> None:
    lease = admitted(house, house.customer())
    sign_in(house, page, address)
    page.get_by_role("link", name=lease[:18]).click()
    assert page.locator("ol.timeline li").count() == 2
    page.get_by_role("link", name="entry").last.click()
    assert page.evaluate(STORED) is None
    verify(page)
    assert page.locator("#verify-steps li.good").count() == 5
    page.get_by_text("bytes that this browser verified").wait_for()
    assert page.evaluate(STORED) == house.control.vkey
    page.reload()
    assert "last verified an entry in this browser" in page.locator("#key-note").inner_text()
    assert "another one" not in page.locator("#key-note").inner_text()


def test_what_is_shown_afterwards_are_the_verified_bytes(house: House, page: playwright.Page, address: str) -> None:
    """A page that shows something else than the log has, beside a true proof."""
    lease = admitted(house, house.customer())
    sign_in(house, page, address)
    truth = page.request.get(f"{address}/audit/3/leaf").json()

    def lie(route: playwright.Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=re.sub(r'(id="entry"[^>]*>)[^<]*', r"\1{}", answer.text()))

    page.route("**/audit/3", lie)
    page.goto(f"{address}/audit/3")
    shown = page.get_by_label("The entry", exact=True)
    assert shown.inner_text() == "{}"
    verify(page)
    page.get_by_text("bytes that this browser verified").wait_for()
    assert json.loads(shown.inner_text()) == truth
    assert lease


def test_another_logs_key_and_another_entrys_proof_do_not_verify(house: House, page: playwright.Page, address: str) -> None:
    admitted(house, house.customer())
    sign_in(house, page, address)
    page.goto(f"{address}/audit/1")
    name, _, _ = house.control.vkey.partition("+")
    page.get_by_label("Log key").fill(f"{name}+00000000+AQ{'A' * 42}")
    verify(page, 4)
    assert "no signature by the key you entered" in bad(page)
    page.get_by_label("Log key").fill(house.control.vkey)
    page.route("**/audit/1/proof", lambda route: route.fulfill(response=route.fetch(url=f"{address}/audit/0/proof")))
    verify(page, 3)
    assert "it is for entry 0" in bad(page)
    page.unroute("**/audit/1/proof")
    page.route("**/audit/1/leaf", lambda route: route.fulfill(body="{}"))
    verify(page)
    assert "another root" in bad(page)
    assert page.evaluate(STORED) is None
    assert page.locator("#entry-note").inner_text() == "As this server shows it."
    page.problems.clear()  # the log's key was never exchanged, and the browser tells of the 404 that says so


def test_a_key_from_before_an_exchange_is_led_to_the_new_one(folder: Path, page: playwright.Page) -> None:
    with ExitStack() as stack:
        old = open_house(stack, folder).control.vkey
    assert main(["audit", "rotate-key", "--data", str(folder / "data")]) == 0
    with ExitStack() as stack:
        house = open_house(stack, folder)
        address, new = stack.enter_context(served(house)), house.control.vkey
        assert new != old
        sign_in(house, page, address)
        page.evaluate(f"localStorage.setItem('sealrig-log-key', {json.dumps(old)})")
        page.goto(f"{address}/audit/1")
        assert "This server now names another one" in page.locator("#key-note").inner_text()
        verify(page, 4)
        assert "older than this checkpoint" in bad(page)
        assert new in bad(page)
        assert page.evaluate(STORED) == old
        page.get_by_label("Log key").fill(new)
        verify(page)
        assert page.locator("#verify-steps li.good").count() == 5
        # A note that the old key did not sign leads nowhere.
        forged = page.request.get(f"{address}/log/keys/1").text().replace(new, house.control.vkey[:-4] + "AAA=")
        page.route("**/log/keys/1", lambda route: route.fulfill(body=forged))
        page.get_by_label("Log key").fill(old)
        verify(page, 4)
        assert "no signature by the key you entered" in bad(page)
    page.problems.clear()  # the same 404


# ---- every page, for everybody


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, Scene, str]]:
    with ExitStack() as stack:
        house = open_house(stack, tmp_path_factory.mktemp("console"))
        scene = furnish(house)
        yield house, scene, stack.enter_context(served(house))


@pytest.fixture(scope="module")
def session(furnished: tuple[House, Scene, str]) -> str:
    """The cookie of somebody who has signed in."""
    house, _, address = furnished
    answer = httpx.post(f"{address}/login", data={"token": house.token("auditor", "audit")})
    return answer.cookies[COOKIE]


PAGES = {
    "sign in": "/login",
    "leases": "/leases",
    "a lease that closed": "/leases/{scene.closed}",
    "a lease that was denied": "/leases/{scene.denied}",
    "a lease in quarantine": "/leases/{scene.quarantined}",
    "a lease that was erased": "/leases/{scene.erased}",
    "nodes": "/nodes",
    "policies": "/policies",
    "audit log": "/audit?type=lease.*",
    "nothing found": "/audit?text=nobody",
    "an entry": "/audit/{entry}",
}


@pytest.fixture(params=PAGES)
def shown(request: pytest.FixtureRequest, furnished: tuple[House, Scene, str], page: playwright.Page, session: str) -> playwright.Page:
    """Each page in turn."""
    house, scene, address = furnished
    if request.param != "sign in":
        page.context.add_cookies([{"name": COOKIE, "value": session, "url": address}])
    (first,) = house.person("auditor").get(f"/v1/log/entries?lease={scene.closed}&type=lease.submitted").json()["entries"]
    page.goto(address + PAGES[request.param].format(scene=scene, entry=first["index"]))
    page.evaluate(LOOKING)
    return page


def test_everything_can_be_read_in_the_light_and_in_the_dark(shown: playwright.Page) -> None:
    for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(18, 21, 27)")):
        shown.emulate_media(color_scheme=scheme)
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        looked = shown.evaluate("looking.faint()")
        assert looked["count"] >= 5
        assert looked["found"] == [], scheme


def test_the_tab_key_reaches_everything_in_the_order_of_the_page(shown: playwright.Page) -> None:
    wanted = list(range(len(shown.evaluate("looking.stops()"))))
    reached: list[Any] = []
    for _ in range(len(wanted) * 8 + 8):  # a field for a time has several stops of its own
        shown.keyboard.press("Tab")
        here = shown.evaluate("looking.here()")
        assert not isinstance(here, str), here
        if here is not None and here not in reached[-1:]:
            reached.append(here)
        if len(reached) == len(wanted):
            break
    first = reached[0]  # the field that the page put the cursor into, or the skip link
    assert reached == wanted[first:] + wanted[:first]


def test_what_a_screen_reader_is_told_has_names_and_an_outline(shown: playwright.Page) -> None:
    session = shown.context.new_cdp_session(shown)
    nodes = [node for node in session.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    roles: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        roles.setdefault(node["role"]["value"], []).append(node)
    counts = [len(roles.get(role, ())) for role in ("RootWebArea", "banner", "main", "contentinfo")]
    assert counts == [1, 1, 1, 1]
    for role in (
        "link",
        "button",
        "textbox",
        "combobox",
        "DateTime",
        "DisclosureTriangle",
        "table",
        "navigation",
        "search",
        "image",
    ):
        unnamed = [node for node in roles.get(role, ()) if not node.get("name", {}).get("value")]
        assert unnamed == [], role
    levels = [each["value"]["value"] for node in roles["heading"] for each in node["properties"] if each["name"] == "level"]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False)), levels
    assert bool(roles.get("table")) <= bool(roles.get("columnheader"))
    assert shown.evaluate("document.documentElement.lang") == "en"


def test_the_skip_link_goes_to_the_content(furnished: tuple[House, Scene, str], page: playwright.Page) -> None:
    house, _, address = furnished
    sign_in(house, page, address)
    page.goto(f"{address}/audit")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.wait_for_url("**#main", timeout=10_000)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "type"


def test_a_quarantined_node_and_an_unfit_card_say_why(furnished: tuple[House, Scene, str], page: playwright.Page) -> None:
    house, scene, address = furnished
    sign_in(house, page, address, "operator")
    page.get_by_role("link", name="Nodes").click()
    bad_node = page.get_by_role("region", name=scene.bad_node)
    assert "quarantined" in bad_node.get_by_role("heading").inner_text()
    assert scene.quarantined in bad_node.locator(".note").inner_text()
    cards = page.get_by_role("region", name=scene.gpu_node)
    assert cards.locator("tbody .badge").all_inner_texts() == ["training", "inference", "unfit"]
    why = cards.get_by_text("link-to-device: 0.4 GB/s, inference needs at least 2.85 GB/s")
    assert not why.is_visible()
    cards.locator("summary").last.focus()
    page.keyboard.press("Enter")
    assert why.is_visible()
    assert cards.get_by_role("img", name="What this rig's GPUs reach").is_visible()


def test_a_policys_change_is_unfolded_from_the_keyboard(furnished: tuple[House, Scene, str], page: playwright.Page) -> None:
    house, _, address = furnished
    sign_in(house, page, address)
    page.get_by_role("link", name="Policies").click()
    changed = page.get_by_text("memory: {max: 16Gi}, scratch").last
    assert not changed.is_visible()
    page.locator("section", has_text="works:").locator("summary").focus()
    page.keyboard.press("Enter")
    assert changed.is_visible()


def test_no_page_is_wider_than_a_small_screen(shown: playwright.Page) -> None:
    for width in (768, 360):
        shown.set_viewport_size({"width": width, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_the_documentations_pictures_can_be_taken(furnished: tuple[House, Scene, str], browser: playwright.Browser, tmp_path: Path) -> None:
    """``python -m tests.control.pictures`` makes each picture that docs/console.md shows, and no other."""
    house, scene, address = furnished
    pictures.take(house, scene, address, browser, tmp_path)
    shown = re.findall(r"\(img/(console-[a-z-]+\.png)\)", DOCUMENT.read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shown)
    assert {path.name for path in DOCUMENT.with_name("img").glob("console-*.png")} == set(shown)
