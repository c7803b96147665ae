"""One shape for every measurement: a value, the named peer it stands against, and a goal from which ``ok`` follows."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement. ``at_most`` or ``at_least`` is the goal for ``value`` in ``unit``, ``ratio_at_least`` for the ratio to the peer.

    With none of them there is nothing to be met.
    """

    what: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    ratio_at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times the peer's value this is."""
        return round(self.value / self.peer_value, 3) if self.peer_value else None

    @property
    def goal(self) -> str | None:
        """The goal in words."""
        most = None if self.at_most is None else f"≤ {self.at_most:g} {self.unit}"
        least = None if self.at_least is None else f"≥ {self.at_least:g} {self.unit}"
        ratio = None if self.ratio_at_least is None else f"≥ {self.ratio_at_least:g} times {self.peer}"
        parts = [part for part in (most, least, ratio) if part]
        return ", ".join(parts) or None

    @property
    def ok(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        return (
            (self.at_most is None or self.value <= self.at_most)
            and (self.at_least is None or self.value >= self.at_least)
            and (self.ratio_at_least is None or (self.ratio is not None and self.ratio >= self.ratio_at_least))
        )

    def document(self) -> dict[str, Any]:
        """Return the row as in ``--json``."""
        kept = {name: value for name, value in asdict(self).items() if name not in {"at_most", "at_least", "ratio_at_least"}}
        return {**kept, "value": round(self.value, 4), "ratio": self.ratio, "goal": self.goal, "ok": self.ok}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on. Memory in bytes."""
    model = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def document(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a bench's whole answer."""
    return {"bench": name, "machine": machine(), "rows": [row.document() for row in rows]}


def main(name: str, measure: Callable[[], Sequence[Row]], words: Sequence[str], *, about: str | None = None) -> int:
    """Measure and print, as ``--json`` or as lines. Exit 1 where a goal is not met.

    ``about`` is what ``--help`` prints instead; None where ``measure`` reads its own options.
    """
    if about is not None and {"-h", "--help"} & set(words):
        print(about.strip())
        return 0
    rows = measure()
    if "--json" in words:
        print(json.dumps(document(name, rows), indent=2, ensure_ascii=False))
    else:
        print(name)
        for row in rows:
            peer = f"{row.peer}: {row.peer_value:.3f} {row.unit} ({row.ratio}x)" if row.peer_value is not None else ""
            verdict = {True: "ok", False: "MISSED", None: ""}[row.ok]
            print(f"  {row.what:<70} {row.value:10.3f} {row.unit:<5} {row.goal or '':<10} {verdict:<7} {peer}".rstrip())
    return 1 if any(row.ok is False for row in rows) else 0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
