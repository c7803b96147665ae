"""What tus 1.0.0 wants of every request and answer, refusals included: its version, and the method that a proxy did not let through.

Pure ASGI: nothing is spooled. The requests themselves are understood in ``uploads``.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

VERSION = "1.0.0"
PREFIX = "/v1/uploads"
_METHODS = {b"HEAD", b"PATCH", b"DELETE"}
"""What ``X-HTTP-Method-Override`` may ask for instead of POST: what some proxies and programs cannot send."""


class Tus:
    """Put the version on every answer below ``PREFIX``, and take a request by the method that it names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http" or not (scope["path"] == PREFIX or scope["path"].startswith(PREFIX + "/")):
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                unsupported = [(b"tus-version", VERSION.encode())] if message["status"] == 412 else []
                message["headers"] = [*message["headers"], (b"tus-resumable", VERSION.encode()), *unsupported]
            await send(message)

        wanted = dict(scope["headers"]).get(b"x-http-method-override", b"")
        if scope["method"] == "POST" and wanted in _METHODS:
            # In a copy: for the server below it stays a POST, whose answer may have a body.
            scope = {**scope, "method": wanted.decode()}
        await self._app(scope, receive, marked)
