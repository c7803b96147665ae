"""The bytes of one request, added to an upload's file: hashed on the way, and durable when this returns."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from blake3 import blake3
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from sandbox.control.core import Control
from sandbox.control.errors import ChecksumError, storage_error
from sandbox.control.uploads import Upload
from sandbox.errors import LimitError

BATCH_BYTES = 1024 * 1024
IDLE_SECONDS = 30.0
"""How long a client may send nothing before its connection counts as cut; less than clients go on asking to resume."""


@dataclass(frozen=True)
class Received:
    """Up to where the bytes are there now, and whether the connection was cut before the request's end."""

    offset: int
    cut: bool


@dataclass(frozen=True)
class Checksum:
    """What the bytes of a request must add up to, and the state that adds."""

    state: Any
    wanted: bytes


async def receive(control: Control, upload: Upload, stream: AsyncIterator[bytes], checksum: Checksum | None) -> Received:
    """Append a request's bytes to the file of an upload that the caller holds.

    Every byte that came before a cut is kept. With a checksum it is all or nothing, as tus demands. Raises ``LimitError`` for more bytes
    than the upload announced, ``ChecksumError``, and ``StorageError`` where the disk fails; what is not durable then is taken back.
    """
    try:
        fd = os.open(upload.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return Received(upload.offset, cut=False)  # its bytes are in the store already; the digest still decides in ``finish``
    # A part's own digest is of no use to anybody.
    state = None if upload.is_part else control.uploading.hash_at(upload.id, upload.offset)
    tail = _Tail(fd, upload.offset, state, checksum)
    keep, cut = checksum is None, False
    try:
        try:
            async for batch in _batches(stream, upload.size - upload.offset):
                await run_in_threadpool(tail.write, batch)
            if checksum is not None:
                _require_checksum(checksum)
                keep = True
        except ClientDisconnect:
            cut = True
        finally:
            await run_in_threadpool(tail.settle, keep=keep)
    except OSError as error:
        raise storage_error(error, "the upload folder") from error
    finally:
        os.close(fd)
    if keep:
        control.uploading.keep_hash(upload.id, tail.hash, tail.offset)
        control.metrics.upload_bytes.inc(tail.offset - upload.offset)
    return Received(tail.offset, cut)


async def _batches(stream: AsyncIterator[bytes], room: int) -> AsyncIterator[bytearray]:
    """Gather pieces into batches worth a write. What came before a cut, or before the server is told to end, is given first."""
    batch = bytearray()
    pieces = aiter(stream)
    try:
        while (piece := await _next(pieces)) is not None:
            batch += piece
            if len(batch) > room:
                raise LimitError(
                    "more bytes than the upload announced",
                    rule="upload-length",
                    seen="over its length",
                    wanted=f"at most {room} bytes more",
                    fix="start it again",
                )
            if len(batch) >= BATCH_BYTES:
                yield batch
                room -= len(batch)
                batch = bytearray()
    except (ClientDisconnect, asyncio.CancelledError):
        yield batch
        raise
    yield batch


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    """Return the next piece, or None at the end. Raises ``ClientDisconnect`` for a client that has gone or fallen silent."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            return await anext(pieces, None)
    except TimeoutError as error:
        raise ClientDisconnect from error


class _Tail:
    """The end of an upload's file while one request adds to it, in worker threads, one call at a time."""

    def __init__(self, fd: int, start: int, state: blake3 | None, checksum: Checksum | None) -> None:
        self._fd, self._start, self._checksum = fd, start, checksum
        self.offset, self.hash = start, state

    def write(self, data: bytearray) -> None:
        """Write all of it. Raises ``OSError``; ``offset`` and ``hash`` then count what was written."""
        view = memoryview(data)
        while view:
            done = os.write(self._fd, view)
            if self.hash is not None:
                self.hash.update(view[:done])
            if self._checksum is not None:
                self._checksum.state.update(view[:done])
            view = view[done:]
            self.offset += done

    def settle(self, *, keep: bool) -> None:
        """Make what was written durable, or take it back. Raises ``OSError``, with everything of this request taken back."""
        try:
            if keep:
                os.fsync(self._fd)
        except OSError:
            keep = False  # the kernel may have dropped the pages, and the next call would say that all is well
            raise
        finally:
            if not keep:
                os.ftruncate(self._fd, self._start)
                self.offset = self._start


def _require_checksum(checksum: Checksum) -> None:
    if checksum.state.digest() != checksum.wanted:
        raise ChecksumError(
            "the bytes do not have the checksum that came with them",
            rule="upload-checksum",
            seen=checksum.state.hexdigest()[:16],
            wanted=checksum.wanted.hex()[:16],
            fix="send this piece again",
        )
