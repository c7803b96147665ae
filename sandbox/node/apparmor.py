"""The AppArmor profile of jobs: loaded where the host has AppArmor, told plainly where it has not."""

from __future__ import annotations

import subprocess
from importlib.resources import as_file, files
from pathlib import Path

PROFILE = "sealrig-job"
ENGINE_DEFAULT = "docker-default"
_LOADED = Path("/sys/kernel/security/apparmor/profiles")
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
_PARSER_SECONDS = 30


def profile_for_jobs(*, engine_confines: bool, enabled: Path = _ENABLED, loaded: Path = _LOADED) -> tuple[str, str]:
    """Return the profile that containers get, and one sentence on why it is that.

    ``engine_confines`` says whether the engine itself has AppArmor. Empty means no confinement: then the host has no AppArmor.
    Loads our profile (needs root); where that fails the engine's own is used, and the sentence says so.
    """
    if not engine_confines or _read(enabled).strip() != "Y":
        return "", "this host has no AppArmor"
    problem = _load()
    if problem:
        return ENGINE_DEFAULT, f"the engine's own profile, because {PROFILE} could not be loaded: {problem}"
    if not is_enforced(_read(loaded)):
        return ENGINE_DEFAULT, f"the engine's own profile, because the kernel does not list {PROFILE} as enforced"
    return PROFILE, f"{PROFILE}, enforced"


def is_enforced(listing: str) -> bool:
    """Say whether the kernel's list of profiles (``name (mode)`` a line) has ours in enforcing mode."""
    return f"{PROFILE} (enforce)" in (line.strip() for line in listing.splitlines())


def _load() -> str:
    """Load or replace the profile in the kernel; return what went wrong, or nothing."""
    with as_file(files("sandbox.node").joinpath("apparmor.profile")) as path:
        try:
            done = subprocess.run(["apparmor_parser", "--replace", "--write-cache", str(path)], capture_output=True, check=False,
                                  timeout=_PARSER_SECONDS, stdin=subprocess.DEVNULL)  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            return type(error).__name__
    return "" if done.returncode == 0 else done.stderr.decode("utf-8", "replace").strip()[-300:] or f"exit {done.returncode}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
