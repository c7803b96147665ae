"""Resumable upload of one bundle (tus 1.0.0, https://tus.io/protocols/resumable-upload): never a byte twice that the server has.

The address of an unfinished upload is remembered, so that a later ``push`` of the same file goes on where this one stopped. What
is not a sealed bundle is never uploaded. An upload counts as done once the server shows the bundle, and not when it has all bytes: it
hashes and stores them first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from attestation.signing import b64encode
from sandbox.customer.client import Client
from sandbox.customer.http import FIRST_PAUSE, LONGEST_PAUSE, RemoteError
from sandbox.customer.state import State
from sandbox.errors import BundleError, BundleTamperedError, InputError, NotFoundError, SealrigError, ServerError, StateError
from sandbox.sealing.format import MAX_HEADER_BYTES, read_header
from sandbox.sealing.hashing import bundle_digest

TUS_VERSION = "1.0.0"
PIECE_BYTES = 64 * 1024 * 1024
"""One PATCH; the server acknowledges each durably."""
CHUNK_BYTES = 1024 * 1024
LOCKED = 423
PATIENCE_SECONDS = 120.0
"""How long an upload goes on trying without one more byte acknowledged; long enough for a server's restart."""

Progress = Callable[[int, int], None]
_PASSING = {"offset-mismatch", "upload-locked", "storage-unavailable"}


@dataclass(frozen=True)
class Pushed:
    """A bundle that is on the server. ``sent`` counts the bytes that this call had to send."""

    digest: str
    size: int
    sent: int


