"""Make a node: its data folder, key, settings and token file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from attestation.signing import SigningKey, VerifyKey
from sandbox.errors import UsageError
from sandbox.model import new_id
from sandbox.node.layout import NodeFolder, write_durably

if TYPE_CHECKING:
    from pathlib import Path


def init_node(root: Path, *, server: str, token: str | None, docker: str = "", slots: int = 4) -> tuple[str, VerifyKey]:
    """Make a node in an empty or new folder; return its id and public key. Raises ``UsageError`` rather than overwrite a node.

    ``token`` is written to ``node.token`` (0600) where it is given; otherwise the operator puts it there.
    """
    folder = NodeFolder(root)
    if folder.settings.exists() or folder.key.exists():
        raise UsageError(
            f"{root} already holds a node",
            rule="node-init",
            seen="node.yaml or node.key",
            wanted="a new folder",
            fix="choose another --data",
        )
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o711)
    for path, mode in ((folder.leases, 0o711), (folder.cache, 0o700)):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    key = SigningKey.generate()
    key.save(folder.key)
    node = new_id("node")
    settings: dict[str, object] = {
        "apiVersion": "sealrig/v1",
        "kind": "Node",
        "id": node,
        "server": server,
        "tokenFile": "node.token",
        "slots": slots,
    }
    if docker:
        settings["docker"] = docker
    if token:
        write_durably(root / "node.token", token.encode() + b"\n")

    write_durably(folder.settings, yaml.safe_dump(settings, sort_keys=False).encode())
    return node, key.public
