"""Wakes long-polling requests when something changed. In RAM only: a waiter that is missed asks again when its time is up."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Bell:
    """Any thread may ring a topic; coroutines of one event loop wait for topics."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop in which requests wait."""
        self._loop, self._closed = loop, False

    def ring(self, *topics: str) -> None:
        """Wake all who wait for one of ``topics``. Thread-safe, never blocks."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        with self._lock:
            woken = [event for topic in topics for event in self._waiters.get(topic, ())]
        for event in woken:
            loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End all waiting, now and later, so that the server can stop."""
        with self._lock:
            self._closed = True
            topics = list(self._waiters)
        self.ring(*topics)

    async def wait_for(self, topics: tuple[str, ...], ask: Callable[[], Awaitable[T | None]], seconds: float) -> T | None:
        """Return the first answer of ``ask`` that is not None; ask at once and after each ring. None once ``seconds`` are over.

        The waiter stands before the first question, so that a change between question and wait is not missed.
        """
        event = asyncio.Event()
        with self._lock:
            for topic in topics:
                self._waiters[topic].add(event)
        try:
            return await self._ask_until(event, ask, asyncio.get_running_loop().time() + seconds)
        finally:
            with self._lock:
                for topic in topics:
                    self._waiters[topic].discard(event)
                    if not self._waiters[topic]:
                        del self._waiters[topic]

    async def _ask_until(self, event: asyncio.Event, ask: Callable[[], Awaitable[T | None]], end: float) -> T | None:
        while True:
            event.clear()
            answer = await ask()
            left = end - asyncio.get_running_loop().time()
            if answer is not None or left <= 0 or self._closed:
                return answer
            try:
                await asyncio.wait_for(event.wait(), left)
            except TimeoutError:
                return await ask()
