"""What becomes of uploads that nobody goes on with: finished where only that is missing, dropped once they waited too long."""

from __future__ import annotations

import contextlib

import structlog
from sqlalchemy import select

from sandbox.control.core import Control
from sandbox.control.database.models import UploadRow
from sandbox.control.errors import UploadLockedError
from sandbox.control.finishing import finish
from sandbox.control.store.pieces import remove
from sandbox.control.uploads import drop
from sandbox.errors import SealrigError

STRAY_SECONDS = 3600
"""The age at which a file that no upload knows is removed."""
logger = structlog.get_logger("sealrig.control")


def sweep_uploads(control: Control) -> None:
    """Finish what a crash left verified, drop what waited too long, and remove files that no row knows.

    What fails keeps nothing else from being swept; the first failure is raised at the end.
    """
    failed: SealrigError | None = None
    with control.database.read() as session:
        begun = list(session.scalars(select(UploadRow.id)))
    for upload in begun:
        try:
            with control.uploading.hold(upload):
                _tend(control, upload)
        except UploadLockedError:
            continue  # somebody is at work on it
        except SealrigError as error:
            logger.warning("an upload was not swept", upload=upload, error=type(error).__name__, reason=error.message[:300])
            failed = failed or error
    _remove_strays(control)
    if failed is not None:
        raise failed


def _remove_strays(control: Control) -> None:
    """Remove old files that no upload knows.

    The files are listed before the uploads are: the file of an upload that begins meanwhile is not on the list, or is young.
    """
    oldest = control.now().timestamp() - STRAY_SECONDS
    paths = list(control.settings.uploads_folder.iterdir())
    with control.database.read() as session:
        rows = {row.id: row.parts for row in session.scalars(select(UploadRow))}
    known = {*rows, *(part for parts in rows.values() for part, _ in parts)}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.name not in known and path.stat().st_mtime < oldest:
                remove(path)


def _tend(control: Control, upload_id: str) -> None:
    with control.database.read() as session:
        row = session.get(UploadRow, upload_id)
    if row is not None and row.verified and not row.done:
        finish(control, upload_id)
    elif row is not None and row.expires_at <= control.now():
        drop(control, upload_id)
