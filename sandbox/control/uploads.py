"""Uploads under way, as tus 1.0.0 counts them: one file each, whose size is the offset.

Received bytes are synced before they are acknowledged, so an acknowledged offset survives a crash; bytes behind it that also survived are
counted, so a client resumes at the exact byte that is on disk. When the last byte is there the digest is taken over the file:

1. digest and header are right        → the row is marked ``verified``
2. the store takes the file           (durable, idempotent)
3. bundle, owner and audit event are written, the upload is marked ``done``, in one transaction

A crash between these steps is mended by the next request for the upload, or by the sweeper; a wrong digest ends the upload.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from blake3 import blake3
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import BundleOwnerRow, BundleRow, LeaseRow, TenantRow, UploadRow
from sandbox.control.errors import UploadExpiredError, storage_error
from sandbox.control.story import no_lease
from sandbox.control.transitions import tenant_ref
from sandbox.errors import BundleTamperedError, LimitError, NotFoundError
from sandbox.lifecycle import ON_NODE
from sandbox.model import new_id
from sandbox.sealing.format import MAX_HEADER_BYTES, read_header

RESULT_OVERHEAD_BYTES = 64 * 2**20
"""What sealing a result may add to the output's own bound: headers of a tar with many small files."""


@dataclass(frozen=True)
class Upload:
    """An upload as its owner sees it. Sizes in bytes."""

    id: str
    size: int
    offset: int
    path: Path
    expires_at_http: str


def create(control: Control, caller: Caller, *, size: int, digest: str, lease: str | None) -> Upload:
    """Start an upload. A node uploads for a lease it holds, everybody else for its own tenant.

    Raises ``LimitError`` for too large, too many, or over the tenant's quota.
    """
    limits, at = control.settings.limits, control.now()
    if size > limits.bundle_bytes:
        raise _too_large(size, limits.bundle_bytes, "bundle-size")
    with control.database.write() as session:
        tenant = _owner(session, caller, lease, size)
        _require_quota(control, session, tenant, size)
        row = UploadRow(
            id=new_id("upload"),
            tenant=tenant,
            owner=caller.token,
            digest=digest,
            size=size,
            lease=lease,
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
    return _upload(control, row)


def _owner(session: Session, caller: Caller, lease_id: str | None, size: int) -> str:
    if caller.role != "node":
        return caller.tenant
    lease = session.get(LeaseRow, lease_id) if lease_id else None
    if lease is None or caller.node is None or lease.node != caller.node or lease.state not in {state.value for state in ON_NODE}:
        raise no_lease(lease_id or "none")
    if size > lease.output_max + lease.output_max // 8 + RESULT_OVERHEAD_BYTES:
        raise _too_large(size, lease.output_max, "result-size")
    return lease.tenant


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


def find(control: Control, caller: Caller, upload_id: str) -> Upload:
    """Return an upload of the caller. Raises ``NotFoundError`` for anybody else's, ``UploadExpiredError`` for one that waited too long."""
    with control.database.read() as session:
        row = session.get(UploadRow, upload_id)
    if row is None or row.owner != caller.token:
        raise NotFoundError("no such upload", rule="upload", seen=upload_id[:80], wanted="an upload of yours", fix="start it again")
    if row.expires_at <= control.now():
        raise UploadExpiredError(
            "this upload waited too long",
            rule="upload-expiry",
            seen=row.expires_at.isoformat(),
            wanted="a time to come",
            fix="start it again",
        )
    return _upload(control, row)


def _upload(control: Control, row: UploadRow) -> Upload:
    path = control.settings.uploads_folder / row.id
    try:
        offset = path.stat().st_size
    except FileNotFoundError:
        offset = row.size if row.verified or row.done else 0
    return Upload(row.id, row.size, offset, path, row.expires_at.strftime("%a, %d %b %Y %H:%M:%S GMT"))


def finish(control: Control, upload_id: str) -> None:
    """Make a bundle of an upload whose bytes are all there. Safe to call again at any point.

    Raises ``BundleTamperedError`` (the upload is then gone) for other bytes than were announced, ``BundleError`` for what is no bundle.
    """
    with control.database.read() as session:
        row = session.get(UploadRow, upload_id)
    if row is None or row.done:
        return
    path = control.settings.uploads_folder / row.id
    try:
        if not row.verified:
            _verify(control, row, path)
        control.store.put(row.digest, path)
    except OSError as error:
        raise storage_error(error, "the bundle store") from error
    at = control.now()
    with control.database.write() as session:
        held = session.get(UploadRow, upload_id, with_for_update=True)
        if held is not None:
            if session.get(BundleRow, row.digest) is None:
                session.add(BundleRow(digest=row.digest, size=row.size, stored_at=at))
                session.flush()
            if session.get(BundleOwnerRow, (row.tenant, row.digest)) is None:
                session.add(BundleOwnerRow(tenant=row.tenant, digest=row.digest, created_at=at))
                ref = tenant_ref(session, row.tenant)
                control.journal.record(session, "bundle.stored", actor=row.owner, tenant_ref=ref, resource=row.digest, at=at)
            held.verified = held.done = True
    control.acknowledge()


def _verify(control: Control, row: UploadRow, path: Path) -> None:
    seen = f"blake3:{blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()}" if row.size else f"blake3:{blake3(b'').hexdigest()}"
    try:
        _require_digest(seen, row.digest)
        with path.open("rb") as file:
            read_header(file.read(MAX_HEADER_BYTES)).require_size(row.size)
    except Exception:
        drop(control, row.id)
        raise
    with control.database.write() as session:
        held = session.get(UploadRow, row.id, with_for_update=True)
        if held is not None:
            held.verified = True


def _require_digest(seen: str, wanted: str) -> None:
    if seen != wanted:
        message = "the bytes that arrived are not the bundle that was announced"
        raise BundleTamperedError(message, rule="upload-digest", seen=seen, wanted=wanted, fix="push it again")


def drop(control: Control, upload_id: str) -> None:
    """Forget an upload and its bytes. Forgetting twice is the same as once."""
    with control.database.write() as session:
        row = session.get(UploadRow, upload_id, with_for_update=True)
        if row is not None:
            session.delete(row)
    (control.settings.uploads_folder / upload_id).unlink(missing_ok=True)


def sweep(control: Control) -> None:
    """Finish what a crash left verified, drop what waited too long, and remove files that no row knows."""
    with control.database.read() as session:
        rows = list(session.scalars(select(UploadRow)))
    for row in rows:
        if row.verified and not row.done:
            finish(control, row.id)
        elif row.expires_at <= control.now():
            drop(control, row.id)
    known = {row.id for row in rows}
    oldest = control.now().timestamp() - 3600
    for path in control.settings.uploads_folder.iterdir():
        if path.name not in known and path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


def _too_large(size: int, most: int, rule: str) -> LimitError:
    return LimitError(
        "this is too large",
        rule=rule,
        seen=f"{size} bytes",
        wanted=f"at most {most} bytes",
        fix="seal fewer files into it, or ask for a larger bound",
    )
