"""Ranges of one file on their way into tus uploads: retried, counted and shown, on one line or on several at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sandbox.customer.client import Client
from sandbox.customer.http import FIRST_PAUSE, LONGEST_PAUSE, RemoteError
from sandbox.errors import InputError, NotFoundError, SealrigError, ServerError, StateError

TUS = {"Tus-Resumable": "1.0.0"}
PIECE_BYTES = 64 * 1024 * 1024
"""One PATCH; the server acknowledges each durably."""
CHUNK_BYTES = 1024 * 1024

Progress = Callable[[int, int], None]
_T = TypeVar("_T")
_LOCKED = 423
_GONE = {400, 403, 404, 409, 410}
_PASSING = {"offset-mismatch", "storage-unavailable"}


class Patience:
    """How long one thing is tried again: as long as there is progress every so many seconds."""

    def __init__(self, client: Client, seconds: float) -> None:
        self._client, self._seconds = client, seconds
        self.renew()

    def renew(self) -> None:
        """Note progress."""
        self._pause, self._deadline = FIRST_PAUSE, time.monotonic() + self._seconds

    def persist(self, step: Callable[[], _T]) -> _T:
        """Return what ``step`` returns, trying it again while that can help. A server that is at work on the upload makes progress."""
        while True:
            try:
                return step()
            except (ServerError, StateError, RemoteError) as error:
                if _at_work(error):
                    self._deadline = time.monotonic() + self._seconds
                elif not _passing(error) or time.monotonic() + self._pause > self._deadline:
                    raise
            self._client.sleep(self._pause)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)


@dataclass
class Range:
    """Bytes ``start`` up to, not with, ``end`` of the file, and the upload that they go to.

    ``there`` counts what the server has said it has (None: to be asked), ``shown`` what a person sees; ``ended`` says that the server
    may have had all of them.
    """

    location: str
    start: int
    end: int
    there: int | None = None
    best: int = -1
    shown: int = 0
    ended: bool = False

    @property
    def length(self) -> int:
        """All its bytes."""
        return self.end - self.start


class _StoppedError(Exception):
    """Another line has failed, or the person has interrupted the command."""


class Sender:
    """Sends one file, as often as it takes. ``sent`` counts the bytes that had to be sent."""

    def __init__(self, client: Client, path: Path, size: int, *, patience: float, progress: Progress) -> None:
        self._client, self._path, self._size, self._seconds, self._progress = client, path, size, patience, progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ranges: Sequence[Range] = ()
        self.sent = 0

    def fill(self, ranges: Sequence[Range]) -> None:
        """Send what the uploads lack, each on a line of its own. Raises the first error; ``NotFoundError`` says that an upload is gone."""
        self._ranges = ranges
        self._stopped.clear()
        if len(ranges) == 1:
            self._fill(ranges[0])
            return
        errors: list[Exception] = []

        def work(part: Range) -> None:
            try:
                self._fill(part)
            except Exception as error:  # noqa: BLE001  (raised again where the caller waits)
                errors.append(error)
                self._stopped.set()

        # Daemons: whoever interrupts the command does not wait for an answer that is still to come.
        lines = [threading.Thread(target=work, args=(part,), name="push", daemon=True) for part in ranges]
        try:
            for line in lines:
                line.start()
            for line in lines:
                line.join()
        except BaseException:
            self._stopped.set()
            raise
        if errors:
            raise errors[0]

    def _fill(self, part: Range) -> None:
        patience = Patience(self._client, self._seconds)
        patience.persist(lambda: self._go_on(part, patience))

    def _go_on(self, part: Range, patience: Patience) -> None:
        there, part.there = part.there, None  # whatever fails from here on, the server is asked
        if there is None:
            there = self._ask(part)
        if there > part.best:
            part.best = there
            patience.renew()
        self._show(part, there)
        while there < part.length:
            part.best = there = self._piece(part, there)
            patience.renew()

    def _ask(self, part: Range) -> int:
        try:
            answer = self._client.request("HEAD", self._client.same_origin(part.location), headers=TUS)
        except ServerError as error:
            # The answer to a HEAD has no body: only its status says that the upload is gone, or that the server is at work on all of it.
            if error.details.get("status") in _GONE:
                raise NotFoundError("the server does not have this upload any more", **error.details) from error
            part.ended = part.ended or _at_work(error)
            raise
        there = _offset(answer.headers.get("upload-offset"), part.length)
        part.ended = part.ended or there == part.length
        return there

    def _piece(self, part: Range, offset: int) -> int:
        """Send one PATCH from ``offset`` and return the offset that the server acknowledges."""
        end = min(offset + PIECE_BYTES, part.length)
        part.ended = end == part.length
        answer = self._client.request(
            "PATCH",
            self._client.same_origin(part.location),
            content=self._bytes(part, offset, end),
            headers={
                **TUS,
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(end - offset),
            },
        )
        there = _offset(answer.headers.get("upload-offset"), part.length)
        if there <= offset:
            raise ServerError(
                "the server acknowledged nothing", rule="tus-offset", seen=str(there), wanted=f"over {offset}", fix="push again"
            )
        return there

    def _bytes(self, part: Range, offset: int, end: int) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(part.start + offset)
            while offset < end:
                chunk = file.read(min(CHUNK_BYTES, end - offset))
                if not chunk:
                    raise InputError(
                        f"{self._path} became shorter during the upload",
                        rule="bundle-stable",
                        seen=f"{part.start + offset} bytes",
                        wanted=f"{self._size} bytes",
                        fix="seal it again, then push",
                    )
                yield chunk
                offset += len(chunk)
                self._show(part, offset, sent=len(chunk))

    def _show(self, part: Range, position: int, sent: int = 0) -> None:
        with self._lock:
            self.sent += sent
            if self._stopped.is_set():
                raise _StoppedError
            part.shown = position
            self._progress(sum(each.shown for each in self._ranges), self._size)


def _offset(text: str | None, size: int) -> int:
    if text is None or not text.isascii() or not text.isdigit() or not 0 <= int(text[:20]) <= size:
        raise ServerError("the server's upload offset makes no sense", rule="tus-offset", seen=str(text)[:40], wanted=f"0 to {size}",
                          fix="push again")  # fmt: skip
    return int(text)


def _passing(error: SealrigError) -> bool:
    """Say whether trying again can help: the server is away or busy, or has another offset than we thought."""
    return isinstance(error, (ServerError, StateError)) or error.code in _PASSING


def _at_work(error: SealrigError) -> bool:
    """Say whether the server is still receiving, hashing or storing what an earlier request sent."""
    return error.code == "upload-locked" or error.details.get("status") == _LOCKED
