"""Inputs of a lease: ciphertext fetched into the cache (resumable, digest checked), then opened into scratch."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import BundleTamperedError, InputError, ServerError
from sandbox.lifecycle import Outcome
from sandbox.model import is_bundle_digest
from sandbox.node.inbox import Ended
from sandbox.node.limits import Verdict
from sandbox.node.plan import GID, UID
from sandbox.sealing.bundle import Limits, bundle_digest, open_bundle
from sandbox.sealing.mount import Remote

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.node.client import ControlClient
    from sandbox.node.context import Node
    from sandbox.node.layout import LeaseFolder
    from sandbox.sealing.keys import DataKey

_TRIES = 2
_NO_ROOM = {"open-bytes", "open-room"}
"""The rules by which ``open_bundle`` refuses a bundle that is too large for where it should go."""


def cached(cache: Path, digest: str) -> Path:
    """Return where a bundle's ciphertext stands in the cache."""
    if not is_bundle_digest(digest):
        raise BundleTamperedError("not a bundle digest", rule="bundle-digest", seen=digest[:80], wanted="blake3:…", fix="correct the job")
    return cache / digest.removeprefix("blake3:")


def fetch(client: ControlClient, cache: Path, digest: str, *, go_on: Callable[[], None]) -> Path:
    """Bring a bundle's ciphertext into the cache and return its path; what is there already is kept, half a download is continued.

    Raises ``ServerError`` when the server does not answer (call again to continue) and ``BundleTamperedError`` when what it sent is not
    the bundle of this digest. ``go_on`` may raise to stop.
    """
    path = cached(cache, digest)
    if path.exists():
        os.utime(path)
        return path
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(f".part-{os.getpid()}")
    for _ in range(_TRIES):
        _download(client, digest, part, go_on)
        found = bundle_digest(part)
        if found == digest:
            fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            part.replace(path)
            return path
        part.unlink()
    raise BundleTamperedError(
        "the server sent other bytes than the bundle", rule="bundle-digest", seen=found, wanted=digest, fix="upload the bundle again"
    )


def _download(client: ControlClient, digest: str, part: Path, go_on: Callable[[], None]) -> None:
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        with client.content(digest, size) as (start, chunks):
            file.seek(start)
            file.truncate()
            for chunk in chunks:
                go_on()
                try:
                    file.write(chunk)
                except OSError as error:
                    raise ServerError(
                        "the cache cannot take the bundle",
                        rule="cache",
                        seen=error.strerror or "",
                        wanted="free space",
                        fix="free space under the node's data folder",
                    ) from error


def lazily(node: Node, folder: LeaseFolder, digest: str, name: str) -> Path | Remote:
    """Return where a view reads a bundle: the cache if all of it is there, else the control plane, keeping in a file what was read.

    The file goes with the lease, and takes half of what the disk has free at most.
    """
    path = cached(node.folder.cache, digest)
    if path.exists():
        os.utime(path)
        return path
    folder.fetched.mkdir(mode=0o700, exist_ok=True)
    limit = min(node.view_cache, shutil.disk_usage(folder.fetched).free // 2)
    return Remote(node.client.server, node.client.token, digest, folder.fetched / name, limit)


def hand_over(folder: Path) -> None:
    """Give an unpacked tree to the container's user, without following a link; the container sees it read-only anyway."""
    os.chown(folder, UID, GID, follow_symlinks=False)
    for place, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            os.chown(Path(place) / name, UID, GID, follow_symlinks=False)


def prune(cache: Path, limit: int, keep: set[str]) -> None:
    """Remove the least recently used ciphertext beyond ``limit`` bytes, never a digest in ``keep``."""
    if not cache.exists():
        return
    names = {digest.removeprefix("blake3:") for digest in keep}
    rows = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in cache.iterdir() if path.is_file()), reverse=True)
    total = 0
    for _, size, path in rows:
        total += size
        if total > limit and path.name.partition(".")[0] not in names:
            path.unlink(missing_ok=True)


def open_input(cache: Path, place: Path, digest: str, key: DataKey, *, budget: int) -> None:
    """Open one input into ``place`` in scratch, for the container's user. ``budget`` is the scratch's size in bytes.

    Raises ``Ended`` with the disk limit when it does not fit, ``BundleError`` and its kinds for a bundle that is not sound, ``LimitError``
    for one of too many files, and ``InputError`` when a disk of the node fails.
    """
    place.mkdir(mode=0o700)
    try:
        # Scratch does not outlive a power cut: there is nothing to make durable.
        open_bundle(cached(cache, digest), place, key=key, limits=Limits(bytes=budget), durable=False)
    except InputError as error:
        if not _is_too_large(error):
            raise
        raise Ended(
            Verdict(Outcome.DISK_LIMIT, None, "scratch", f"input {digest} does not fit into the job's scratch: {error.message}")
        ) from error
    hand_over(place)


def _is_too_large(error: InputError) -> bool:
    """Say whether a bundle was not opened because its bytes, or the blocks and names for them, found no room."""
    cause = error.__cause__
    return error.details.get("rule") in _NO_ROOM or (isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT})
