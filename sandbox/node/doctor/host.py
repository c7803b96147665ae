"""Reads this host: small files under /proc, /sys, /boot and /etc, and the versions that a few tools print. Nothing is changed."""

from __future__ import annotations

import os
import subprocess
import zlib
from dataclasses import dataclass, field
from pathlib import Path

_MAX_BYTES = 1024 * 1024
_COMMAND_SECONDS = 10


@dataclass(frozen=True)
class Host:
    """A host's files below ``root`` and its tools' output. Tests give a folder of captured files and captured output."""

    root: Path = Path("/")
    outputs: dict[str, str] | None = field(default=None)
    """Output by command line, for tests; None runs the commands."""

    def text(self, path: str) -> str | None:
        """Return a file's text without surrounding space; None where it is absent or cannot be read."""
        raw = self.raw(path)
        return None if raw is None else raw.decode("utf-8", "replace").strip()

    def raw(self, path: str) -> bytes | None:
        """Return a file's first mebibyte; None where it is absent or cannot be read."""
        try:
            with self._at(path).open("rb") as file:
                return file.read(_MAX_BYTES)
        except OSError:
            return None

    def unzipped(self, path: str) -> str | None:
        """Return a gzip file's text, bounded; None where it is absent or damaged."""
        raw = self.raw(path)
        if raw is None:
            return None
        try:
            return zlib.decompressobj(wbits=31).decompress(raw, _MAX_BYTES).decode("utf-8", "replace")
        except zlib.error:
            return None

    def number(self, path: str) -> int | None:
        """Return a file's whole number; None where there is none."""
        text = self.text(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def names(self, path: str) -> list[str] | None:
        """Return the names in a folder, sorted; None where it is absent or cannot be read."""
        try:
            return sorted(os.listdir(self._at(path)))  # noqa: PTH208  (names, not paths)
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Say whether something is there."""
        return self._at(path).exists()

    def output(self, *command: str) -> str | None:
        """Return what a command prints; None where it is absent, fails or takes too long."""
        if self.outputs is not None:
            return self.outputs.get(" ".join(command))
        try:
            done = subprocess.run(command, capture_output=True, timeout=_COMMAND_SECONDS, check=True, stdin=subprocess.DEVNULL,
                                  env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"})  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout[:_MAX_BYTES].decode("utf-8", "replace").strip()

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")
