"""A command that is told to end unwinds: what it made on the way is removed, as after any error, and its exit code names the signal."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """The process was told to end by ``number``; ``code`` is what a shell would say of it (POSIX, 2.8.2)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def handling(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handler`` take signals while the block runs, and then whoever took them before.

    SIGTERM and SIGHUP stay ignored where the parent has them ignored, as ``nohup`` does. Outside of the main thread, where Python lets
    nobody take signals, this does nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers}
    taken = {number: old for number, old in before.items() if not (number in _ENDING and old is signal.SIG_IGN)}
    try:
        for number in taken:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old)


@contextmanager
def unwinding() -> Iterator[None]:
    """Raise ``Terminated`` in the main thread when SIGTERM or SIGHUP comes while the block runs.

    Only the first one does: what follows is the cleaning up, which must come to its end. An error on that way (a terminal that has gone)
    does not hide why the command ended. One that came where Python lets no error out, such as in a finalizer, does not count.
    """
    raised: weakref.ref[Terminated] | None = None
    over = False

    def under_way() -> Terminated | None:
        return None if raised is None else raised()

    def arrived(number: int, _frame: FrameType | None) -> None:
        nonlocal raised
        if over or under_way() is not None:
            return
        ended = Terminated(number)
        raised = weakref.ref(ended)
        try:
            raise ended
        finally:
            del ended  # its traceback holds this frame: a circle, in which it would live on

    with handling(_ENDING, arrived):
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Terminated) and (ended := under_way()) is not None:
                raise Terminated(ended.number) from error
            raise
        finally:
            over = True  # the block has ended: a signal that comes while the handlers are given back ends nothing any more
