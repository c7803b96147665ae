"""What the customer's side remembers between commands: unfinished uploads, signed jobs, nonces, decisions. Mode 0700.

Nothing here is a key. What decides about keys is here rather than asked of the server: the customer's own signed job, the nonce,
the first bytes of bundles whose digest was checked, and the one grant of a lease.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from attestation.canonical import canonical_json, parse_json
from attestation.errors import AttestationError
from sandbox.errors import StateError, UsageError
from sandbox.model import is_bundle_digest, timestamp
from sandbox.sealing.format import MAX_HEADER_BYTES

MAX_FILE_BYTES = 16 * 1024 * 1024
_LEASE = re.compile(r"lease-[0-9a-f]{32}")


def state_path() -> Path:
    """Return the state folder's place (``XDG_STATE_HOME`` is respected)."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "sealrig"


class State:
    """The state folder. Every write is whole and durable before the call returns."""

    def __init__(self, folder: Path | None = None) -> None:
        """Make the folder if it is not there. Raises ``UsageError`` where others can read it."""
        self.folder = folder or state_path()
        _private(self.folder)
        mode = stat.S_IMODE(self.folder.stat().st_mode)
        if mode & 0o077:
            raise UsageError(f"{self.folder} can be read by others", rule="state-mode", seen=f"{mode:04o}", wanted="0700",
                             fix=f"chmod 700 {self.folder}")  # fmt: skip

    # ---- uploads

    def upload(self, server: str, digest: str) -> str | None:
        """Return the address of an unfinished upload."""
        raw = self._read(self._upload_path(server, digest))
        tree = _tree(raw)
        location = tree.get("location") if tree else None
        return location if isinstance(location, str) else None

    def remember_upload(self, server: str, digest: str, location: str) -> None:
        """Remember where an upload goes on."""
        write_whole(self._upload_path(server, digest), canonical_json({"location": location}))

    def forget_upload(self, server: str, digest: str) -> None:
        """Forget an upload that is done or gone."""
        self._upload_path(server, digest).unlink(missing_ok=True)

    # ---- first bytes of bundles whose digest was checked

    def header(self, digest: str) -> bytes | None:
        """Return the first bytes of a bundle, known to belong to this digest."""
        return self._read(self._header_path(digest))

    def remember_header(self, digest: str, first: bytes) -> None:
        """Remember a bundle's first bytes; the caller has checked that the whole has this digest."""
        write_whole(self._header_path(digest), first)

    # ---- leases

    def remember_file(self, digest: str, path: Path) -> None:
        """Remember the first bytes of a bundle that was made or read here, and whose digest is therefore known."""
        with path.open("rb") as file:
            self.remember_header(digest, file.read(MAX_HEADER_BYTES))

    def document(self, lease: str, name: str) -> bytes | None:
        """Return a remembered document of a lease: ``job``, ``nonce``, ``evidence``, ``plan``, ``grant``, ``refusal``."""
        return self._read(self.lease_folder(lease) / name)

    def remember(self, lease: str, name: str, raw: bytes) -> None:
        """Remember a document of a lease. Raises ``StateError`` rather than replace one by another."""
        path = self.lease_folder(lease) / name
        known = self._read(path)
        if known is None:
            write_whole(path, raw)
        elif known != raw:
            raise StateError(f"another {name} of this lease is remembered already", rule="one-per-lease", seen=f"a second {name}",
                             wanted=f"the one in {path}", fix="submit a new job; a lease gets one decision")  # fmt: skip

    def leases(self) -> list[str]:
        """Return the leases of which something is remembered."""
        folder = self.folder / "leases"
        return sorted(entry.name for entry in folder.iterdir() if _LEASE.fullmatch(entry.name)) if folder.is_dir() else []

    def lease_folder(self, lease: str) -> Path:
        """Return the folder of a lease, which may not be there yet. Raises ``UsageError`` for what is no lease id."""
        return self.folder / "leases" / checked_lease(lease)

    @contextmanager
    def locked(self, lease: str) -> Iterator[bool]:
        """Hold the lease for one release agent on this machine; yields False where another holds it."""
        folder = self.lease_folder(lease)
        _private(folder)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def record(self, decision: dict[str, Any]) -> None:
        """Append a decision to ``decisions.jsonl``, durably, with the time."""
        line = json.dumps({"at": timestamp(datetime.now(UTC)), **decision}, sort_keys=True) + "\n"
        fd = os.open(self.folder / "decisions.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode())
            os.fsync(fd)
        finally:
            os.close(fd)

    def log_file(self, key: str) -> Path:
        """Return where the proven part of the audit log with this key is kept."""
        return self.folder / "logs" / f"{sha256(key.encode()).hexdigest()}.db"

    def _upload_path(self, server: str, digest: str) -> Path:
        return self.folder / "uploads" / sha256(f"{server}\n{digest}".encode()).hexdigest()

    def _header_path(self, digest: str) -> Path:
        if not is_bundle_digest(digest):
            raise UsageError("not a bundle digest", rule="bundle-digest", seen=digest[:100], wanted="blake3: and 64 hex digits",
                             fix="see 'sealrig bundle list'")  # fmt: skip
        return self.folder / "headers" / digest.removeprefix("blake3:")

    def _read(self, path: Path) -> bytes | None:
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(raw) > MAX_FILE_BYTES:
            raise StateError(
                f"{path} is damaged",
                rule="state-file",
                seen=f"over {MAX_FILE_BYTES} bytes",
                wanted="a file as this program writes it",
                fix=f"remove {path}",
            )
        return raw


def checked_lease(lease: str) -> str:
    """Return the id. Raises ``UsageError``: a lease id becomes a path and a URL, so it has one spelling."""
    if not _LEASE.fullmatch(lease):
        raise UsageError(
            "not a lease id", rule="lease-id", seen=lease[:100], wanted="lease- and 32 hex digits", fix="see 'sealrig lease list'"
        )
    return lease


def _private(folder: Path) -> None:
    """Make a folder and every one above it that is missing, each readable by this person only (``mkdir -p`` would open those above)."""
    if not folder.is_dir():
        _private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _tree(raw: bytes | None) -> dict[str, Any] | None:
    try:
        tree = parse_json(raw) if raw is not None else None
    except AttestationError:
        return None
    return tree if isinstance(tree, dict) else None


def write_whole(path: Path, raw: bytes) -> None:
    """Write a whole file of mode 0600, durably: never half of it under its name."""
    _private(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
