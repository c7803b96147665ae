"""Following a lease: the server holds each question open until there is news, so that nothing is asked again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandbox.cli.console import console, shown
from sandbox.lifecycle import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.customer.client import Client
    from sandbox.wire import LeaseInfo


class Deadline:
    """A moment until which is waited; without ``seconds`` for as long as it takes."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        """Return how long the server may hold the next question, in seconds; 0 once the time is over."""
        from sandbox.wire import MAX_WAIT_SECONDS

        return MAX_WAIT_SECONDS if self._end is None else min(MAX_WAIT_SECONDS, max(0.0, self._end - time.monotonic()))


def followed(control: Client, lease: str, deadline: Deadline) -> Iterator[LeaseInfo]:
    """Yield a lease as it is and after each change, telling its new states on stderr, until it is over or the time is."""
    told = 0
    info = control.lease(lease)
    while True:
        for step in info.history[told:]:
            console().say(f"{shown(step.at)}  {step.state.value:<11} {step.detail}".rstrip())
        told = len(info.history)
        yield info
        left = deadline.left()
        if info.state in TERMINAL or not left:
            return
        info = control.lease(lease, since=info.state, wait=left)
