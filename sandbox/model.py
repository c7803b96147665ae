"""Identifiers and small values that every part of Sealrig shares. Frozen, no I/O, no clock."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, StringConstraints
from uuid_utils import uuid7

_BLAKE3 = re.compile(r"blake3:[0-9a-f]{64}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")

# Identifiers become file names, container labels and URL parts, so each has one strict spelling.
LeaseId = Annotated[str, StringConstraints(pattern=r"^lease-[0-9a-f]{32}$")]
NodeId = Annotated[str, StringConstraints(pattern=r"^node-[0-9a-f]{32}$")]
TokenId = Annotated[str, StringConstraints(pattern=r"^token-[0-9a-f]{32}$")]
TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
BundleDigest = Annotated[str, StringConstraints(pattern=r"^blake3:[0-9a-f]{64}$")]
Sha256Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


def new_id(kind: str) -> str:
    """Return a fresh identifier such as ``lease-0190…`` (kind, then a UUIDv7 in hex, RFC 9562)."""
    return f"{kind}-{uuid7().hex}"


def is_bundle_digest(text: str) -> bool:
    """Say whether ``text`` is a bundle digest, ``blake3:`` and 64 hex digits."""
    return _BLAKE3.fullmatch(text) is not None


def is_sha256_digest(text: str) -> bool:
    """Say whether ``text`` is an image or document digest, ``sha256:`` and 64 hex digits."""
    return _SHA256.fullmatch(text) is not None


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        msg = "a time needs its zone"
        raise ValueError(msg)
    return moment.astimezone(UTC)


UtcTime = Annotated[datetime, AfterValidator(_utc)]


def timestamp(moment: datetime) -> str:
    """Return RFC 3339 UTC with milliseconds and ``Z``, the one spelling used in signed documents."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
