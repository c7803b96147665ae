"""Where a person's settings come from: flags, then environment, then ``~/.config/sealrig/config.yaml`` (mode 0600).

Secrets come from the file or ``SEALRIG_TOKEN``, never from the command line, where other processes could read them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import yaml

from policies.errors import PolicyError
from policies.shape import shape, unknown_key
from policies.strictyaml import load_yaml, nearest
from sandbox.errors import UsageError

CONFIG_MAX_BYTES = 64 * 1024
_KEYS = ("server", "token", "key", "trust")


@dataclass(frozen=True, repr=False)
class Settings:
    """Defaults of the customer, operator and auditor commands; each may be None. ``token`` is a secret."""

    server: str | None = None
    token: str | None = None
    key: Path | None = None
    trust: Path | None = None


def config_path() -> Path:
    """Return the configuration file's place (``XDG_CONFIG_HOME`` is respected)."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "sealrig" / "config.yaml"


def load_settings() -> Settings:
    """Read settings from the file and the environment. Raises ``UsageError`` for a broken or too widely readable file."""
    path = config_path()
    stored: dict[str, str] = {}
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise UsageError(
                f"{path} can be read by others", rule="config-mode", seen=f"{mode:04o}", wanted="0600", fix=f"chmod 600 {path}"
            )
        stored = _parse(path, path.read_bytes())
    key = os.environ.get("SEALRIG_KEY") or stored.get("key")
    trust = os.environ.get("SEALRIG_TRUST") or stored.get("trust")
    return Settings(
        server=os.environ.get("SEALRIG_SERVER") or stored.get("server"),
        token=os.environ.get("SEALRIG_TOKEN") or stored.get("token"),
        key=Path(key).expanduser() if key else None,
        trust=Path(trust).expanduser() if trust else None,
    )


def save_settings(**values: str) -> None:
    """Put ``server``, ``token``, ``key`` or ``trust`` into the configuration file, whole and with mode 0600; the rest stays.

    Raises ``UsageError`` where the file that is there cannot be read.
    """
    path = config_path()
    stored = _parse(path, path.read_bytes()) if path.exists() else {}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        yaml.safe_dump({**stored, **values}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _parse(path: Path, raw: bytes) -> dict[str, str]:
    try:
        tree = load_yaml(raw, max_bytes=CONFIG_MAX_BYTES)
    except PolicyError as error:
        raise UsageError(f"{path}: {error.message}", **error.details) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(
            f"{path}: a mapping is wanted", rule="config", seen=shape(tree), wanted="keys and values", fix="see 'sealrig --help'"
        )
    for key, value in tree.items():
        if key not in _KEYS:
            raise UsageError(
                f"{path}: unknown key",
                rule="config",
                seen=unknown_key(str(key), _KEYS),
                wanted=", ".join(_KEYS),
                fix=nearest(str(key), _KEYS),
            )
        if not isinstance(value, str):
            raise UsageError(f"{path}: {key} must be text", rule="config", seen=shape(value), wanted="text", fix=f"put {key} into quotes")
    return {str(key): str(value) for key, value in tree.items()}
