"""One connection to a control plane: bounded answers, typed problems, retries only where asking twice is safe.

The token goes to the one origin that it was given for: redirects are not followed, and plain HTTP is accepted for loopback only.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from sandbox.errors import LimitError, SealrigError, ServerError, UsageError
from sandbox.wire import Problem

MAX_JSON_BYTES = 16 * 1024 * 1024
"""The largest JSON answer that is read."""
MAX_PROBLEM_BYTES = 1024 * 1024
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""How long a request may stay without any answer; long polls add their own wait."""
PATIENCE_SECONDS = 15.0
"""How long a request is tried again when the server does not answer."""
FIRST_PAUSE = 0.1
NOTICED_PAUSE = 4 * FIRST_PAUSE
"""The pause from which on a person is told: before it, trying again takes no time that anybody notices."""
LONGEST_PAUSE = 3.0

_M = TypeVar("_M", bound=BaseModel)
RETRIED_STATUS = (429, 502, 503, 504)
"""What a server answers that cannot take a request right now, or a proxy whose server is away."""
_CODE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE"}


class RemoteError(SealrigError):
    """The server refused with a code that this side has no class for. ``code`` is the server's; its status stands in the details."""

    code = "server-refused"

    def __init__(self, code: str, message: str, **details: object) -> None:
        super().__init__(message, **details)
        self.__dict__["code"] = code


@dataclass(frozen=True)
class Answer:
    """A whole answer: status, headers (lower case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def model(self, model: type[_M]) -> _M:
        """Parse the body. Raises ``ServerError`` where it is not as agreed; what a newer server adds is passed over."""
        try:
            return model.model_validate_json(self.body, extra="ignore")
        except ValidationError as error:
            raise _not_agreed(error) from error


class Connection:
    """Requests to one server, safe for use by several threads. ``sleep`` and ``transport`` are for tests."""

    def __init__(
        self,
        server: str,
        token: str | None,
        *,
        patience: float | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        """Take the server's address and the bearer token; ``waiting`` is told, once a request, that it is tried again.

        Raises ``UsageError`` for an address that is none, or that is not safe.
        """
        self.base = check_server(server)
        self.patience = PATIENCE_SECONDS if patience is None else patience
        self._waiting = waiting
        self.sleep = sleep
        headers = {"User-Agent": "sealrig", "Accept-Encoding": "identity"}
        if token:
            if not token.isascii() or not token.isprintable():
                raise UsageError("the token has characters that no token has", rule="token", seen="control or non-ASCII characters",
                                 wanted="the token as it was issued", fix="sealrig config login")  # fmt: skip
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.Client(
            base_url=self.base,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            transport=transport,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int | float] | None = None,
        wait: float = 0,
        repeatable: bool | None = None,
        max_bytes: int = MAX_JSON_BYTES,
    ) -> Answer:
        """Send a request and return its whole answer (status below 400).

        ``repeatable`` says that asking twice has the effect of asking once; it is known for GET, HEAD, PUT and DELETE. Raises the
        error that the server's problem names, ``ServerError`` when it does not answer, ``LimitError`` for an answer over ``max_bytes``.
        """
        again = method in _IDEMPOTENT if repeatable is None else repeatable
        timeout = httpx.Timeout(ANSWER_SECONDS + wait, connect=CONNECT_SECONDS)
        deadline = time.monotonic() + self.patience
        pause = FIRST_PAUSE
        while True:
            request = self._client.build_request(
                method,
                path,
                json=json,
                content=content,
                headers=dict(headers or {}),
                params=None if params is None else dict(params),  # even empty ones would take the place of a query in ``path``
                timeout=timeout,
            )
            try:
                answer = self._once(request, max_bytes)
            except httpx.HTTPError as error:
                # A connection that was never made carried nothing, so any request may be tried again.
                if not (again or isinstance(error, httpx.ConnectError)) or time.monotonic() + pause > deadline:
                    raise unreachable(self.base, error) from error
            else:
                if answer.status < 400:
                    return answer
                if not (again and answer.status in RETRIED_STATUS) or time.monotonic() + pause > deadline:
                    raise problem_error(answer)
            if self._waiting is not None and pause == NOTICED_PAUSE:
                self._waiting(f"{self.base} does not answer; trying for {self.patience:.0f} s")
            self.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  (spreads clients out; no secret)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _once(self, request: httpx.Request, max_bytes: int) -> Answer:
        response = self._client.send(request, stream=True)
        try:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > max_bytes:
                    raise LimitError(
                        "the server's answer is too large",
                        rule="answer-size",
                        seen=f"over {max_bytes} bytes",
                        wanted=f"≤ {max_bytes} bytes",
                        fix="ask the operator which server answers here",
                    )
            return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, bytes(body))
        finally:
            response.close()

    def stream(self, path: str, *, start: int = 0) -> Iterator[bytes]:
        """Yield a download from byte ``start`` on. Raises ``ServerError`` where it breaks off; the caller resumes."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            with self._client.stream("GET", path, headers=headers) as response:
                if response.status_code >= 400:
                    raise problem_error(Answer(response.status_code, {}, _bounded(response)))
                if start and response.status_code != 206:
                    raise ServerError("the server ignores ranges", rule="http-range", seen=str(response.status_code), wanted="206",
                                      fix="ask the operator which server answers here")  # fmt: skip
                # As they come: gathering them first would lose what arrived before a break.
                yield from response.iter_bytes()
        except httpx.HTTPError as error:
            raise unreachable(self.base, error) from error

    def same_origin(self, location: str) -> str:
        """Return the path of a ``Location`` on this server. Raises ``ServerError`` for one elsewhere, where the token must not go."""
        target = httpx.URL(self.base).join(location)
        here = httpx.URL(self.base)
        if (target.scheme, target.host, target.port) != (here.scheme, here.host, here.port):
            raise ServerError("the server points elsewhere", rule="same-origin", seen=f"{target.scheme}://{target.host}", wanted=self.base,
                              fix="ask the operator for the address under which the server knows itself")  # fmt: skip
        return target.raw_path.decode("ascii")


