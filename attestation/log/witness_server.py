"""A witness behind HTTP: the submission prefix of c2sp.org/tlog-witness on the standard library's server."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from attestation.log.witness import MAX_BODY_BYTES, TEXT_TYPE, Answer, Witness

SOCKET_SECONDS = 10.0


def witness_server(witness: Witness, address: tuple[str, int], log: Callable[[str], None]) -> ThreadingHTTPServer:
    """Return a server that is bound and not started yet. ``log`` takes a line a request."""

    class Handler(BaseHTTPRequestHandler):
        timeout = SOCKET_SECONDS
        protocol_version = "HTTP/1.1"
        server_version = "sealrig-witness"
        sys_version = ""

        def do_POST(self) -> None:
            """Answer ``add-checkpoint``."""
            size = self.headers.get("Content-Length", "")
            wanted = self.path.rpartition("/")[2] == "add-checkpoint"
            fits = size.isascii() and size.isdigit() and len(size) < 10 and int(size) <= MAX_BODY_BYTES
            # Where the body is not read the connection cannot be used again.
            self.close_connection = self.close_connection or not (wanted and fits)
            if not wanted:
                self._answer(Answer(404, "unknown address\n"))
            elif not fits:
                self._answer(Answer(413 if size.isdigit() else 411, f"at most {MAX_BODY_BYTES} bytes, with their length\n"))
            else:
                self._add(self.rfile.read(int(size)))

        def _add(self, body: bytes) -> None:
            try:
                answer = witness.add_checkpoint(body, int(time.time()))
            except (OSError, sqlite3.Error) as error:
                log(f"what was seen could not be kept: {type(error).__name__}: {error}")
                answer = Answer(500, "what was seen could not be kept\n")
            self._answer(answer)

        def do_GET(self) -> None:
            """Show the witness's key."""
            self._answer(
                Answer(200, f"{witness.verifier.text}\n") if self.path.rpartition("/")[2] == "vkey" else Answer(404, "unknown address\n")
            )

        def _answer(self, answer: Answer) -> None:
            raw = answer.body.encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.media_type or TEXT_TYPE)
            self.send_header("Content-Length", str(len(raw)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name in the standard library)
            log(format % args)

    server = ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    return server
