"""The release agent as a service: waits for leases at the server, attends to several at once, and goes on through any absence of it.

Waiting is one request that the server holds open, so that an idle agent costs nothing. What is wrong with one lease keeps no other one
waiting. All that must outlive the process is in the state folder, so that it may be stopped and started at any moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager

from sandbox.customer.client import Client
from sandbox.customer.release import Decision, ReleaseAgent
from sandbox.errors import NotFoundError, ReleaseError, ServerError, StateError
from sandbox.wire import LeaseInfo

AT_ONCE = 4
"""Leases that are attended to at the same time: one that wants a bundle read from end to end holds up no other."""
HELD_SECONDS = 25.0
"""How long the server may hold the question open; then every lease that is still there is looked at again."""
AWAY_SECONDS = 5.0
"""Between two looks while the server is away."""


class ReleaseService:
    """Attends to every lease that comes. ``connect`` opens a connection of its own for each thread; ``make`` makes an agent on it."""

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Client]],
        make: Callable[[Client], ReleaseAgent],
        *,
        tell: Callable[[Decision], None],
        say: Callable[[str], None],
        at_once: int = AT_ONCE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``tell`` and ``say`` are called by one thread at a time. ``at_once`` of 1 attends in the calling thread: it may ask a person."""
        self._connect, self._make, self._tell, self._say, self._sleep = connect, make, tell, say, sleep
        self._at_once = at_once
        self._lock = threading.Lock()
        self._foreign: set[str] = set()
        self._running: dict[str, Future[Decision | None]] = {}

    def run(self, *, watch: bool) -> list[Decision]:
        """Attend until nothing waits any more, or with ``watch`` until interrupted; return the decisions (none with ``watch``).

        Raises ``ServerError`` without ``watch``.
        """
        decisions: list[Decision] = []
        away, mark = False, ""
        with self._connect() as control, ThreadPoolExecutor(self._at_once, thread_name_prefix="lease") as pool:
            while True:
                try:
                    found = control.waiting(mark=mark, wait=HELD_SECONDS)
                    mark = found.mark
                    decided = self._collect()  # before attending: what was done for a lease's last state must not hide its next one
                    if busy := self._attend_all(found.leases, pool):
                        wait(busy, return_when=FIRST_COMPLETED)
                        mark = ""  # look again: what was still being done was about an earlier state, perhaps
                    if not watch:
                        wait(self._running.values())
                        decided += self._collect()
                except ServerError as error:
                    if not watch:
                        raise
                    if not away:
                        self._say_one(f"{error.message}; going on when it answers")
                    away, mark = True, ""
                    self._sleep(AWAY_SECONDS)
                    continue
                if away:
                    self._say_one("the server answers again")
                away = False
                if not watch:
                    decisions += decided
                    if {info.id for info in found.leases} <= self._foreign | {decision.lease for decision in decisions}:
                        return decisions

    def _attend_all(self, leases: tuple[LeaseInfo, ...], pool: ThreadPoolExecutor) -> list[Future[Decision | None]]:
        """Attend to every lease; return what still goes on for leases that are here again."""
        busy = []
        for info in leases:
            if info.id in self._foreign:
                continue
            if info.id in self._running:
                busy.append(self._running[info.id])
                continue
            if self._at_once > 1:
                self._running[info.id] = pool.submit(self._attend, info)
                continue
            future: Future[Decision | None] = Future()
            future.set_result(self._attend(info))
            self._running[info.id] = future
        return busy

    def _collect(self) -> list[Decision]:
        """Return the decisions made since the last look. Raises what a lease was lost to: a server that is away, or a fault of ours."""
        done = {lease: future for lease, future in self._running.items() if future.done()}
        for lease in done:
            del self._running[lease]
        return [decision for future in done.values() if (decision := future.result()) is not None]

    def _attend(self, info: LeaseInfo) -> Decision | None:
        try:
            with self._connect() as control:
                decision = self._make(control).attend(info)
        except ReleaseError as error:
            self._foreign.add(info.id)
            self._say_one(f"{info.id}  left alone: {error.message}")
            return None
        except (StateError, NotFoundError):
            return None  # it moved on while the agent was at it: there is nothing left to decide
        if decision is not None:
            with self._lock:
                self._tell(decision)
        return decision

    def _say_one(self, text: str) -> None:
        with self._lock:
            self._say(text)