def push(
    client: Client,
    path: Path,
    state: State,
    *,
    progress: Progress | None = None,
    hashing: Progress | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Pushed:
    """Upload the bundle at ``path`` unless the server has it.

    ``hashing`` and ``progress`` are called with bytes done and in all. Raises ``BundleError`` for what is no bundle, the server's
    refusal, or ``ServerError`` once ``patience`` seconds have passed without progress; a later call resumes. Hashing and storing on the
    server count as progress.
    """
    first = _first_bytes(path)
    size = path.stat().st_size
    digest = bundle_digest(path, hashing)
    state.remember_header(digest, first)
    try:
        known = client.bundle(digest)
    except NotFoundError:
        pass
    else:
        return Pushed(digest, known.size, 0)
    upload = _Upload(client, state, path, digest=digest, size=size, progress=progress or _ignore)
    sent = upload.run(patience)
    state.forget_upload(client.base, digest)
    return Pushed(digest, size, sent)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(MAX_HEADER_BYTES)
    try:
        read_header(first)
    except BundleError as error:
        raise type(error)(
            f"{path} is not uploaded: {error.message}",
            **{**error.details, "fix": f"seal it first: sealrig seal {path} -o {path.name}.sealed"},
        ) from error
    return first


class _Upload:
    """One bundle on its way: where it goes on, and how much is there."""

    def __init__(self, client: Client, state: State, path: Path, *, digest: str, size: int, progress: Progress) -> None:
        self._client, self._path, self._state = client, path, state
        self._digest, self._size, self._progress = digest, size, progress
        self._sent = 0
        self._whole = False

    def run(self, patience: float) -> int:
        """Send what is missing, wait for the bundle, return the bytes sent. Retries while there is progress every ``patience`` seconds."""
        offset = -1
        pause = FIRST_PAUSE
        deadline = time.monotonic() + patience
        while True:
            try:
                location, there = self._where()
                self._whole = self._whole or there == self._size
                if there > offset:
                    offset, pause, deadline = there, FIRST_PAUSE, time.monotonic() + patience
                self._progress(offset, self._size)
                while offset < self._size:
                    offset = self._piece(location, offset)
                    pause, deadline = FIRST_PAUSE, time.monotonic() + patience
                self._client.bundle(self._digest)
            except (ServerError, StateError, RemoteError, NotFoundError) as error:
                if _at_work(error):
                    self._whole, deadline = True, time.monotonic() + patience
                elif not _passing(error) or time.monotonic() + pause > deadline:
                    raise
                self._client.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                return self._sent

    def _where(self) -> tuple[str, int]:
        """Return the upload's address and offset: the remembered one if the server still has it, else a new one."""
        location = self._state.upload(self._client.base, self._digest)
        if location is not None:
            try:
                answer = self._client.request("HEAD", self._client.same_origin(location), headers={"Tus-Resumable": TUS_VERSION})
            except SealrigError as error:
                # An upload that has expired, or whose head the server no longer knows, starts again; a server that is away does not.
                if isinstance(error, ServerError) and not _head_refused(error):
                    raise
                self._state.forget_upload(self._client.base, self._digest)
                if self._whole:
                    raise self._given_up() from error
            else:
                return location, _offset(answer.headers.get("upload-offset"), self._size)
        metadata = f"digest {b64encode(self._digest.encode())},filetype {b64encode(b'application/vnd.sealrig.bundle')}"
        answer = self._client.request(
            "POST",
            "/v1/uploads",
            headers={"Tus-Resumable": TUS_VERSION, "Upload-Length": str(self._size), "Upload-Metadata": metadata},
        )
        location = self._client.same_origin(answer.headers.get("location", "/"))
        self._state.remember_upload(self._client.base, self._digest, location)
        return location, 0

    def _piece(self, location: str, offset: int) -> int:
        """Send one PATCH from ``offset`` and return the offset that the server acknowledges."""
        end = min(offset + PIECE_BYTES, self._size)
        self._whole = end == self._size
        answer = self._client.request(
            "PATCH",
            location,
            content=self._bytes(offset, end),
            headers={
                "Tus-Resumable": TUS_VERSION,
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(end - offset),
            },
        )
        there = _offset(answer.headers.get("upload-offset"), self._size)
        if there <= offset:
            raise ServerError(
                "the server acknowledged nothing", rule="tus-offset", seen=str(there), wanted=f"over {offset}", fix="push again"
            )
        return there

    def _given_up(self) -> BundleError:
        """Return the error for an upload that ended without a bundle after its last byte: sending it all again would end likewise."""
        return BundleTamperedError(
            "the server had all bytes of the upload and gave it up: they were not those of the bundle",
            rule="upload-digest",
            seen="no bundle",
            wanted=self._digest,
            fix="check that nothing changes the file ('sealrig inspect'), then push again",
        )

    def _bytes(self, offset: int, end: int) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(offset)
            while offset < end:
                chunk = file.read(min(CHUNK_BYTES, end - offset))
                if not chunk:
                    raise InputError(f"{self._path} became shorter during the upload", rule="bundle-stable", seen=f"{offset} bytes",
                                     wanted=f"{self._size} bytes", fix="seal it again, then push")  # fmt: skip
                yield chunk
                offset += len(chunk)
                self._sent += len(chunk)
                self._progress(offset, self._size)


def _offset(text: str | None, size: int) -> int:
    if text is None or not text.isascii() or not text.isdigit() or not 0 <= int(text[:20]) <= size:
        raise ServerError("the server's upload offset makes no sense", rule="tus-offset", seen=str(text)[:40], wanted=f"0 to {size}",
                          fix="push again")  # fmt: skip
    return int(text)


def _passing(error: SealrigError) -> bool:
    """Say whether trying again can help: the server is away or busy, or has another offset than we thought."""
    return isinstance(error, (ServerError, StateError, NotFoundError)) or error.code in _PASSING


def _at_work(error: SealrigError) -> bool:
    """Say whether the server is hashing or storing what it has: to a HEAD, which has no body, it then answers that the upload is locked."""
    return isinstance(error, ServerError) and error.details.get("status") == LOCKED


def _head_refused(error: ServerError) -> bool:
    """Say whether the server answered a HEAD with no: the answer has no body, so only its status says that the upload is gone."""
    return error.details.get("status") in {400, 403, 404, 409, 410}


def _ignore(_done: int, _total: int) -> None:
    """Take progress and show none."""
