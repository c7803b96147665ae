"""Bundles made of uploads whose bytes are all there.

1. parts that were joined are put together
2. digest and header are right        → the row is marked ``verified``
3. the store takes the file           (durable, idempotent)
4. bundle, owner and audit event are written, the upload is marked ``done``, in one transaction

A crash between these steps is mended by the next request for the upload, or by the sweeper; a wrong digest ends the upload. Whoever works
on an upload holds it (``Control.uploading``), so that each of these steps has one doer.
"""

from __future__ import annotations

from pathlib import Path

from sandbox.control.assembling import assemble
from sandbox.control.core import Control
from sandbox.control.database.models import BundleOwnerRow, BundleRow, UploadRow
from sandbox.control.errors import storage_error
from sandbox.control.store.pieces import open_whole
from sandbox.control.transitions import tenant_ref
from sandbox.control.uploads import drop, no_upload
from sandbox.errors import BundleError, BundleTamperedError
from sandbox.sealing.format import MAX_HEADER_BYTES, read_header


def finish(control: Control, upload_id: str) -> None:
    """Make a bundle of an upload whose bytes are all there. Safe to call again at any point; the caller holds the upload.

    Raises ``BundleTamperedError`` for other bytes than were announced and ``BundleError`` for what is no bundle (the upload is then gone),
    ``NotFoundError`` where it is gone already, ``StorageError`` (the upload is kept) where disk or store fail.
    """
    with control.database.read() as session:
        row = session.get(UploadRow, upload_id)
    if row is None:
        raise no_upload(upload_id)
    if row.done:
        return
    path = control.settings.uploads_folder / row.id
    try:
        if not row.verified:
            if row.parts:
                assemble(control.settings.uploads_folder, row.id, [part for part, _ in row.parts])
            _verify(control, row, path)
        control.store.put(row.digest, path)
    except OSError as error:
        raise storage_error(error, "the bundle store") from error
    at = control.now()
    with control.database.write() as session:
        # Also where the upload was erased meanwhile: a bundle in the store that nobody owns goes with the next collection by its row.
        if session.get(BundleRow, row.digest) is None:
            session.add(BundleRow(digest=row.digest, size=row.size, stored_at=at))
            session.flush()
        held = session.get(UploadRow, upload_id, with_for_update=True)
        if held is not None:
            if session.get(BundleOwnerRow, (row.tenant, row.digest)) is None:
                session.add(BundleOwnerRow(tenant=row.tenant, digest=row.digest, created_at=at))
                ref = tenant_ref(session, row.tenant)
                control.journal.record(session, "bundle.stored", actor=row.owner, tenant_ref=ref, resource=row.digest, at=at)
            held.verified = held.done = True
    control.uploading.forget(upload_id)
    control.acknowledge()


def _verify(control: Control, row: UploadRow, path: Path) -> None:
    seen = control.uploading.digest(row.id, path)
    try:
        _require_digest(seen, row.digest)
        with open_whole(path) as file:
            read_header(file.read(MAX_HEADER_BYTES)).require_size(row.size)
    except BundleError:
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
