"""How long tests wait: for a condition, generously, and never for a guess."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

PATIENCE = float(os.environ.get("SEALRIG_PATIENCE", "1"))
"""How much longer than usual tests wait: 1 on a machine, more on an emulated processor (``SEALRIG_PATIENCE``, set by ``./dev vm``)."""
LONG = 60.0 * PATIENCE
"""Seconds that anything may take on a busy machine before it counts as never happening."""
_LOOK_SECONDS = 0.02


def eventually(condition: Callable[[], _T], what: str = "") -> _T:
    """Wait until ``condition`` returns something true, and return it; fail, with ``what`` was waited for, when it takes too long."""
    deadline = time.monotonic() + LONG
    while True:
        late = time.monotonic() >= deadline
        if found := condition():
            return found
        assert not late, f"waited {LONG:.0f} s for {what or condition}"
        time.sleep(_LOOK_SECONDS)
