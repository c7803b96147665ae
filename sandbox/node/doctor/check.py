"""One check's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Result = Literal["pass", "fail", "unknown"]
_SEEN_MAX_CHARS = 500


@dataclass(frozen=True)
class Check:
    """What was seen, what is wanted, and, where it did not pass, how to get there."""

    id: str
    seen: str
    wanted: str
    result: Result
    fix: str = ""


def judged(name: str, ok: bool, seen: object, wanted: str, fix: str) -> Check:  # noqa: FBT001  (the verdict, between what it is about)
    """Return pass or fail."""
    return Check(name, _short(seen), wanted, "pass" if ok else "fail", "" if ok else fix)


def unknown(name: str, seen: object, wanted: str, fix: str) -> Check:
    """Return that it could not be found out."""
    return Check(name, _short(seen), wanted, "unknown", fix)


def _short(seen: object) -> str:
    return " ".join(str(seen).split())[:_SEEN_MAX_CHARS]
