"""The printable receipt: it says what was checked, it needs nothing else, and names from outside stay text."""

from __future__ import annotations

import html.parser
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from attestation.canonical import sha256_digest
from attestation.errors import Step
from attestation.receipt import verify_receipt
from attestation.receipt_page import receipt_page
from tests.attestation.leases import Story, append, documents, extract, receipt_of, trust

CHROMIUM = shutil.which("chromium")
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Outside(html.parser.HTMLParser):
    """Collects what would make a page ask for something else, or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        if tag in {"script", "link", "img", "iframe", "object"} or names & {"src", "href", "onload", "onclick"}:
            self.found.append(tag)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("log")
    kept = documents()
    (indexes,) = append(folder, Story(kept))
    lease = verify_receipt(receipt_of(kept, extract(folder, indexes)), trust())
    assert lease.ok, [step for step in lease.steps if not step.ok]
    return lease


def page(result) -> str:
    return receipt_page(result, digest=sha256_digest(b"r"), trust_digest=sha256_digest(b"t"), at=AT)


def test_it_tells_every_check_and_the_certificate(result) -> None:
    text = page(result)
    assert f"All {len(result.steps)} checks held" in text
    for step in result.steps:
        assert f"<td>{step.step}</td>" in text
    assert "NIST SP 800-88" in text
    assert result.documents.evidence.node in text
    assert "2026-01-02T03:04:05" in text


def test_it_needs_no_other_file_and_runs_nothing(result) -> None:
    reader = Outside()
    reader.feed(page(result))
    assert reader.found == []


def test_a_failed_check_is_the_first_thing_it_says(result) -> None:
    text = page(replace(result, steps=(*result.steps, Step("planted", ok=False, seen="a", wanted="b"))))
    assert "1 of" in text
    assert "This proves nothing" in text
    assert "FAILED" in text
    assert "checks held" not in text


def test_a_receipt_that_cannot_be_read_still_gives_a_page() -> None:
    text = page(verify_receipt(b"{}", trust()))
    assert "This proves nothing" in text


def test_names_from_outside_stay_text(result) -> None:
    text = page(replace(result, steps=(Step("x", ok=False, seen="<script>alert(1)</script>", wanted="&"),)))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.slow
def test_a_browser_prints_it_whole(result, tmp_path) -> None:
    """As a lawyer would file it: headless Chromium writes the PDF, every check stands in it, and nothing is asked of any network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    (tmp_path / "receipt.html").write_text(page(result))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page()
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto((tmp_path / "receipt.html").as_uri())
        opened.pdf(path=tmp_path / "receipt.pdf", prefer_css_page_size=True, tagged=True)
        wide = opened.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        browser.close()
    raw = (tmp_path / "receipt.pdf").read_bytes()
    assert raw.startswith(b"%PDF-")
    assert raw.count(b"/Type /Page\n") + raw.count(b"/Type /Page ") >= 2
    assert [url for url in asked if not url.startswith("file:")] == []
    assert not wide