def check_server(server: str) -> str:
    """Return the address without a trailing slash. Raises ``UsageError``; plain HTTP is for loopback only."""
    parts = urlsplit(server)
    fix = "use an address such as https://sealrig.example or http://127.0.0.1:8700"
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UsageError(
            "the server's address is not usable", rule="server-address", seen=server[:200], wanted="https://HOST[:PORT]", fix=fix
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(
            "plain HTTP would send the token in the clear",
            rule="server-tls",
            seen=server[:200],
            wanted="https",
            fix="use https://, or a tunnel to loopback",
        )
    return server.rstrip("/")


def is_loopback(host: str) -> bool:
    """Say whether ``host`` is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unreachable(base: str, error: Exception) -> ServerError:
    """Return the error for a server that did not answer."""
    return ServerError(
        f"{base} did not answer: {type(error).__name__}",
        rule="server-answers",
        seen=str(error)[:200] or type(error).__name__,
        wanted="an answer",
        fix="check --server or SEALRIG_SERVER and the network, then try again; nothing is lost",
    )


def problem_error(answer: Answer) -> SealrigError:
    """Return the error that an answer of status 400 or more stands for."""
    try:
        problem = Problem.model_validate_json(answer.body)
    except ValidationError:
        return ServerError(
            f"the server answered {answer.status} without saying why",
            rule="problem-details",
            seen=answer.body[:120].decode("utf-8", "replace"),
            wanted="problem details",
            fix="check that --server is a Sealrig server",
            status=answer.status,
        )
    kind = _classes().get(problem.code)
    details: dict[str, Any] = {key: value for key, value in problem.details.items() if key not in {"self", "message", "code"}}
    if kind is not None:
        return kind(problem.detail, **details)
    return RemoteError(
        problem.code if _CODE.fullmatch(problem.code) else RemoteError.code, problem.detail, **{**details, "status": answer.status}
    )


def _classes() -> dict[str, type[SealrigError]]:
    found: dict[str, type[SealrigError]] = {}
    todo = [SealrigError]
    while todo:
        kind = todo.pop()
        if kind.__module__ == SealrigError.__module__:
            found.setdefault(kind.code, kind)
            todo += kind.__subclasses__()
    return found


def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_PROBLEM_BYTES:
            break
    return bytes(body[:MAX_PROBLEM_BYTES])


def _not_agreed(error: ValidationError) -> ServerError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the answer"
    return ServerError(
        "the server's answer is not as agreed", rule="wire", seen=f"{place}: {first['msg']}"[:300], wanted="the messages of this version",
        fix="use the same version of sealrig on both sides",
    )  # fmt: skip
