"""Bundles and who owns them. The server keeps each once and sees ciphertext only."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import BundleOwnerRow, BundleRow, LeaseInputRow, LeaseRow, UploadRow
from sandbox.control.errors import storage_error
from sandbox.control.store import Reading
from sandbox.errors import NotFoundError, StateError
from sandbox.lifecycle import ON_NODE, TERMINAL
from sandbox.wire import BundleInfo


@dataclass(frozen=True)
class Content:
    """A range of a bundle: bytes ``start`` up to, not with, ``end`` of ``size``, open until ``pieces`` is closed."""

    start: int
    end: int
    size: int
    pieces: Reading


def list_bundles(control: Control, caller: Caller, limit: int, after: str | None) -> list[BundleInfo]:
    """Return the caller's bundles (all for operators and auditors) by digest; ``after`` is the last digest of the page before."""
    with control.database.read() as session:
        query = select(BundleRow.digest, BundleRow.size, func.min(BundleOwnerRow.created_at)).join(
            BundleOwnerRow, BundleOwnerRow.digest == BundleRow.digest
        )
        if not caller.sees_all:
            query = query.where(BundleOwnerRow.tenant == caller.tenant)
        if after is not None:
            query = query.where(BundleRow.digest > after)
        rows = session.execute(query.group_by(BundleRow.digest, BundleRow.size).order_by(BundleRow.digest).limit(limit))
        return [BundleInfo(digest=digest, size=size, created_at=at) for digest, size, at in rows]


def show_bundle(control: Control, caller: Caller, digest: str) -> BundleInfo:
    """Return one bundle. Raises ``NotFoundError``, the same for another tenant's as for none."""
    with control.database.read() as session:
        row = session.get(BundleRow, digest)
        if row is None or not _may_see(session, caller, digest):
            raise no_bundle(digest)
        owner = session.get(BundleOwnerRow, (caller.tenant, digest))
        return BundleInfo(digest=digest, size=row.size, created_at=owner.created_at if owner else row.stored_at)


def content_size(control: Control, caller: Caller, digest: str) -> int:
    """Return the bytes of a bundle that ``open_content`` would open for the caller. Raises ``NotFoundError``."""
    with control.database.read() as session:
        row = session.get(BundleRow, digest)
        if row is None or not _may_read(session, caller, digest):
            raise no_bundle(digest)
        return row.size


def open_content(control: Control, caller: Caller, digest: str, start: int | None, end: int | None) -> Content:
    """Open a range of a bundle for its tenant, or for a node that holds a lease that reads it.

    ``start`` of None means the last ``end`` bytes, ``end`` of None the bundle's end.
    """
    size = content_size(control, caller, digest)
    first, stop = (max(0, size - (end or 0)), size) if start is None else (start, size if end is None else min(end, size))
    try:
        return Content(first, stop, size, control.store.read(digest, first, stop) if first < stop else _nothing())
    except OSError as error:
        raise storage_error(error, "the bundle store") from error


def _nothing() -> Generator[bytes]:
    yield from ()


def delete_bundle(control: Control, caller: Caller, digest: str) -> None:
    """Give up a bundle; its bytes go when nobody owns it any more. Raises ``StateError`` while one of the tenant's leases needs it."""
    with control.database.write() as session:
        owner = session.get(BundleOwnerRow, (caller.tenant, digest), with_for_update=True)
        if owner is None:
            raise no_bundle(digest)
        live = [state.value for state in TERMINAL]
        reads = select(LeaseRow.id).join(LeaseInputRow, LeaseInputRow.lease == LeaseRow.id)
        used = session.scalars(
            reads.where(LeaseInputRow.digest == digest, LeaseRow.tenant == caller.tenant, LeaseRow.state.not_in(live))
        ).first()
        if used is not None:
            raise StateError(
                "a lease needs this bundle",
                rule="bundle-in-use",
                seen=used,
                wanted="no lease that reads it",
                fix="wait for the lease to end, or cancel it",
            )
        session.delete(owner)
        control.journal.record(
            session, "bundle.deleted", actor=caller.token, tenant_ref=caller.tenant_ref, resource=digest, at=control.now()
        )
    control.acknowledge()
    collect_garbage(control)


def collect_garbage(control: Control) -> None:
    """Remove from the store what no tenant owns and no upload is about to bring.

    The row stays until the bytes are gone, so that a crash in between is mended by the next call; both happen under the write lock, so that
    nobody becomes an owner meanwhile.
    """
    kept = [
        BundleRow.digest.not_in(select(BundleOwnerRow.digest)),
        BundleRow.digest.not_in(select(UploadRow.digest).where(UploadRow.verified, UploadRow.done.is_(False))),
    ]
    with control.database.read() as session:
        orphans = list(session.scalars(select(BundleRow.digest).where(*kept)))
    for digest in orphans:
        with control.database.write() as session:
            row = session.scalars(select(BundleRow).where(BundleRow.digest == digest, *kept).with_for_update()).one_or_none()
            if row is None:
                continue
            session.delete(row)
            try:
                control.store.delete(digest)
            except OSError as error:
                raise storage_error(error, "the bundle store") from error


def no_bundle(digest: str) -> NotFoundError:
    """Return the answer for a bundle that does not exist, or not for this caller."""
    return NotFoundError(
        "no such bundle", rule="bundle", seen=digest[:80], wanted="a bundle of your tenant", fix="see 'sealrig bundle list'"
    )


def _may_see(session: Session, caller: Caller, digest: str) -> bool:
    return caller.sees_all or _may_read(session, caller, digest)


def _may_read(session: Session, caller: Caller, digest: str) -> bool:
    if caller.role == "customer":
        return session.get(BundleOwnerRow, (caller.tenant, digest)) is not None
    if caller.role != "node" or caller.node is None:
        return False
    reads = select(LeaseRow.id).join(LeaseInputRow, LeaseInputRow.lease == LeaseRow.id)
    held = [state.value for state in ON_NODE]
    return (
        session.scalars(reads.where(LeaseInputRow.digest == digest, LeaseRow.node == caller.node, LeaseRow.state.in_(held))).first()
        is not None
    )
