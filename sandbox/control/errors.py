"""Errors that only the control plane raises.

::

    SealrigError
    ├── StorageError             storage-unavailable   the database, the bundle store or the audit log did not take a write
    │   └── StorageFullError     storage-full          there is no space left for it
    ├── StateError
    │   └── OffsetError          offset-mismatch       an upload goes on elsewhere than the client thinks
    └── UploadError              bad-upload            a tus request that is not understood
        ├── UploadLockedError    upload-locked         another request is writing to this upload
        ├── UploadExpiredError   upload-expired        the upload waited too long and is gone
        └── ChecksumError        checksum-mismatch     a chunk's bytes are not those that were meant; they were thrown away
"""

from __future__ import annotations

import errno

from sandbox.errors import SealrigError, StateError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StorageError(SealrigError):
    """The database, the bundle store or the audit log failed. Nothing was acknowledged; asking again is safe."""

    code = "storage-unavailable"
    http_status = 503


class StorageFullError(StorageError):
    """There is no space left. Nothing was acknowledged; what was stored before is as it was."""

    code = "storage-full"
    http_status = 507


class OffsetError(StateError):
    """An upload goes on at another byte than the client thinks."""

    code = "offset-mismatch"


class UploadError(SealrigError):
    """A tus request that is not understood. ``http_status`` as tus 1.0.0 wants it is set at each raise's class."""

    code = "bad-upload"
    http_status = 400


class UploadLockedError(UploadError):
    """Another request is writing to this upload."""

    code = "upload-locked"
    http_status = 423


class UploadExpiredError(UploadError):
    """The upload waited too long and is gone."""

    code = "upload-expired"
    http_status = 410


class ChecksumError(UploadError):
    """A chunk's bytes do not have the checksum that came with them (tus: 460); they were thrown away."""

    code = "checksum-mismatch"
    http_status = 460


def storage_error(error: BaseException, part: str) -> StorageError:
    """Return the error that tells a caller of a failure below ``part`` without naming paths on the server."""
    if (isinstance(error, OSError) and error.errno in _FULL) or "disk is full" in str(error) or "No space left" in str(error):
        return StorageFullError(f"{part} is full", rule="storage", seen="no space left", wanted="free space",
                                fix="the operator must free space; then try again")  # fmt: skip
    return StorageError(f"{part} did not answer as it should", rule="storage", seen=type(error).__name__, wanted="a durable write",
                        fix="try again; the server's own log says more")  # fmt: skip
