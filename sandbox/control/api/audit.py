"""The audit log as static files (C2SP tlog-tiles), and its entries as a filtered list."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import select

from attestation.log.keychain import MAX_ROTATIONS
from attestation.log.note import MAX_NOTE_BYTES
from attestation.log.reader import CHECKPOINT
from attestation.log.tiles import MAX_BUNDLE_BYTES, rotation_path
from sandbox.control.api.auth import ControlDep, Person
from sandbox.control.database.models import EventRow
from sandbox.errors import NotFoundError
from sandbox.model import UtcTime
from sandbox.wire import MAX_PAGE, Message

router = APIRouter(tags=["log"])
# https://c2sp.org/tlog-tiles: tile/<L or entries>/<x001/…/NNN>[.p/<W>]; nothing else becomes a path.
_TILE = re.compile(r"(?:entries|[0-9]|[1-5][0-9]|6[0-3])(?:/x[0-9]{3}){0,6}/[0-9]{3}(?:\.p/[0-9]{1,3})?")


class LogEntryInfo(Message):
    """One entry, by its place in the log; what it says in full is in the log itself."""

    index: int
    id: str
    type: str
    actor: str
    tenant: str
    resource: str
    at: UtcTime


@router.get("/log/checkpoint", response_class=PlainTextResponse)
def checkpoint(control: ControlDep) -> Response:
    """Send the signed checkpoint."""
    raw = control.log_files.read(CHECKPOINT, MAX_NOTE_BYTES)
    if raw is None:
        raise NotFoundError("no checkpoint is published yet", rule="log-checkpoint", seen="entries that wait for their witnesses",
                            wanted="a quorum of witnesses", fix="ask again; the operator sees at /readyz what is missing")  # fmt: skip
    return PlainTextResponse(raw, headers={"Cache-Control": "no-cache"})


@router.get("/log/vkey", response_class=PlainTextResponse)
def vkey(control: ControlDep) -> Response:
    """Send the log's verifier key (C2SP vkey); compare it with one from another source before trusting it."""
    return PlainTextResponse(control.vkey + "\n")


@router.get("/log/keys/{number}", response_class=PlainTextResponse)
def rotation(number: Annotated[int, Path(ge=1, le=MAX_ROTATIONS)], control: ControlDep) -> Response:
    """Send the note by which the log's key was exchanged for the ``number``-th time: who trusts an older key follows them to the newest."""
    raw = control.log_files.read(rotation_path(number), MAX_NOTE_BYTES)
    if raw is None:
        raise NotFoundError("the log's key was not exchanged so often", rule="log-rotation", seen=str(number), wanted="an earlier number",
                            fix="begin with 1 and stop at the first that is not there")  # fmt: skip
    return PlainTextResponse(raw)


@router.get("/log/tile/{path:path}", response_class=Response)
def tile(path: str, control: ControlDep) -> Response:
    """Send a tile or entry bundle. It never changes."""
    raw = control.log_files.read(f"tile/{path}", MAX_BUNDLE_BYTES) if _TILE.fullmatch(path) else None
    if raw is None:
        raise NotFoundError(
            "no such tile", rule="log-tile", seen=path[:80], wanted="a tile of this log", fix="read the checkpoint for the log's size"
        )
    return Response(raw, media_type="application/octet-stream", headers={"Cache-Control": "public, max-age=31536000, immutable"})


@router.get("/v1/log/entries")
def entries(  # noqa: PLR0917  (each is a query parameter)
    control: ControlDep,
    caller: Person,
    type: Annotated[str | None, Query(max_length=64)] = None,  # noqa: A002  (the name of the query parameter)
    resource: Annotated[str | None, Query(max_length=80)] = None,
    actor: Annotated[str | None, Query(max_length=64)] = None,
    since: Annotated[datetime | None, Query()] = None,
    until: Annotated[datetime | None, Query()] = None,
    after: Annotated[int, Query(ge=-1, le=2**53)] = -1,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> list[LogEntryInfo]:
    """List entries in the order of the log, after index ``after``; customers see those of their own tenant."""
    query = select(EventRow).where(EventRow.log_index > after).order_by(EventRow.log_index).limit(limit)
    if not caller.sees_all:
        query = query.where(EventRow.tenant_ref == caller.tenant_ref)
    for column, wanted in ((EventRow.type, type), (EventRow.resource, resource), (EventRow.actor, actor)):
        if wanted is not None:
            query = query.where(column == wanted)
    if since is not None:
        query = query.where(EventRow.occurred_at >= _zoned(since))
    if until is not None:
        query = query.where(EventRow.occurred_at < _zoned(until))
    with control.database.read() as session:
        return [
            LogEntryInfo(
                index=row.log_index,
                id=row.leaf_id,
                type=row.type,
                actor=row.actor,
                tenant=row.tenant_ref,
                resource=row.resource,
                at=row.occurred_at,
            )
            for row in session.scalars(query)
            if row.log_index is not None
        ]


def _zoned(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.astimezone()
