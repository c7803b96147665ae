"""Being stopped at any moment without losing track of what was started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP into one ``KeyboardInterrupt``, never in the middle of a ``held`` block.

    A process that was started but not yet written down could not be stopped any more; hence ``held``. Used in a ``with`` statement, it
    gives the signals back as they were. SIGTERM and SIGHUP stay ignored where the parent has them ignored, as ``nohup`` does.
    """

    def __init__(self) -> None:
        """Take over the signals. Main thread only."""
        self._depth = 0
        self._pending = False
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._before = {n: old for n, old in before.items() if n == signal.SIGINT or old is not signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._arrived)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        if self._depth:
            self._pending = True
            return
        self.ignore()
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait until the block has ended."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._pending and not self._depth:
            self._pending = False
            self.ignore()
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Take no further signal: what follows is the cleaning up, which must come to its end."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Give the signals back as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
