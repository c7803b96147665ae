"""Writes docs/security-results.md from a run: ``SEALRIG_WRITE_RESULTS=1 ./dev test tests/attacks``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PLACE = Path(__file__).resolve().parents[2] / "docs" / "security-results.md"
HEAD = """# What hostile programs got

Written by the attack suite itself: each probe is a program that a tenant could bring, run as an ordinary lease, or a call that a
stranger could make. "Stopped" says how; anything else is a hole.

To write this page anew: `SEALRIG_WRITE_RESULTS=1 ./dev test tests/attacks`.
"""


def write_results(section: str, found: dict[str, dict[str, Any]]) -> None:
    """Replace one section of the page."""
    text = PLACE.read_text() if PLACE.exists() else HEAD
    start = f"<!-- {section} -->\n"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(f"<!-- end {section} -->\n")
    stopped = sum(bool(item["blocked"]) for item in found.values())
    lines = [f"\n## {section}: {stopped} of {len(found)} stopped ({datetime.now(UTC):%Y-%m-%d})\n"]
    lines += ["| probe | what was tried | what happened |", "|---|---|---|"]
    for name, item in found.items():
        verdict = "stopped" if item["blocked"] else "**NOT STOPPED**"
        lines.append(f"| {name} | {_cell(item['tried'])} | {verdict}: {_cell(item['happened'])} |")
    PLACE.write_text(before + start + "\n".join(lines) + f"\n<!-- end {section} -->\n" + after)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())[:160]
