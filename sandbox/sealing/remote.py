"""A bundle on a server, read by HTTP ranges (RFC 9110, section 14): only what is asked for, bounded in time, resumed when it comes back.

Nothing here is trusted: a server that sends other bytes makes the reader's authentication fail, one that sends nothing makes a read fail.
The standard library's client, because a view must be there within a tenth of a second.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sandbox.errors import AccessError, BundleError, NotFoundError, SealrigError, ServerError
from sandbox.sealing.format import MAX_HEADER_BYTES
from sandbox.sealing.source import cut_short

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SOCKET_SECONDS = 5.0
ANSWER_SECONDS = 60.0
"""The longest that one answer may take, headers included, however slowly its bytes drip."""
MAX_IDLE = 8
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_SPAN = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class _BusyError(Exception):
    """The server asks to try again."""


class _Timely(io.RawIOBase):
    """What a socket receives until ``ANSWER_SECONDS`` have passed since this was made; a socket's own time limit is for each piece anew."""

    def __init__(self, received: io.RawIOBase, sock: socket.socket) -> None:
        self._received, self._sock = received, sock
        self._until = time.monotonic() + ANSWER_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        if left < SOCKET_SECONDS:
            self._sock.settimeout(left)
        return self._received.readinto(buffer)

    def close(self) -> None:
        self._received.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer that is bounded in all, not only for each piece that is received."""

    def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:  # noqa: ANN401  (the base class's own)
        super().__init__(sock, *args, **named)
        self.fp = io.BufferedReader(_Timely(self.fp.detach(), sock))


class HttpSource:
    """A ``Source`` behind one URL. Safe for use by many threads; each takes a connection of its own while it reads."""

    def __init__(self, url: str, token: str, digest: str, *, patience: float) -> None:
        """Read the bundle's first bytes, and its size. ``digest`` is its name, which the server sends back as its ETag.

        A read waits ``patience`` seconds for a server that does not answer; the ones after it ask once, until it answers again.

        Raises ``NotFoundError`` and ``AccessError`` for a refusal, ``ServerError`` for no answer or one that is not as agreed.
        """
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = _tls() if parts.scheme == "https" else None
        self._path, self._token, self._etag = parts.path, token, f'"{digest}"'
        self._patience = patience
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._away = False
        self.fetched = 0
        """Bytes of the bundle that came so far."""
        self._size = -1
        self._first = self._fetch(0, MAX_HEADER_BYTES)

    @property
    def size(self) -> int:
        """How many bytes the bundle has."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``. Raises ``BundleError`` past the end, ``ServerError`` after bounded retries."""
        if offset + length > self._size:
            raise cut_short(self._size, offset + length)
        if offset + length <= len(self._first):
            return self._first[offset : offset + length]
        return self._fetch(offset, offset + length) if length else b""

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _fetch(self, start: int, end: int) -> bytes:
        deadline = time.monotonic() + (0 if self._away else self._patience)
        pause = _FIRST_PAUSE
        while True:
            connection = self._take()
            reused = connection.sock is not None
            try:
                data = self._once(connection, start, end)
            except (OSError, http.client.HTTPException, _BusyError) as error:
                connection.close()
                self.close()  # a server that was started anew knows none of them
                if reused:
                    continue
                if time.monotonic() + pause > deadline:
                    self._away = True
                    raise ServerError(
                        f"the server did not answer: {type(error).__name__}", rule="bundle-server", seen=str(error)[:200],
                        wanted="a range of the bundle", fix="check the network and the server; reads go on when it is back",
                    ) from error  # fmt: skip
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except SealrigError:
                connection.close()
                raise
            else:
                self._away = False
                self._give_back(connection)
                return data

    def _once(self, connection: http.client.HTTPConnection, start: int, end: int) -> bytes:
        """Ask for one range. Raises ``SealrigError`` for an answer that asking again would not change."""
        headers = {
            "Range": f"bytes={start}-{end - 1}", "If-Range": self._etag, "Accept-Encoding": "identity", "User-Agent": "sealrig-view",
            "Authorization": f"Bearer {self._token}",
        }  # fmt: skip
        if connection.sock is not None:
            connection.sock.settimeout(SOCKET_SECONDS)  # the last answer may have left it with less
        connection.request("GET", self._path, headers=headers)
        answer = connection.getresponse()
        if answer.status in _RETRIED:
            raise _BusyError(f"status {answer.status}")
        if answer.status != 206:
            raise _refused(answer.status)
        span = _SPAN.fullmatch(answer.getheader("Content-Range", ""))
        size = int(span[3]) if span else -1
        last = min(end, size)
        if (
            span is None or (int(span[1]), int(span[2]) + 1) != (start, last) or answer.getheader("ETag") != self._etag
            or answer.length != last - start or self._size not in {-1, size}
        ):  # fmt: skip
            raise ServerError("the server sent another range", rule="bundle-range", seen=str(answer.getheader("Content-Range"))[:100],
                              wanted=f"bytes {start}-{end - 1} of {self._etag}",
                              fix="ask the operator which server answers here")  # fmt: skip
        data = answer.read(last - start)  # at once: the standard library receives it in its place
        if len(data) != last - start:
            raise http.client.IncompleteRead(b"", last - start - len(data))
        answer.read()  # nothing is left; this ends the answer, so that the connection can be used again
        with self._lock:
            self._size = size
            self.fetched += last - start
        return data

    def _take(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=SOCKET_SECONDS)
            if self._tls is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=SOCKET_SECONDS, context=self._tls)
        )
        connection.response_class = _Answer
        return connection

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()


def content_url(server: str, digest: str) -> str:
    """Return where a server has the ciphertext of a bundle."""
    return f"{server.rstrip('/')}/v1/bundles/{digest}/content"


def _tls() -> ssl.SSLContext:
    # The same roots as the rest of the program, which asks httpx: certifi's, or those that SSL_CERT_FILE names.
    import certifi

    context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _refused(status: int) -> SealrigError:
    details = {"rule": "bundle-server", "seen": str(status), "wanted": "206", "fix": "see 'sealrig bundle list'"}
    if status == 404:
        return NotFoundError("the server has no such bundle, or not for this token", **details)
    if status in {401, 403}:
        return AccessError("the server does not let this token read the bundle", **details)
    if status == 416:
        return BundleError("the bundle on the server is shorter than it says", **details)
    return ServerError("the server does not answer ranges", **details)
