"""The Python environment ``.venv``, exactly as the lock file says, made by uv (fetched into ``.dev`` where missing)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from system import Refusal, find, install, say

STAMP = "sealrig-lock"
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def ensure_environment(root: Path) -> None:
    """Make ``.venv`` match ``uv.lock``; costs nothing where it does already. Raises ``Refusal``."""
    state = hashlib.sha256(b"".join((root / name).read_bytes() for name in ("uv.lock", "pyproject.toml"))).hexdigest()
    stamp = root / ".venv" / STAMP
    if stamp.is_file() and stamp.read_text() == state and (root / ".venv" / "bin" / "python").exists():
        return
    uv = _uv(root)
    say("making .venv from the lock file")
    env = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_PROJECT_ENVIRONMENT": str(root / ".venv")}
    env.pop("VIRTUAL_ENV", None)
    if SYSTEM_CERTIFICATES.is_file():
        # What this machine trusts, also where a company's proxy signs for the package index.
        env.setdefault("SSL_CERT_FILE", str(SYSTEM_CERTIFICATES))
    command = [uv, "sync", "--quiet", "--frozen", "--inexact", "--all-extras", "--all-groups"]
    if not (root / ".venv" / "bin" / "python").exists():
        command += ["--python", sys.executable]
    if subprocess.run(command, cwd=root, env=env, check=False, stdin=subprocess.DEVNULL).returncode:
        raise Refusal("uv could not make .venv from uv.lock (its words are above); check the network and run this again")
    stamp.write_text(state)


def _uv(root: Path) -> str:
    """Return a uv that runs: the one on PATH, ours, or a fresh one from pip. Raises ``Refusal``."""
    ours = root / ".dev" / "uv" / "bin" / "uv"
    for candidate in (shutil.which("uv"), str(ours)):
        if candidate and _works([candidate, "--version"]):
            return candidate
    say("fetching uv")
    ours.parent.parent.mkdir(parents=True, exist_ok=True)
    pip = _pip(root)
    done = subprocess.run(
        [*pip, "install", "--quiet", "--target", str(ours.parent.parent), "--upgrade", "uv"], check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode or not _works([str(ours), "--version"]):
        raise Refusal("pip could not fetch uv (its words are above); check the network and run this again")
    return str(ours)


def _pip(root: Path) -> list[str]:
    """Return a pip that runs: this Python's own, or one in a bare environment (Debian ships venv as a package of its own)."""
    if _works([sys.executable, "-m", "pip", "--version"]):
        return [sys.executable, "-m", "pip"]
    boot = root / ".dev" / "boot"
    make = [sys.executable, "-m", "venv", "--clear", str(boot)]
    if not _works(make):
        if find("apt-get") is None:
            raise Refusal("this Python has neither pip nor venv; install one of them and run this again")
        install(["python3-venv"])
        if not _works(make):
            raise Refusal(f"{sys.executable} can make no environment even with python3-venv; install pip for it and run this again")
    return [str(boot / "bin" / "python"), "-m", "pip"]


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
