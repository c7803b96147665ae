"""The turns that tests of several processes take: together, alone, and in the order in which they asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.alone import turn

MOMENT = 0.1
LONG = 10.0


class Runner(threading.Thread):
    """Takes a turn, says so, and keeps it until it is let go."""

    def __init__(self, place: Path, *, alone: bool) -> None:
        super().__init__(daemon=True)
        self.place, self.alone = place, alone
        self.has, self.go = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with turn(alone=self.alone, place=self.place):
            self.has.set()
            self.go.wait(LONG)


def test_one_that_wants_to_be_alone_waits_for_those_before_and_holds_up_those_after(tmp_path: Path) -> None:
    begin: Callable[[bool], Runner] = lambda alone: Runner(tmp_path, alone=alone)  # noqa: E731
    with ExitStack() as ends:
        first, second = begin(False), begin(False)
        assert first.has.wait(LONG)
        assert second.has.wait(LONG), "two that may run together do"
        alone = begin(True)
        assert not alone.has.wait(MOMENT)
        late = begin(False)
        ends.callback(late.join, LONG)
        first.go.set()
        assert not alone.has.wait(MOMENT)
        assert not late.has.is_set(), "one that came later has passed by"
        second.go.set()
        assert alone.has.wait(LONG)
        assert not late.has.wait(MOMENT)
        alone.go.set()
        assert late.has.wait(LONG)
        late.go.set()
