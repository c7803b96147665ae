"""A server that answers byte ranges of one bundle, counts what it sends, and fails on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.patience import LONG
from tests.ports import free_port

TOKEN = "t0ken"


class Ranged:
    """``trouble`` is what goes wrong with each answer; while ``gate`` is closed no answer comes."""

    def __init__(self, raw: bytes, digest: str) -> None:
        self.raw, self.digest, self.etag = raw, digest, f'"{digest}"'
        self.trouble = ""
        self.gate = threading.Event()
        self.gate.set()
        self.sent = 0
        self.asked: list[tuple[int, int]] = []
        self.address = ""
        self.port = free_port()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen, on the same port as before if it was stopped."""
        ranged = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                ranged.answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                """Say nothing: clients are killed."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and break those that are there off with their next request."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        self.gate.wait(LONG)
        if self._server is None:
            request.close_connection = True
            return
        if request.headers["Authorization"] != f"Bearer {TOKEN}" or request.path != f"/v1/bundles/{self.digest}/content":
            self._send(request, 404, b"{}", {})
            return
        if self.trouble.isdigit():
            self._send(request, int(self.trouble), b"{}", {})
            return
        first, last = (int(part) for part in request.headers["Range"].removeprefix("bytes=").split("-"))
        if self.trouble.startswith("drip"):
            self._drip(request, self.trouble)
            return
        data = self.raw[first : last + 1]
        self.asked.append((first, len(data)))
        span = f"bytes {first}-{first + len(data) - 1}/{len(self.raw)}"
        if self.trouble == "other range":
            span = f"bytes {first + 1}-{first + len(data)}/{len(self.raw)}"
        if self.trouble == "longer":
            span = f"bytes {first}-{first + len(data) - 1}/{len(self.raw) + 1}"
        if self.trouble == "other bytes":
            data = bytes(len(data))
        cut = len(data) // 2 if self.trouble == "cut" else len(data)
        etag = '"other"' if self.trouble == "other etag" else self.etag
        self._send(request, 206, data, {"Content-Range": span, "ETag": etag}, cut=cut)

    def _drip(self, request: BaseHTTPRequestHandler, what: str) -> None:
        """Send a byte now and then, of a header or of the bundle, for ever as it seems to a client."""
        first, last = (int(part) for part in request.headers["Range"].removeprefix("bytes=").split("-"))
        request.wfile.write(b"HTTP/1.1 206 Partial Content\r\nX-More: ")
        if what == "drip body":
            span = f"bytes {first}-{last}/{len(self.raw)}"
            request.wfile.write(f"\r\nContent-Range: {span}\r\nETag: {self.etag}\r\nContent-Length: {last - first + 1}\r\n\r\n".encode())
        while self.trouble == what:
            request.wfile.write(b"x")
            time.sleep(0.02)
        request.close_connection = True

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if status == 206:
            self.sent += len(body[:cut])  # before: a client that has all of it may ask at once how much that was
        request.wfile.write(body[:cut])
        if cut is not None and cut < len(body):
            request.close_connection = True


@contextmanager
def serving(raw: bytes, digest: str) -> Iterator[Ranged]:
    """Serve one bundle while the block runs."""
    ranged = Ranged(raw, digest)
    ranged.start()
    try:
        yield ranged
    finally:
        ranged.gate.set()
        ranged.stop()
