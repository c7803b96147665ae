"""The node's way to the control plane: outbound HTTP only, bounded, with retries.

Two kinds of failure are told apart: ``ServerError`` (no answer, or a broken one: try again later, a lease goes on meanwhile) and
every other ``SealrigError`` (the control plane understood and said no: trying again changes nothing).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from attestation.shape import place_of
from attestation.signing import b64encode
from sandbox.errors import AccessError, InputError, NotFoundError, SealrigError, ServerError, StateError
from sandbox.wire import (
    IncidentSubmission,
    LeaseInfo,
    NodeInfo,
    NodeRegistration,
    PollAnswer,
    PollRequest,
    Problem,
    QualificationSubmission,
    ReportSubmission,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from attestation.signing import Envelope

CONNECT_SECONDS = 10.0
CALL_SECONDS = 30.0
UPLOAD_CHUNK_BYTES = 8 * 2**20
DOWNLOAD_CHUNK_BYTES = 2**20
TUS_VERSION = "1.0.0"
_M = TypeVar("_M", bound=BaseModel)


class ControlClient:
    """One control plane, as one node. Safe for use by several threads."""

    def __init__(self, server: str, token: str, node: str, *, transport: httpx.BaseTransport | None = None) -> None:
        """Keep the address and the token; ``transport`` is for tests that run the server in the same process."""
        self.node = node
        self.server, self.token = server, token
        self._http = httpx.Client(
            base_url=server,
            headers={"Authorization": f"Bearer {token}", "User-Agent": "sealrig-node"},
            timeout=httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS),
            transport=transport,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def register(self, registration: NodeRegistration) -> NodeInfo:
        """Say what this node is."""
        answer = self._call("PUT", f"/v1/nodes/{self.node}", json=registration.model_dump(mode="json"))
        return _parsed(NodeInfo, answer)

    def qualify(self, envelope: Envelope) -> NodeInfo:
        """Send the signed qualification of this node's GPUs; the same one twice is one."""
        body = QualificationSubmission(qualification=envelope.to_json()).model_dump(mode="json")
        return _parsed(NodeInfo, self._call("PUT", f"/v1/nodes/{self.node}/qualification", json=body))

    def poll(self, request: PollRequest) -> PollAnswer:
        """Ask for work; held open for ``request.wait`` seconds at most. A server that does not know ``request.gpus`` is not told them."""
        body = request.model_dump(mode="json", exclude_none=True)
        try:
            answer = self._call("POST", f"/v1/nodes/{self.node}/poll", json=body, timeout=request.wait + CALL_SECONDS)
        except InputError:
            if request.gpus is None:
                raise
            return self.poll(request.model_copy(update={"gpus": None}))
        return _parsed(PollAnswer, answer)

    def report(self, lease: str, envelope: Envelope) -> LeaseInfo:
        """Send one signed report; the same one twice is one."""
        body = ReportSubmission(report=envelope.to_json()).model_dump(mode="json")
        return _parsed(LeaseInfo, self._call("POST", f"/v1/nodes/{self.node}/leases/{lease}/report", json=body))

    def incident(self, lease: str, envelope: Envelope) -> LeaseInfo:
        """Send one signed incident; the same one twice is one."""
        body = IncidentSubmission(incident=envelope.to_json()).model_dump(mode="json")
        return _parsed(LeaseInfo, self._call("POST", f"/v1/nodes/{self.node}/leases/{lease}/incidents", json=body))

    def put_log(self, lease: str, seq: int, chunk: bytes) -> None:
        """Send one sealed log chunk; the same one twice is one."""
        self._call(
            "PUT", f"/v1/nodes/{self.node}/leases/{lease}/logs/{seq}", content=chunk, headers={"Content-Type": "application/octet-stream"}
        )

    @contextlib.contextmanager
    def content(self, digest: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Open a bundle's ciphertext from byte ``start``; yields the place where the answer really starts, and its chunks."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with _transport_errors("download"), self._http.stream("GET", f"/v1/bundles/{digest}/content", headers=headers) as answer:
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                yield start, iter(())
                return
            if answer.is_error:
                answer.read()
                raise _refusal(answer)
            partial = answer.status_code == httpx.codes.PARTIAL_CONTENT
            yield (start if partial else 0), answer.iter_bytes(DOWNLOAD_CHUNK_BYTES)

    def upload(self, path: Path, digest: str, lease: str, *, go_on: Callable[[], None]) -> None:
        """Upload a sealed result through tus 1.0, in chunks, from where the server has it. ``go_on`` may raise to stop."""
        size = path.stat().st_size
        metadata = f"digest {b64encode(digest.encode())},lease {b64encode(lease.encode())}"
        headers = {"Tus-Resumable": TUS_VERSION, "Upload-Length": str(size), "Upload-Metadata": metadata}
        answer = self._call("POST", "/v1/uploads", headers=headers)
        place = answer.headers.get("Location", "")
        if not place:
            raise ServerError(
                "the upload was answered without a place", rule="tus", seen="no Location", wanted="Location", fix="update the server"
            )
        offset = int(answer.headers.get("Upload-Offset", "0"))
        with path.open("rb") as file:
            while offset < size:
                go_on()
                file.seek(offset)
                chunk = file.read(UPLOAD_CHUNK_BYTES)
                patch = {"Tus-Resumable": TUS_VERSION, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
                try:
                    done = self._call("PATCH", place, headers=patch, content=chunk, timeout=CALL_SECONDS * 4)
                except StateError:
                    done = self._call("HEAD", place, headers={"Tus-Resumable": TUS_VERSION})  # the server is elsewhere: ask where
                offset = int(done.headers.get("Upload-Offset", offset + len(chunk)))

    def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:  # noqa: ANN401  (httpx takes many kinds)
        with _transport_errors(f"{method} {path}"):
            answer = self._http.request(method, path, **arguments)
        if answer.is_error or answer.is_redirect:
            raise _refusal(answer)
        return answer


@contextlib.contextmanager
def _transport_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise ServerError(
            "the control plane did not answer",
            rule="server",
            seen=f"{type(error).__name__}: {error}"[:300],
            wanted=doing,
            fix="check the address and that the server runs; the node tries again by itself",
        ) from error


def _parsed(model: type[_M], answer: httpx.Response) -> _M:
    """Parse an answer; what a newer control plane adds is passed over."""
    try:
        return model.model_validate_json(answer.content, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ServerError(
            "the control plane answered something else than agreed",
            rule="server",
            seen=place_of(model, first["loc"])[:200],
            wanted=str(first["msg"])[:200],
            fix="run the same version on server and node",
        ) from None


_PASSING = {408, 423, 425, 429}
"""Refusals that end by themselves; 423 says that the server is still at work on what an earlier request sent."""
_KINDS: dict[int, type[SealrigError]] = {
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    409: StateError,
    413: InputError,
    422: InputError,
}


def _refusal(answer: httpx.Response) -> SealrigError:
    """Turn an error answer into the error that says whether trying again makes sense."""
    try:
        problem = Problem.model_validate_json(answer.content)
        detail, code, details = problem.detail, problem.code, problem.details
    except ValidationError:
        detail, code, details = f"status {answer.status_code}", "", {}
    kind = _KINDS.get(answer.status_code, InputError if answer.is_client_error and answer.status_code not in _PASSING else ServerError)
    return kind(f"the control plane: {detail}", **{"rule": code or "http", "seen": str(answer.status_code), **details})
