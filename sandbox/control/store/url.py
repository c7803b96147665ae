"""Which store ``--store URL`` means: ``file:///folder`` or ``s3://bucket/prefix?region=…&endpoint=…``."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from attestation.canonical import parse_json
from attestation.errors import AttestationError
from sandbox.control.settings import ControlSettings
from sandbox.control.store import BundleStore
from sandbox.control.store.folder import FolderStore
from sandbox.errors import UsageError

CREDENTIALS = "store.credentials"
"""JSON below the data folder, mode 0600: ``access_key_id``, ``secret_access_key`` and, where there is one, ``session_token``."""
_KEYS = {"access_key_id", "secret_access_key", "session_token"}


def open_store(settings: ControlSettings) -> BundleStore:
    """Open the store of ``settings``; without a URL it is ``bundles`` below the data folder. Raises ``UsageError``."""
    if not settings.store:
        return FolderStore(settings.data / "bundles")
    parts = urlsplit(settings.store)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return FolderStore(Path(parts.path))
    if parts.scheme == "s3" and parts.hostname and "@" not in parts.netloc:
        from sandbox.control.store.s3 import S3Store

        bucket, prefix, options = s3_place("--store", parts, settings.data / CREDENTIALS)
        return S3Store(bucket, prefix, **options)
    raise UsageError(
        "--store is not a store URL",
        rule="store",
        seen=settings.store.rpartition("@")[2][:200],
        wanted="file:///folder or s3://bucket/prefix, without credentials",
        fix=f"correct --store; credentials belong into {CREDENTIALS} in the data folder",
    )


def s3_place(flag: str, parts: SplitResult, credentials: Path) -> tuple[str, str, dict[str, Any]]:
    """Return bucket, prefix and obstore's options of an ``s3://`` URL that came with ``flag``. Raises ``UsageError``."""
    query = dict(parse_qsl(parts.query))
    if unknown := sorted(set(query) - {"region", "endpoint"}):
        raise UsageError(
            f"{flag} has an unknown option", rule="store", seen=", ".join(unknown)[:200], wanted="region, endpoint", fix=f"correct {flag}"
        )
    options: dict[str, Any] = dict(query)
    if query.get("endpoint", "").startswith("http://"):
        options["client_options"] = {"allow_http": True}
    return str(parts.hostname), parts.path.strip("/"), options | _credentials(credentials)


def _credentials(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UsageError(
            f"{path} can be read by others", rule="credentials-mode", seen=f"{mode:04o}", wanted="0600", fix=f"chmod 600 {path}"
        )
    try:
        tree = parse_json(path.read_bytes(), max_bytes=64 * 1024)
    except AttestationError as error:
        raise UsageError(f"{path} is not JSON", rule="credentials", seen="other text", wanted="JSON", fix="correct the file") from error
    if not isinstance(tree, dict) or not set(tree) <= _KEYS or not all(isinstance(value, str) for value in tree.values()):
        raise UsageError(
            f"{path} is not as it should be", rule="credentials", seen="other keys", wanted=", ".join(sorted(_KEYS)), fix="correct the file"
        )
    return {str(key): str(value) for key, value in tree.items()}
