"""Asks the witnesses beside the writer: always for the newest checkpoint, again and again until they agree."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from attestation.errors import LogError
from attestation.log.errors import QuorumError
from attestation.log.state import Signed

Cosign = Callable[[str], Sequence[str]]
"""Takes a signed checkpoint; returns witnesses' signature lines. Raises ``QuorumError``."""

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 15.0


class Cosigning:
    """A thread that asks ``cosign``. ``agreed`` is called in it whenever there is something to ``take``."""

    def __init__(self, cosign: Cosign, agreed: Callable[[], None]) -> None:
        self._cosign, self._agreed = cosign, agreed
        self._changed = threading.Condition()
        self._offered: Signed | None = None
        self._result: tuple[Signed, Sequence[str]] | None = None
        self._problem: LogError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log-witnesses", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> LogError | None:
        """Why the last attempt failed; None after one that did not."""
        return self._problem

    def offer(self, signed: Signed) -> None:
        """Have this checkpoint cosigned; an older one that was offered before is let go."""
        with self._changed:
            self._offered = signed
            self._changed.notify_all()

    def take(self, seconds: float = 0.0) -> tuple[Signed, Sequence[str]] | None:
        """Return what was cosigned, once; wait for it up to ``seconds``, but no longer than until an attempt fails."""
        with self._changed:
            if seconds and self._problem is None:
                self._changed.wait_for(lambda: self._result is not None or self._problem is not None or self._closed, seconds)
            result, self._result = self._result, None
            return result

    def close(self) -> None:
        """Ask no more. An attempt that is under way ends by itself, unheard."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        pause = FIRST_RETRY_SECONDS
        while (signed := self._next()) is not None:
            problem: LogError | None = None
            lines: Sequence[str] = ()
            try:
                lines = self._cosign(signed.note)
            except LogError as error:
                problem = error
            except Exception as error:  # noqa: BLE001  (whatever it is, the log goes on, and the next attempt may succeed)
                problem = QuorumError("witnesses could not be asked", rule="quorum-lost", seen=f"{type(error).__name__}: {error}"[:200])
            with self._changed:
                self._problem = problem
                if problem is None:
                    self._result, pause = (signed, lines), FIRST_RETRY_SECONDS
                elif self._offered is None:
                    self._offered = signed
                self._changed.notify_all()
            if problem is None:
                self._agreed()
            else:
                self._rest(pause)
                pause = min(2 * pause, LAST_RETRY_SECONDS)

    def _next(self) -> Signed | None:
        with self._changed:
            self._changed.wait_for(lambda: self._offered is not None or self._closed)
            signed, self._offered = self._offered, None
            return None if self._closed else signed

    def _rest(self, seconds: float) -> None:
        """Wait between attempts, however many checkpoints are offered meanwhile."""
        until = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._closed or time.monotonic() >= until, seconds)
