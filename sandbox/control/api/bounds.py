"""Bodies are bounded while they arrive, whatever length they claim, and every request is counted. Pure ASGI: nothing is spooled."""

from __future__ import annotations

import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.control.metrics import Metrics
from sandbox.wire import MAX_BODY_BYTES

RAW_PREFIX = "/v1/uploads/"
"""Below here bodies are bundles: bounded by their own announced length, streamed to disk."""


class BoundedBodies:
    """Refuse a request whose body is over ``MAX_BODY_BYTES``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what arrives."""
        if scope["type"] != "http" or scope["path"].startswith(RAW_PREFIX):
            await self._app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise HTTPException(413, f"a request body has at most {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, counted, send)


def _with_defaults(headers: list[tuple[bytes, bytes]], path: str) -> list[tuple[bytes, bytes]]:
    """Add what every answer carries unless its route said otherwise: API answers are never cached, types never guessed."""
    there = {name.lower() for name, _ in headers}
    wanted = [(b"x-content-type-options", b"nosniff"), *([(b"cache-control", b"no-store")] if path.startswith("/v1/") else [])]
    return [*headers, *(pair for pair in wanted if pair[0] not in there)]


class Counted:
    """Count requests and their time by route template, never by path: paths hold ids."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Measure one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_defaults(list(message["headers"]), scope["path"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()
            if "wait=" not in scope.get("query_string", b"").decode("latin-1"):
                self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
