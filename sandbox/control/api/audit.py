"""The audit log as static files (C2SP tlog-tiles), and its entries as a filtered list."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import PlainTextResponse

from attestation.log.keychain import MAX_ROTATIONS
from attestation.log.note import MAX_NOTE_BYTES
from attestation.log.reader import CHECKPOINT
from attestation.log.tiles import MAX_BUNDLE_BYTES, rotation_path
from attestation.signing import b64encode
from sandbox.control import entries as entries_view
from sandbox.control import erasure
from sandbox.control.api.auth import ControlDep, Operator, Person
from sandbox.control.search import Filters, search
from sandbox.errors import NotFoundError
from sandbox.model import UtcTime
from sandbox.wire import MAX_PAGE, CommittedInfo, ErasureInfo, LogEntryDetail, Message

router = APIRouter(tags=["log"])
# https://c2sp.org/tlog-tiles: tile/<L or entries>/<x001/…/NNN>[.p/<W>]; nothing else becomes a path.
_TILE = re.compile(r"(?:entries|[0-9]|[1-5][0-9]|6[0-3])(?:/x[0-9]{3}){0,6}/[0-9]{3}(?:\.p/[0-9]{1,3})?")

Word = Annotated[str | None, Query(max_length=100)]


class LogEntryInfo(Message):
    """One entry, by its place in the log; what it says in full is in the log itself."""

    index: int
    id: str
    type: str
    actor: str
    tenant: str
    resource: str
    outcome: str
    evidence: str | None
    at: UtcTime


class LogEntryPage(Message):
    """Entries in the order of the log; with ``next``, there may be more from that index on."""

    entries: tuple[LogEntryInfo, ...]
    next: int | None


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
    resource: Word = None,
    actor: Word = None,
    tenant: Word = None,
    node: Word = None,
    lease: Word = None,
    outcome: Word = None,
    text: Word = None,
    since: Annotated[datetime | None, Query()] = None,
    until: Annotated[datetime | None, Query()] = None,
    start: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> LogEntryPage:
    """List entries in the order of the log, from index ``start`` on; customers see those of their own tenant.

    A page may be short, or empty, and have a ``next``: the search stops after a while, so that every answer comes soon.
    """
    filters = Filters(type, actor, tenant, node, lease, resource, outcome, text, _zoned(since), _zoned(until))
    page = search(control, caller, filters, limit=limit, start=start, oldest_first=True)
    return LogEntryPage(
        entries=tuple(
            LogEntryInfo(
                index=row.log_index,
                id=row.leaf_id,
                type=row.type,
                actor=row.actor,
                tenant=row.tenant_ref,
                resource=row.resource,
                outcome=row.outcome,
                evidence=row.evidence,
                at=row.occurred_at,
            )
            for row in page.rows
            if row.log_index is not None
        ),
        next=page.left,
    )


@router.get("/v1/log/entries/{index}")
def entry(index: Annotated[int, Path(ge=0, le=2**53)], control: ControlDep, caller: Person) -> LogEntryDetail:
    """Show one entry with its proof and what it commits to; customers see those of their own tenant."""
    shown = entries_view.entry(control, caller, index)
    return LogEntryDetail(
        index=index,
        leaf=shown.logged.leaf.decode("ascii"),
        proof=shown.logged.proof,
        committed=tuple(
            CommittedInfo(
                field=each.field,
                mac=each.mac,
                salt=b64encode(each.opening.salt) if each.opening is not None else None,
                value=each.opening.value if each.opening is not None else None,
            )
            for each in shown.committed
        ),
    )


@router.post("/v1/subjects/{subject}/erase")
def erase(subject: Annotated[str, Path(max_length=80)], control: ControlDep, caller: Operator) -> ErasureInfo:
    """Erase a tenant by its random id: what names it goes, what the log committed to can never be opened again. It cannot be undone."""
    done = erasure.erase(control, caller, subject)
    return ErasureInfo(subject=done.subject, values=done.values, leases=done.leases, index=done.index)


def _zoned(moment: datetime | None) -> datetime | None:
    """Take a time without a zone as UTC, as the console and the command line do, and not as the server's own."""
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
