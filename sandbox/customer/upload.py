"""Resumable upload of one bundle (tus 1.0.0, https://tus.io/protocols/resumable-upload): never a byte twice that the server has.

A large bundle travels as parts on several lines at once, which the server joins (tus's concatenation). The addresses of an unfinished
upload are remembered, so that a later ``push`` of the same file goes on where this one stopped. What is not a sealed bundle is never
uploaded. An upload counts as done once the server shows the bundle, and not when it has all bytes: it hashes and stores them first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attestation.signing import b64encode
from sandbox.customer.client import Client
from sandbox.customer.http import RemoteError
from sandbox.customer.sending import TUS, Patience, Progress, Range, Sender
from sandbox.customer.state import State
from sandbox.errors import BundleError, BundleTamperedError, NotFoundError, SealrigError
from sandbox.sealing.format import MAX_HEADER_BYTES, read_header
from sandbox.sealing.hashing import bundle_digest

PATIENCE_SECONDS = 120.0
"""How long an upload goes on trying without one more byte acknowledged; long enough for a server's restart."""
LINES = 4
PARALLEL_BYTES = 64 * 1024 * 1024
"""From this size on a bundle travels on ``LINES`` lines: below it, beginning and joining parts takes longer than it saves."""
ALIGNMENT = 1024 * 1024
"""Parts start at multiples of this, so that a server that writes them into one file can share their blocks."""


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
    sender = Sender(client, path, size, patience=patience, progress=progress or _ignore)
    _Upload(client, state, sender, digest=digest, size=size, patience=patience).run()
    client.bundle(digest)
    state.forget_upload(client.base, digest)
    return Pushed(digest, size, sender.sent)


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
    """One bundle on its way: the uploads that it goes to, and what they become."""

    def __init__(self, client: Client, state: State, sender: Sender, *, digest: str, size: int, patience: float) -> None:
        self._client, self._state, self._sender = client, state, sender
        self._digest, self._size, self._seconds = digest, size, patience

    def run(self) -> None:
        """Send what is missing, and have it joined where it went as parts."""
        gone: SealrigError | None
        while True:
            ranges = self._begun() or self._begin()
            try:
                self._sender.fill(ranges)
                gone = None
            except NotFoundError as error:
                gone = error
            if len(ranges) > 1:
                # Also where a part is gone: it may have been joined by a request whose answer nobody heard. Asking again tells.
                gone = self._join(ranges)
            if gone is None:
                return
            self._state.forget_upload(self._client.base, self._digest)
            if all(part.ended for part in ranges):
                raise self._given_up() from gone

    def _begun(self) -> list[Range] | None:
        """Return the ranges of an upload that was begun before."""
        locations = (self._state.upload(self._client.base, self._digest) or "").split()
        cuts = [(0, self._size)] if len(locations) == 1 else self._cuts()
        if len(locations) != len(cuts):
            return None
        return [Range(location, start, end) for location, (start, end) in zip(locations, cuts, strict=True)]

    def _begin(self) -> list[Range]:
        cuts = self._cuts() if self._size >= PARALLEL_BYTES and self._server_joins() else [(0, self._size)]
        ranges: list[Range] = []
        try:
            for start, end in cuts:
                ranges.append(Range(self._create(end - start, part=len(cuts) > 1), start, end, there=0))
        except SealrigError:
            # Room for some parts is of no use: kept, it would count as the tenant's until they expire.
            for part in ranges:
                with contextlib.suppress(SealrigError):
                    self._client.request("DELETE", part.location, headers=TUS)
            raise
        self._state.remember_upload(self._client.base, self._digest, " ".join(part.location for part in ranges))
        return ranges

    def _cuts(self) -> list[tuple[int, int]]:
        step = -(-self._size // (LINES * ALIGNMENT)) * ALIGNMENT
        return [(start, min(start + step, self._size)) for start in range(0, self._size, step)]

    def _server_joins(self) -> bool:
        try:
            answer = self._persistently("OPTIONS", {})
        except NotFoundError:
            return False
        return "concatenation" in answer.get("tus-extension", "").split(",")

    def _create(self, size: int, *, part: bool) -> str:
        kind = {"Upload-Concat": "partial"} if part else {"Upload-Metadata": self._metadata()}
        answer = self._persistently("POST", {"Upload-Length": str(size), **kind})
        return self._client.same_origin(answer.get("location", "/"))

    def _join(self, ranges: Sequence[Range]) -> SealrigError | None:
        """Have the server make one bundle of the parts; return the error where it has not all of them any more."""
        parts = " ".join(part.location for part in ranges)
        try:
            self._persistently("POST", {"Upload-Concat": f"final;{parts}", "Upload-Metadata": self._metadata()})
        except NotFoundError as error:
            return error
        except RemoteError as error:
            if error.code != "upload-expired":
                raise
            return error
        return None

    def _persistently(self, method: str, headers: dict[str, str]) -> dict[str, str]:
        """Return the headers of an answer from the address where uploads begin."""
        patience = Patience(self._client, self._seconds)
        return dict(patience.persist(lambda: self._client.request(method, "/v1/uploads", headers={**TUS, **headers})).headers)

    def _metadata(self) -> str:
        return f"digest {b64encode(self._digest.encode())},filetype {b64encode(b'application/vnd.sealrig.bundle')}"

    def _given_up(self) -> BundleError:
        """Return the error for an upload that ended without a bundle after its last byte: sending it all again would end likewise."""
        return BundleTamperedError(
            "the server had all bytes of the upload and gave it up: they were not those of the bundle",
            rule="upload-digest",
            seen="no bundle",
            wanted=self._digest,
            fix="check that nothing changes the file ('sealrig inspect'), then push again",
        )


def _ignore(_done: int, _total: int) -> None:
    """Take progress and show none."""
