"""tus concatenation: parts of one bundle, sent side by side, become one upload.

A part is an upload without a digest, which never becomes a bundle by itself. Joining makes one upload of parts that are whole, in one
transaction: the parts' rows go, their sizes go on counting as the new upload's, and their files are its own from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import UploadRow
from sandbox.control.errors import OffsetError
from sandbox.control.uploads import Upload, check_size, find, no_upload, view
from sandbox.errors import InputError
from sandbox.model import new_id


def join(control: Control, caller: Caller, *, digest: str, parts: Sequence[str], stated: str | None) -> Upload:
    """Make one upload of whole parts, in this order. Asking again for the same gives the upload that was made.

    Raises ``NotFoundError`` where a part is not the caller's or is gone, ``OffsetError`` where one is not whole, ``UploadLockedError``
    where somebody is at work on one.
    """
    if len(set(parts)) != len(parts):
        raise InputError("a part is named twice", rule="upload-concat", seen=f"{len(parts)} parts", wanted="each part once",
                         fix="name every part once, in order")  # fmt: skip
    with ExitStack() as held:
        for part in parts:
            held.enter_context(control.uploading.hold(part))
        with control.database.read() as session:
            made = _made(control, session, caller, digest, parts)
        if made is not None:
            return view(control, made)
        found = [find(control, caller, part) for part in parts]
        for each in found:
            _require_whole_part(each)
        size = sum(each.size for each in found)
        check_size(control, size)
        at = control.now()
        with control.database.write() as session:
            rows = list(session.scalars(select(UploadRow).where(UploadRow.id.in_(parts)).with_for_update()))
            if len(rows) != len(parts):
                raise no_upload(parts[0])  # erased meanwhile
            row = UploadRow(
                id=new_id("upload"),
                tenant=rows[0].tenant,
                owner=caller.token,
                digest=digest,
                size=size,
                lease=None,
                parts=[[each.id, each.size] for each in found],
                stated=stated,
                verified=False,
                done=False,
                created_at=at,
                expires_at=at + timedelta(seconds=control.settings.limits.upload_seconds),
            )
            for part_row in rows:
                session.delete(part_row)
            session.add(row)
    return view(control, row)


def _made(control: Control, session: Session, caller: Caller, digest: str, parts: Sequence[str]) -> UploadRow | None:
    """Return the upload that was made of these parts, for a client that did not hear of it."""
    rows = session.scalars(
        select(UploadRow).where(UploadRow.tenant == caller.tenant, UploadRow.digest == digest, UploadRow.expires_at > control.now())
    )
    return next((row for row in rows if row.parts and [part for part, _ in row.parts] == list(parts)), None)


def _require_whole_part(part: Upload) -> None:
    if not part.is_part:
        raise InputError("an upload to be joined is not a part", rule="upload-concat", seen=part.id, wanted="Upload-Concat: partial",
                         fix="start it with Upload-Concat: partial")  # fmt: skip
    if part.offset != part.size:
        raise OffsetError("a part is not whole", rule="upload-concat", seen=f"{part.offset} of {part.size} bytes", wanted="all of them",
                          fix="send the rest of it, then join")  # fmt: skip
