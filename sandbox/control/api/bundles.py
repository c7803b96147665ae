"""Bundles that are on the server."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sandbox.control import bundles
from sandbox.control.api.auth import ControlDep, Customer, Person, Reader
from sandbox.model import BundleDigest
from sandbox.wire import MAX_PAGE, BundleInfo

router = APIRouter(prefix="/v1/bundles", tags=["bundles"])
_MEDIA_TYPE = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@router.get("")
def list_bundles(
    control: ControlDep,
    caller: Person,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    after: Annotated[BundleDigest | None, Query()] = None,
) -> list[BundleInfo]:
    """List bundles by digest; ``after`` is the last digest of the page before."""
    return bundles.list_bundles(control, caller, limit, after)


@router.get("/{digest}")
def show_bundle(digest: BundleDigest, control: ControlDep, caller: Person) -> BundleInfo:
    """Show one bundle."""
    return bundles.show_bundle(control, caller, digest)


@router.get("/{digest}/content", response_class=StreamingResponse)
def content(digest: BundleDigest, request: Request, control: ControlDep, caller: Reader) -> Response:
    """Send a bundle's ciphertext, or one range of it (RFC 9110, section 14). What is no single range is ignored, as it says there."""
    wanted = _wanted(request.headers.get("range", ""))
    condition = request.headers.get("if-range")
    if wanted is None or (condition is not None and condition != _etag(digest)):
        whole = bundles.open_content(control, caller, digest, 0, None)
        return _Download(whole, 200, _headers(digest, whole.size))
    part = bundles.open_content(control, caller, digest, *wanted)
    if part.start >= part.end:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{part.size}", "ETag": _etag(digest)})
    headers = {**_headers(digest, part.end - part.start), "Content-Range": f"bytes {part.start}-{part.end - 1}/{part.size}"}
    return _Download(part, 206, headers)


@router.head("/{digest}/content", response_class=Response)
def content_head(digest: BundleDigest, control: ControlDep, caller: Reader) -> Response:
    """Say what the whole ciphertext is, as GET does, without opening it. A range is ignored: RFC 9110 has them for GET alone (14.2)."""
    headers = _headers(digest, bundles.content_size(control, caller, digest))
    return Response(status_code=200, headers=headers, media_type=_MEDIA_TYPE)


class _Download(StreamingResponse):
    """Sends a range and closes it however the request ends; Starlette leaves that to the garbage collector."""

    def __init__(self, content: bundles.Content, status: int, headers: dict[str, str]) -> None:
        super().__init__(content.pieces, status, headers, _MEDIA_TYPE)
        self._pieces = content.pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. No thread is reading any more when this closes it: a thread is waited for, also where the client has gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # In a thread: the last reader of a bundle that was given up removes it, which may take as long as the disk likes.
            await asyncio.shield(asyncio.to_thread(self._pieces.close))


@router.delete("/{digest}", status_code=204)
def delete_bundle(digest: BundleDigest, control: ControlDep, caller: Customer) -> None:
    """Give up a bundle."""
    bundles.delete_bundle(control, caller, digest)


def _wanted(text: str) -> tuple[int | None, int | None] | None:
    """Return (start, end without it) of ``bytes=A-B``, ``bytes=A-`` and ``bytes=-N`` (start None: the last N); None for anything else."""
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return None, int(match[2])
    start, end = int(match[1]), int(match[2]) + 1 if match[2] else None
    return None if end is not None and end <= start else (start, end)


def _etag(digest: str) -> str:
    # A bundle is named by its content, so its name is a strong validator.
    return f'"{digest}"'


def _headers(digest: str, length: int) -> dict[str, str]:
    return {"Content-Length": str(length), "Accept-Ranges": "bytes", "ETag": _etag(digest)}
