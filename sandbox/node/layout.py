"""Where a node keeps its things. Every path follows from the data folder and a lease id, so that a crash loses none of them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import InputError

_LEASE = re.compile(r"lease-[0-9a-f]{32}")
CONTAINER_PREFIX = "sealrig-"
LEASE_LABEL = "sealrig.lease"
NODE_LABEL = "sealrig.node"
ROLE_LABEL = "sealrig.role"


def check_lease_id(lease: str) -> str:
    """Return ``lease`` if it is one; it becomes a file name and a container name. Raises ``InputError``."""
    if _LEASE.fullmatch(lease) is None:
        raise InputError("not a lease id", rule="lease-id", seen=lease[:80], wanted="lease- and 32 hex digits", fix="copy the id as listed")
    return lease


def container_name(lease: str) -> str:
    """Return the name of a lease's container."""
    return CONTAINER_PREFIX + check_lease_id(lease)


@dataclass(frozen=True)
class LeaseFolder:
    """The paths of one lease. ``data`` and below is all that may ever hold plaintext; the wipe removes it whole."""

    root: Path

    @property
    def journal(self) -> Path:
        """What was about to be done, durably; holds no secret."""
        return self.root / "journal"

    @property
    def documents(self) -> Path:
        """The exact bytes of signed documents until the control plane has them; holds no secret."""
        return self.root / "documents"

    @property
    def data(self) -> Path:
        """The folder of everything below."""
        return self.root / "data"

    @property
    def image(self) -> Path:
        """The backing file of encrypted scratch."""
        return self.data / "scratch.img"

    @property
    def scratch(self) -> Path:
        """The mount point of the scratch file system."""
        return self.data / "scratch"

    @property
    def vault(self) -> Path:
        """The one folder inside scratch under which everything stands (for fscrypt: the encrypted folder)."""
        return self.scratch / "vault"

    @property
    def inputs(self) -> Path:
        """Unpacked inputs, one numbered folder each."""
        return self.vault / "in"

    @property
    def work(self) -> Path:
        """The mount point through which the container writes: the same scratch, but nothing in it can be executed."""
        return self.data / "work"

    @property
    def out(self) -> Path:
        """The results folder, as bound into the container."""
        return self.work / "out"

    @property
    def tmp(self) -> Path:
        """The container's ``/tmp``."""
        return self.work / "tmp"

    @property
    def result(self) -> Path:
        """The sealed result on its way to the control plane: ciphertext."""
        return self.root / "data" / "result.sealed"

    @property
    def views(self) -> Path:
        """Mount points of lazily decrypted inputs."""
        return self.data / "views"

    @property
    def fetched(self) -> Path:
        """What was fetched of lazily decrypted inputs, one file each: ciphertext."""
        return self.data / "fetched"


@dataclass(frozen=True)
class NodeFolder:
    """The paths of one node."""

    root: Path

    @property
    def key(self) -> Path:
        """The node's signing key, mode 0600."""
        return self.root / "node.key"

    @property
    def settings(self) -> Path:
        """The node's settings."""
        return self.root / "node.yaml"

    @property
    def state(self) -> Path:
        """Whether the node is in quarantine, and what its last proven wipes were."""
        return self.root / "state.json"

    @property
    def qualification(self) -> Path:
        """The newest signed qualification of this node's GPUs."""
        return self.root / "qualification.json"

    @property
    def cache(self) -> Path:
        """Downloaded bundles: ciphertext."""
        return self.root / "cache"

    @property
    def leases(self) -> Path:
        """One folder a lease that is not closed."""
        return self.root / "leases"

    @property
    def lock(self) -> Path:
        """Held while a node runs, so that two never work on the same folder."""
        return self.root / "lock"

    def lease(self, lease: str) -> LeaseFolder:
        """Return the paths of one lease. Raises ``InputError`` for what is no lease id."""
        return LeaseFolder(self.leases / check_lease_id(lease))

    def held(self) -> list[str]:
        """Return the ids of all leases that have a folder here."""
        if not self.leases.exists():
            return []
        return sorted(path.name for path in self.leases.iterdir() if _LEASE.fullmatch(path.name))


def fsync_folder(path: Path) -> None:
    """Make a folder's entries durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file of mode 0600 so that after a crash it is whole or as before."""
    draft = path.with_name(f".{path.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    fsync_folder(path.parent)
