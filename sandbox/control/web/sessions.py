"""Who is signed in to the console.

A session is a random name in a cookie (HttpOnly, SameSite=Strict); the token itself is checked once and never leaves the server
again. Sessions live in this process only: a restart signs everybody out.
"""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass
from threading import Lock

SESSION_SECONDS = 8 * 3600
MAX_SESSIONS = 10_000
COOKIE = "sealrig-session"


@dataclass(frozen=True, repr=False)
class ConsoleSession:
    """A signed-in person. ``token`` is the id of the token (not its secret); ``csrf`` must come back with every form."""

    token: str
    csrf: str
    expires: float


class Sessions:
    """The sessions of one process; thread-safe."""

    def __init__(self) -> None:
        self._sessions: dict[str, ConsoleSession] = {}
        self._lock = Lock()

    def open(self, token: str) -> str:
        """Start a session for the token with this id and return its name, 256 random bits as text."""
        name = secrets.token_urlsafe(32)
        now = time.monotonic()
        with self._lock:
            self._sessions = {key: held for key, held in self._sessions.items() if held.expires > now}
            while len(self._sessions) >= MAX_SESSIONS:
                self._sessions.pop(next(iter(self._sessions)))
            self._sessions[name] = ConsoleSession(token, secrets.token_urlsafe(32), now + SESSION_SECONDS)
        return name

    def find(self, name: str | None) -> ConsoleSession | None:
        """Return the session of this name unless it has ended."""
        with self._lock:
            session = self._sessions.get(name or "")
        return session if session is not None and session.expires > time.monotonic() else None

    def close(self, name: str | None, csrf: str) -> None:
        """End a session, if the form that asked for it came from its own page."""
        session = self.find(name)
        if session is not None and hmac.compare_digest(session.csrf, csrf):
            with self._lock:
                self._sessions.pop(name or "", None)
