"""A pytest plugin that tells of each test at once: ``-p tests.outcomes --outcomes FILE``.

The file has a line of JSON for each thing that becomes known: ``planned`` with the tests that were chosen, ``failed``, ``passed`` and
``over`` with one test. Whoever started the tests so knows of what ended, even if the process did not live to say it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import pytest


class Outcomes:
    """Writes the lines; each is in the kernel's hands before the next test begins."""

    def __init__(self, lines: TextIO) -> None:
        """Take an open file, which the end of the session closes."""
        self._lines = lines

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._tell("planned", [item.nodeid for item in session.items])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._tell("failed", report.nodeid)
        elif report.passed and report.when == "call":
            self._tell("passed", report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._tell("over", nodeid)

    def pytest_unconfigure(self) -> None:
        self._lines.close()

    def _tell(self, what: str, which: list[str] | str) -> None:
        self._lines.write(json.dumps({what: which}) + "\n")
        self._lines.flush()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="tell of each test in this file")


def pytest_configure(config: pytest.Config) -> None:
    path: Path | None = config.getoption("--outcomes")
    if path is not None:
        config.pluginmanager.register(Outcomes(path.open("w", encoding="utf-8")))
