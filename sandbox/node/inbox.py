"""What the control plane last said of one lease, handed from the polling thread to the lease's own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from sandbox.lifecycle import KEY_MAY_BE_OUT, LeaseState, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.node.limits import Verdict
    from sandbox.wire import Assignment


class Ended(Exception):  # noqa: N818  (not an error: the lease is to end now, with this verdict)
    """Leave the story for the wipe."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.detail)
        self.verdict = verdict


class Inbox:
    """The latest assignment. Safe for use by several threads."""

    def __init__(self, assignment: Assignment) -> None:
        """Start with the assignment that placed the lease here."""
        self._changed = threading.Condition()
        self._assignment = assignment
        self._vanished = False
        self._stopped = False

    @property
    def assignment(self) -> Assignment:
        """What was said last."""
        with self._changed:
            return self._assignment

    def update(self, assignment: Assignment) -> None:
        """Take the control plane's newest word."""
        with self._changed:
            self._assignment = assignment
            self._changed.notify_all()

    def vanish(self) -> None:
        """Note that the control plane answered, and does not know this lease as ours any more."""
        with self._changed:
            self._vanished = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Note that the node itself is stopping."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def end(self) -> Outcome | None:
        """How the lease is to end by the control plane's wish, or because the node stops; None while it goes on."""
        with self._changed:
            if self._vanished:
                return Outcome.REVOKED if self._assignment.state in KEY_MAY_BE_OUT else Outcome.CANCELLED
            return self._assignment.end or (Outcome.NODE_FAILURE if self._stopped else None)

    @property
    def state(self) -> LeaseState:
        """The state in which the control plane sees the lease."""
        with self._changed:
            return self._assignment.state

    def wait_for(self, wanted: Callable[[Assignment], bool], seconds: float) -> bool:
        """Wait until an assignment is ``wanted`` or an end is asked for; say whether one of them came in time."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (wanted(self._assignment) or self._vanished or self._stopped or self._assignment.end):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True
