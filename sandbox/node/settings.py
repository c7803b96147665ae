"""A node's settings: ``node.yaml`` in its data folder. Secrets are not in it; the token is in a file of its own, mode 0600."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from policies.errors import PolicyError
from policies.shape import place_of, shape, unknown_key
from policies.strictyaml import load_yaml, nearest
from policies.units import parse_size
from sandbox.errors import UsageError
from sandbox.model import NodeId
from sandbox.node.devices import EvidenceDevices
from sandbox.node.engine import DEFAULT_SOCKET
from sandbox.node.layout import NodeFolder

MAX_SETTINGS_BYTES = 64 * 1024
MAX_TOKEN_BYTES = 4096
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]


class NodeSettings(BaseModel):
    """What ``node.yaml`` says. Sizes in bytes; what is left out is taken from the machine when the node starts."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True)

    api_version: Literal["sealrig/v1"]
    kind: Literal["Node"]
    id: NodeId
    server: Annotated[str, Field(pattern=r"^https?://[^\s]{1,500}$")]
    token_file: str = "node.token"  # noqa: S105  (a file's name)
    docker: Annotated[str, Field(max_length=500)] = ""
    slots: Annotated[int, Field(ge=1, le=1024, strict=True)] = 4
    cpus: Annotated[float, Field(gt=0, le=4096)] | None = None
    memory: Size | None = None
    scratch: Size | None = None
    cache: Size = 64 * 2**30
    view_cache: Size = 8 * 2**30
    evidence: EvidenceDevices = EvidenceDevices()

    @property
    def docker_url(self) -> str:
        """The engine's address: the setting, else ``DOCKER_HOST``, else the usual socket."""
        return self.docker or os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET


def load_node_settings(folder: NodeFolder) -> NodeSettings:
    """Read ``node.yaml``. Raises ``UsageError`` with the key, what was seen and the fix."""
    path = folder.settings
    try:
        tree = load_yaml(path.read_bytes(), max_bytes=MAX_SETTINGS_BYTES)
        return NodeSettings.model_validate(tree)
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder.root} is no node's data folder",
            rule="node-settings",
            seen="no node.yaml",
            wanted="node.yaml",
            fix=f"sealrig node init --data {folder.root} --server URL",
        ) from error
    except PolicyError as error:
        raise UsageError(f"{path}: {error.message}", **error.details) from error
    except ValidationError as error:
        raise _settings_error(path, error) from None  # the cause would show keys and values


def _settings_error(path: Path, error: ValidationError) -> UsageError:
    first = error.errors(include_url=False)[0]
    place = place_of(NodeSettings, first["loc"]) or "the document"
    if first["type"] == "extra_forbidden":
        keys, key = [field.alias or name for name, field in NodeSettings.model_fields.items()], str(first["loc"][-1])
        seen, place = unknown_key(key, keys), place_of(NodeSettings, first["loc"], nearly=keys)
        return UsageError(
            f"{path}: {place}: unknown key", rule="node-settings", seen=seen, wanted="a key of the format", fix=nearest(key, keys)
        )
    return UsageError(
        f"{path}: {place}: {first['msg']}", rule="node-settings", seen=shape(first["input"]), wanted=first["msg"], fix=f"correct {place}"
    )


def load_token(folder: NodeFolder, settings: NodeSettings) -> str:
    """Read the node's token. Raises ``UsageError`` if the file is missing, too open or not a token."""
    path = folder.root / settings.token_file
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError as error:
        raise UsageError(
            "the node has no token",
            rule="node-token",
            seen=f"no {path}",
            wanted="a file with a token of role node",
            fix=f"have an operator run 'sealrig token new --role node', and put the token into {path}, mode 0600",
        ) from error
    if mode & 0o077:
        raise UsageError(f"{path} can be read by others", rule="node-token", seen=f"{mode:04o}", wanted="0600", fix=f"chmod 600 {path}")
    token = path.read_bytes()[:MAX_TOKEN_BYTES].decode("ascii", "replace").strip()
    if not token or not token.isprintable() or " " in token:
        raise UsageError(
            f"{path} holds no token", rule="node-token", seen=f"{len(token)} characters", wanted="one token", fix="write it again"
        )
    return token
