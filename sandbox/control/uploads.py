"""Uploads under way, as tus 1.0.0 counts them: one file each, whose size is the offset, and a folder where they were joined from parts.

Received bytes are synced before they are acknowledged, so an acknowledged offset survives a crash; bytes behind it that also survived are
counted, so a client resumes at the exact byte that is on disk. What becomes of an upload that is whole: ``finishing.py``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import BundleOwnerRow, BundleRow, LeaseRow, TenantRow, UploadRow
from sandbox.control.errors import UploadExpiredError, storage_error
from sandbox.control.store.pieces import remove
from sandbox.control.story import no_lease
from sandbox.errors import LimitError, NotFoundError
from sandbox.lifecycle import ON_NODE
from sandbox.model import new_id

UPLOAD_ID = re.compile(r"upload-[0-9a-f]{32}")
RESULT_OVERHEAD_BYTES = 64 * 2**20
"""What sealing a result may add to the output's own bound: headers of a tar with many small files."""


@dataclass(frozen=True)
class Upload:
    """An upload as its owner sees it. Sizes in bytes; ``done`` once the bundle is in the store.

    ``parts`` names what it was joined from; ``is_part`` says that it is to be joined, and no bundle by itself. ``stated`` is
    the client's ``Upload-Metadata``, as it came.
    """

    id: str
    size: int
    offset: int
    path: Path
    expires_at_http: str
    done: bool
    is_part: bool
    parts: tuple[str, ...]
    stated: str | None

    @property
    def due(self) -> bool:
        """Whether all bytes of a bundle are there that is not in the store yet."""
        return self.offset == self.size and not self.done and not self.is_part


def create(control: Control, caller: Caller, *, size: int, digest: str, lease: str | None, stated: str | None) -> Upload:
    """Start an upload. A node uploads for a lease it holds, everybody else for its own tenant.

    A node that asks again for the same result of the same lease is given the upload that it has begun: it remembers no addresses.
    An empty digest starts a part. Raises ``LimitError`` for too large, too many, or over the tenant's quota.
    """
    check_size(control, size)
    limits, at = control.settings.limits, control.now()
    with control.database.write() as session:
        tenant = _owner(session, caller, lease, size)
        row = _begun(control, session, caller, (digest, size, lease)) if lease is not None else None
        if row is None:
            _require_quota(control, session, tenant, size)
            row = UploadRow(
                id=new_id("upload"),
                tenant=tenant,
                owner=caller.token,
                digest=digest,
                size=size,
                lease=lease,
                parts=[],
                stated=stated,
                verified=False,
                done=False,
                created_at=at,
                expires_at=at + timedelta(seconds=limits.upload_seconds),
            )
            path = control.settings.uploads_folder / row.id
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise storage_error(error, "the upload folder") from error
            session.add(row)
    return view(control, row)


def _owner(session: Session, caller: Caller, lease_id: str | None, size: int) -> str:
    if caller.role != "node":
        return caller.tenant
    lease = session.get(LeaseRow, lease_id) if lease_id else None
    if lease is None or caller.node is None or lease.node != caller.node or lease.state not in {state.value for state in ON_NODE}:
        raise no_lease(lease_id or "none")
    if size > lease.output_max + lease.output_max // 8 + RESULT_OVERHEAD_BYTES:
        raise _too_large(size, lease.output_max, "result-size")
    return lease.tenant


def _begun(control: Control, session: Session, caller: Caller, what: tuple[str, int, str]) -> UploadRow | None:
    digest, size, lease = what
    return session.scalars(
        select(UploadRow)
        .where(UploadRow.owner == caller.token, UploadRow.digest == digest, UploadRow.size == size, UploadRow.lease == lease)
        .where(UploadRow.expires_at > control.now())
    ).first()


def _require_quota(control: Control, session: Session, tenant: str, size: int) -> None:
    coming = session.execute(
        select(func.count(), func.coalesce(func.sum(UploadRow.size), 0)).where(UploadRow.tenant == tenant, UploadRow.done.is_(False))
    ).one()
    stored = session.scalar(
        select(func.coalesce(func.sum(BundleRow.size), 0))
        .join(BundleOwnerRow, BundleOwnerRow.digest == BundleRow.digest)
        .where(BundleOwnerRow.tenant == tenant)
    )
    quota = session.get_one(TenantRow, tenant).quota
    if coming[0] >= control.settings.limits.uploads_per_tenant:
        raise LimitError(
            "too many uploads at once",
            rule="uploads-per-tenant",
            seen=f"{coming[0]} uploads",
            wanted=f"fewer than {control.settings.limits.uploads_per_tenant}",
            fix="finish or delete some first",
        )
    if int(stored or 0) + int(coming[1]) + size > quota:
        raise LimitError(
            "the tenant's space is used up",
            rule="tenant-quota",
            seen=f"{int(stored or 0) + int(coming[1])} of {quota} bytes are taken, {size} more asked for",
            wanted=f"at most {quota} bytes in all",
            fix="delete bundles that are not needed ('sealrig bundle delete')",
        )


