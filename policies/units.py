"""Sizes and durations as people write them. Pure."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d{1,15})(?:\.(\d{1,3}))?(|[KMGTP]i?)", re.ASCII)
_DURATION = re.compile(r"(\d{1,12})(s|m|h|d)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(value: object) -> int:
    """Return bytes from a whole number or from text such as ``512Mi``, ``1.5Gi`` or ``2G`` (1000-based without the i).

    Raises ``ValueError`` naming the value and what is wanted.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        msg = f"{value!r} is not a size; write bytes or a number with Ki, Mi, Gi, Ti (or K, M, G, T), for example 4Gi"
        raise ValueError(msg)
    whole, fraction, unit = match.groups()
    scale = 1 if not unit else (1024 if unit.endswith("i") else 1000) ** ("KMGTP".index(unit[0]) + 1)
    thousandths = int(whole) * 1000 + int((fraction or "0").ljust(3, "0"))
    return thousandths * scale // 1000


def parse_duration(value: object) -> int:
    """Return seconds from a whole number or from text such as ``90s``, ``30m``, ``24h`` or ``7d``.

    Raises ``ValueError`` naming the value and what is wanted.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        msg = f"{value!r} is not a duration; write seconds or a number with s, m, h or d, for example 30m"
        raise ValueError(msg)
    return int(match[1]) * _SECONDS[match[2]]


def format_size(count: int) -> str:
    """Return bytes for people, for example ``1.5 GiB``."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Return seconds for people, for example ``1h 30m``."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    return " ".join(f"{count}{unit}" for count, unit in parts if count) or "0s"
