"""Where ``serve`` and the keeper's commands have the audit log: what ``--log-state``, ``--log-lock`` and ``--log-tiles`` mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attestation.log.places import LogPlaces
from sandbox.control.store.url import CREDENTIALS, s3_place
from sandbox.errors import UsageError

if TYPE_CHECKING:
    from attestation.log.bucket import Bucket


def log_places(data: Path, state: str, lock: str, tiles: str) -> LogPlaces:
    """Return the places; what is empty is below ``data``. Raises ``UsageError``.

    ``state``: a PostgreSQL URL; ``lock``: a PostgreSQL URL or a folder; ``tiles``: ``s3://bucket/prefix?region=…&endpoint=…``.
    """
    for flag, url in (("--log-state", state), ("--log-lock", lock)):
        scheme, separator, _ = url.partition("://")
        if separator and scheme not in {"postgresql", "postgres", "postgresql+psycopg"}:
            raise UsageError(
                f"{flag} is not a place for the log", rule="log-place", seen=scheme[:40], wanted="postgresql://…", fix=f"correct {flag}"
            )
    if state and "://" not in state:
        raise UsageError(
            "--log-state is not a URL",
            rule="log-place",
            seen=state[:80],
            wanted="postgresql://…",
            fix="leave it out for SQLite below --data",
        )
    return LogPlaces(data, state, lock, None if not tiles else _bucket(tiles, data / CREDENTIALS))


def _bucket(url: str, credentials: Path) -> Bucket:
    from attestation.log.bucket import Bucket

    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.hostname or "@" in parts.netloc:
        raise UsageError(
            "--log-tiles is not a bucket's URL",
            rule="log-place",
            seen=url.rpartition("@")[2][:200],
            wanted="s3://bucket/prefix, without credentials",
            fix=f"correct --log-tiles; credentials belong into {CREDENTIALS} in the data folder",
        )
    name, prefix, options = s3_place("--log-tiles", parts, credentials)
    return Bucket(name, prefix, options)
