"""tus 1.0.0 (https://tus.io/protocols/resumable-upload) with creation, termination, checksum, expiration and concatenation.

Written here rather than taken from a library: docs/adr/0013.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from sandbox.control import uploads
from sandbox.control.api.auth import ControlDep, Reader
from sandbox.control.api.tus import PREFIX, VERSION
from sandbox.control.errors import OffsetError, UploadError
from sandbox.control.finishing import finish
from sandbox.control.joining import join
from sandbox.control.receiving import Checksum, receive
from sandbox.errors import InputError
from sandbox.model import is_bundle_digest

MAX_METADATA_CHARS = 4096
MAX_PARTS = 64
_ALGORITHMS = {"sha1": hashlib.sha1, "sha256": hashlib.sha256, "sha512": hashlib.sha512}  # sha1 is what tus demands of every server
_LENGTH = re.compile(r"[0-9]{1,18}")
_LEASE = re.compile(r"lease-[0-9a-f]{32}")

router = APIRouter(prefix=PREFIX, tags=["uploads"])


@router.options("", status_code=204)
@router.options("/{upload}", status_code=204)
def options(control: ControlDep) -> Response:
    """Say what this server speaks."""
    return Response(
        status_code=204,
        headers={
            "Tus-Version": VERSION,
            "Tus-Extension": "creation,termination,checksum,expiration,concatenation",
            "Tus-Max-Size": str(control.settings.limits.bundle_bytes),
            "Tus-Checksum-Algorithm": ",".join(_ALGORITHMS),
        },
    )


@router.post("", status_code=201)
def create(request: Request, control: ControlDep, caller: Reader) -> Response:
    """Start an upload; ``Upload-Metadata`` names the bundle's digest and, from a node, the lease.

    ``Upload-Concat: partial`` starts a part, which needs neither; ``Upload-Concat: final;…`` makes an upload of parts and a bundle of it.
    """
    _require_version(request)
    concat = request.headers.get("upload-concat")
    stated = request.headers.get("upload-metadata") or None
    metadata = _metadata(stated or "")
    if concat == "partial":
        size = _number(request, "upload-length")
        upload = uploads.create(control, caller, size=size, digest="", lease=None, stated=stated)
    elif concat is not None:
        upload = join(control, caller, digest=_digest(metadata), parts=_parts(concat), stated=stated)
    else:
        size = _number(request, "upload-length")
        upload = uploads.create(control, caller, size=size, digest=_digest(metadata), lease=_lease(metadata), stated=stated)
    if upload.due:
        with control.uploading.hold(upload.id):
            finish(control, upload.id)
    headers = {"Location": f"/v1/uploads/{upload.id}", "Upload-Expires": upload.expires_at_http, "Upload-Offset": str(upload.offset)}
    return Response(status_code=201, headers=headers)


@router.head("/{upload}")
def head(upload: str, request: Request, control: ControlDep, caller: Reader) -> Response:
    """Say how many bytes are there. All of them are once the bundle is stored: one that is whole but not stored becomes a bundle now.

    While another request is at that, this one is refused as locked, so that no client takes an unverified bundle for a stored one.
    """
    _require_version(request)
    found = uploads.find(control, caller, upload)
    if found.due:
        with control.uploading.hold(upload):
            finish(control, upload)
    headers = {
        "Upload-Offset": str(found.offset),
        "Upload-Length": str(found.size),
        "Upload-Expires": found.expires_at_http,
        "Cache-Control": "no-store",
    }
    if found.stated is not None:
        headers["Upload-Metadata"] = found.stated
    if found.is_part:
        headers["Upload-Concat"] = "partial"
    elif found.parts:
        headers["Upload-Concat"] = "final;" + " ".join(f"/v1/uploads/{part}" for part in found.parts)
    return Response(status_code=200, headers=headers)


@router.patch("/{upload}", status_code=204)
async def patch(upload: str, request: Request, control: ControlDep, caller: Reader) -> Response:
    """Take bytes from an offset on. What arrived before a cut stays, unless it came with a checksum."""
    _require_version(request)
    if request.headers.get("content-type", "") != "application/offset+octet-stream":
        raise _bad(
            "the body is not of the type that tus wants",
            415,
            request.headers.get("content-type", "none"),
            "application/offset+octet-stream",
        )
    start = _number(request, "upload-offset")
    checksum = _checksum(request.headers.get("upload-checksum"))
    with control.uploading.hold(upload):
        found = await run_in_threadpool(uploads.find, control, caller, upload)
        if found.parts:
            raise _bad("an upload made of parts takes no bytes", 403, "a PATCH", "none")
        if start != found.offset:
            raise OffsetError(
                "the upload goes on elsewhere",
                rule="upload-offset",
                seen=str(start),
                wanted=str(found.offset),
                fix="ask with HEAD, then send from there",
            )
        received = await receive(control, found, request.stream(), checksum)
        expires = found.expires_at_http
        if received.offset > start:
            expires = await run_in_threadpool(uploads.extend, control, found)
        if received.cut:
            return Response(status_code=400)  # nobody is there to read it
        if received.offset == found.size and not found.is_part:
            await run_in_threadpool(finish, control, upload)
    return Response(status_code=204, headers={"Upload-Offset": str(received.offset), "Upload-Expires": expires})


@router.delete("/{upload}", status_code=204)
def terminate(upload: str, request: Request, control: ControlDep, caller: Reader) -> Response:
    """Give an upload up."""
    _require_version(request)
    with control.uploading.hold(upload):
        uploads.find(control, caller, upload)
        uploads.drop(control, upload)
    return Response(status_code=204)


def _require_version(request: Request) -> None:
    if request.headers.get("tus-resumable") != VERSION:
        raise _bad("this is not a tus 1.0.0 request", 412, request.headers.get("tus-resumable", "no Tus-Resumable")[:20], VERSION)


def _number(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not _LENGTH.fullmatch(text):
        raise _bad(f"{name} is not a number of bytes", 400, text[:40] or "none", "decimal digits")
    return int(text)


def _metadata(text: str) -> dict[str, str]:
    if len(text) > MAX_METADATA_CHARS:
        raise _bad("Upload-Metadata is too long", 400, f"{len(text)} characters", f"at most {MAX_METADATA_CHARS}")
    if not (text.isascii() and text.isprintable()):  # it is kept, and sent back in a header
        raise _bad("Upload-Metadata is not as tus writes it", 400, "other characters", "printable ASCII")
    found: dict[str, str] = {}
    for pair in text.split(",") if text.strip() else ():
        key, _, value = pair.strip().partition(" ")
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise _bad("Upload-Metadata is not as tus writes it", 400, key[:40], "key BASE64, …") from error
    return found


def _digest(metadata: dict[str, str]) -> str:
    digest = metadata.get("digest", "")
    if not is_bundle_digest(digest):
        raise InputError(
            "the upload does not say which bundle it is",
            rule="upload-metadata",
            seen=digest[:80] or "no digest",
            wanted="digest: blake3: and 64 hex digits",
            fix="send Upload-Metadata: digest BASE64",
        )
    return digest


def _lease(metadata: dict[str, str]) -> str | None:
    lease = metadata.get("lease")
    if lease is not None and not _LEASE.fullmatch(lease):
        raise InputError(
            "not a lease id",
            rule="upload-metadata",
            seen=lease[:80],
            wanted="lease- and 32 hex digits",
            fix="leave it out, or send the lease's id",
        )
    return lease


def _parts(concat: str) -> list[str]:
    """Return the ids of the parts that ``Upload-Concat: final;URL URL…`` names."""
    kind, _, urls = concat.partition(";")
    parts = [url.rpartition("/")[2] for url in urls.split()]
    if kind != "final" or not 1 <= len(parts) <= MAX_PARTS or not all(uploads.UPLOAD_ID.fullmatch(part) for part in parts):
        raise _bad("Upload-Concat is not as tus writes it", 400, concat[:80], f"partial, or final; and 1 to {MAX_PARTS} uploads")
    return parts


def _checksum(text: str | None) -> Checksum | None:
    if text is None:
        return None
    name, _, value = text.partition(" ")
    if name not in _ALGORITHMS:
        raise _bad("this checksum is not supported", 400, name[:20], ", ".join(_ALGORITHMS))
    try:
        return Checksum(_ALGORITHMS[name](usedforsecurity=False), base64.b64decode(value, validate=True))
    except binascii.Error as error:
        raise _bad("the checksum is not base64", 400, value[:40], "base64") from error


class _TusError(UploadError):
    """A refusal with the status that tus wants."""

    def __init__(self, message: str, status: int, seen: str, wanted: str) -> None:
        super().__init__(message, rule="tus", seen=seen, wanted=wanted, fix="see https://tus.io/protocols/resumable-upload")
        self.http_status = status  # type: ignore[misc]  # one class for the statuses of one protocol


_bad = _TusError
