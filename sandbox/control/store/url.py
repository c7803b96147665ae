"""Which store ``--store URL`` means."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from sandbox.control.settings import ControlSettings
from sandbox.control.store import BundleStore
from sandbox.control.store.folder import FolderStore
from sandbox.errors import UsageError


def open_store(settings: ControlSettings) -> BundleStore:
    """Open the store of ``settings``; without a URL it is ``bundles`` below the data folder. Raises ``UsageError``."""
    if not settings.store:
        return FolderStore(settings.data / "bundles")
    parts = urlsplit(settings.store)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path.startswith("/"):
        return FolderStore(Path(parts.path))
    raise UsageError(
        "--store is not a store URL", rule="store", seen=settings.store.split("@")[-1][:200], wanted="file:///folder", fix="correct --store"
    )