def follow_quota(control: Control) -> None:
    """Give every tenant the space that this server was started with. What is stored over a smaller one stays; nothing more comes."""
    quota = control.settings.limits.tenant_quota_bytes
    with control.database.write() as session:
        session.execute(update(TenantRow).where(TenantRow.erased_at.is_(None)).values(quota=quota))


def find(control: Control, caller: Caller, upload_id: str) -> Upload:
    """Return an upload of the caller: a node's own, or one of a customer's tenant, whichever token began it.

    Raises ``NotFoundError`` for anybody else's and for what is no upload's id, ``UploadExpiredError`` for one that waited too long.
    """
    if not UPLOAD_ID.fullmatch(upload_id):  # the database is not asked: PostgreSQL fails on a NUL
        raise no_upload(upload_id)
    with control.database.read() as session:
        row = session.get(UploadRow, upload_id)
    if row is None or not _may_use(caller, row):
        raise no_upload(upload_id)
    if row.expires_at <= control.now():
        raise UploadExpiredError(
            "this upload waited too long",
            rule="upload-expiry",
            seen=row.expires_at.isoformat(),
            wanted="a time to come",
            fix="start it again",
        )
    return view(control, row)


def _may_use(caller: Caller, row: UploadRow) -> bool:
    return row.owner == caller.token or (caller.role == "customer" and row.lease is None and row.tenant == caller.tenant)


def no_upload(upload_id: str) -> NotFoundError:
    """Return the answer for an upload that does not exist, or not for this caller."""
    return NotFoundError("no such upload", rule="upload", seen=upload_id[:80], wanted="an upload of yours", fix="start it again")


def view(control: Control, row: UploadRow) -> Upload:
    """Return an upload as its owner sees it. Raises ``NotFoundError`` for one that lost its bytes."""
    path = control.settings.uploads_folder / row.id
    try:
        offset = row.size if row.parts else path.stat().st_size
    except FileNotFoundError:
        offset = _offset_without_file(control, row)
    parts = tuple(part for part, _ in row.parts)
    return Upload(row.id, row.size, offset, path, _http_date(row.expires_at), row.done, not row.digest, parts, row.stated)


def _offset_without_file(control: Control, row: UploadRow) -> int:
    """Say that all is there where the store has the file. An upload that lost its file some other way is dropped."""
    with control.database.read() as session:  # read again: the row is marked before the store takes the file
        now = session.get(UploadRow, row.id)
    if now is not None and (now.verified or now.done):
        return now.size
    drop(control, row.id)
    raise no_upload(row.id)


def _http_date(at: datetime) -> str:
    return at.strftime("%a, %d %b %Y %H:%M:%S GMT")


def extend(control: Control, upload: Upload) -> str:
    """Let an upload that made progress live on; return when it expires now. Written seldom: it costs a synced transaction."""
    span = timedelta(seconds=control.settings.limits.upload_seconds)
    wanted = control.now() + span
    with control.database.read() as session:
        row = session.get(UploadRow, upload.id)
    if row is None or wanted - row.expires_at < span / 10:
        return upload.expires_at_http
    with control.database.write() as session:
        held = session.get(UploadRow, upload.id, with_for_update=True)
        if held is not None:
            held.expires_at = wanted
    return _http_date(wanted)


def drop(control: Control, upload_id: str) -> None:
    """Forget an upload and its bytes. Forgetting twice is the same as once."""
    with control.database.write() as session:
        row = session.get(UploadRow, upload_id, with_for_update=True)
        files = [upload_id, *(part for part, _ in row.parts)] if row is not None else [upload_id]
        if row is not None:
            session.delete(row)
    for name in files:
        remove(control.settings.uploads_folder / name)
    control.uploading.forget(upload_id)


def check_size(control: Control, size: int) -> None:
    """Raise ``LimitError`` for more than any bundle may have."""
    if size > control.settings.limits.bundle_bytes:
        raise _too_large(size, control.settings.limits.bundle_bytes, "bundle-size")


def _too_large(size: int, most: int, rule: str) -> LimitError:
    return LimitError(
        "this is too large",
        rule=rule,
        seen=f"{size} bytes",
        wanted=f"at most {most} bytes",
        fix="seal fewer files into it, or ask for a larger bound",
    )
