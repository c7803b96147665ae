"""Versions against the floors of ``floors.json``: the oldest release of each branch without a known hole.

A distribution backports fixes without moving the version, so a distribution's package below the floor is ``unknown``, not a guess.
So is a branch that is newer than the list. The list itself has a date; when it is old, a check of its own says so.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from importlib.resources import files

from sandbox.node.doctor.check import Check, judged, unknown
from sandbox.node.doctor.host import Host
from sandbox.node.doctor.nvidia import has_nvidia

AGE = "version-floors-age"
MAX_AGE_DAYS = 45
_VERSION = re.compile(r"v?(\d+(?:\.\d+){1,3})(?:-rc\.?(\d+))?")
_PACKAGED = re.compile(r"\+ds|deb\d|ubuntu|\.el\d|\.fc\d|\.amzn|-\d+(?:ubuntu|build)", re.IGNORECASE)
_RPM_FAMILY = re.compile(r"rhel|fedora|centos|suse|amzn", re.IGNORECASE)
_RELEASED = 1_000_000
"""Sorts a release behind all its candidates."""


@dataclass(frozen=True)
class Floors:
    """The data file."""

    dated: date
    nvidia_driver: Mapping[str, str]
    nvidia_driver_ended: frozenset[str]
    nvidia_container_toolkit: Mapping[str, str]
    runc: Mapping[str, str]


@functools.cache
def floors() -> Floors:
    """Read the shipped list."""
    tree = json.loads(files("sandbox.node.doctor").joinpath("floors.json").read_text(encoding="utf-8"))
    return Floors(date.fromisoformat(tree["dated"]), tree["nvidia-driver"], frozenset(tree["nvidia-driver-ended"]),
                  tree["nvidia-container-toolkit"], tree["runc"])  # fmt: skip


def parse_version(text: str) -> tuple[int, ...] | None:
    """Return the first version in ``text`` as numbers that compare, the last one being the candidate; None where there is none."""
    match = _VERSION.search(text)
    if match is None:
        return None
    numbers = [int(part) for part in match[1].split(".")]
    return (*[*numbers, 0, 0, 0][:3], int(match[2]) if match[2] else _RELEASED)


def judge_version(name: str, text: str, known: Mapping[str, str], *, parts: int, packaged: bool, fix: str) -> Check:
    """Compare the version in ``text`` with the floor of its branch (the first ``parts`` numbers)."""
    wanted = "at least " + ", ".join(known.values())
    seen = parse_version(text)
    if seen is None:
        return unknown(name, text or "no version", wanted, fix)
    branch = ".".join(str(number) for number in seen[:parts])
    floor = parse_version(known[branch]) if branch in known else None
    shown = _shown(text)
    if floor is not None and seen >= floor:
        return judged(name, True, shown, wanted, fix)
    newest = max(parse_version(version) or () for version in known.values())
    if floor is None and seen > newest:
        return unknown(name, f"{shown}: newer than the list of known versions", wanted, "update Sealrig, which brings a newer list")
    if packaged:
        return unknown(name, f"{shown}: a distribution's package, which may hold the fixes", wanted, f"read its changelog, or {fix}")
    return judged(name, False, shown, wanted, fix)


def nvidia_driver(host: Host) -> Check | None:
    """Check that the driver's release has no known hole."""
    if not has_nvidia(host):
        return None
    name, fix = "nvidia-driver-version", "install a current driver of a supported branch"
    text = host.text("/sys/module/nvidia/version") or ""
    branch = text.partition(".")[0]
    if branch in floors().nvidia_driver_ended:
        return judged(name, False, f"{text}: the branch has ended", "at least " + ", ".join(floors().nvidia_driver.values()), fix)
    return judge_version(name, text, floors().nvidia_driver, parts=1, packaged=False, fix=fix)


def nvidia_container_toolkit(host: Host) -> Check | None:
    """Check that NVIDIA's container toolkit, where it is installed, has no known hole."""
    if not has_nvidia(host):
        return None
    name, fix = "nvidia-container-toolkit-version", "install a current nvidia-container-toolkit"
    text = host.output("nvidia-ctk", "--version")
    if text is None:
        return judged(name, True, "not installed, and not needed", "a current one, or none", fix)
    return judge_version(name, text, floors().nvidia_container_toolkit, parts=2, packaged=False, fix=fix)


def runc(host: Host) -> Check:
    """Check that the program that makes containers has no known hole."""
    name, fix = "runc-version", "install a current runc"
    text = host.output("runc", "--version")
    if text is None:
        return unknown(name, "runc does not answer", "at least " + ", ".join(floors().runc.values()), fix)
    system = host.text("/etc/os-release") or ""
    family = "\n".join(line for line in system.splitlines() if line.startswith(("ID=", "ID_LIKE=")))
    packaged = bool(_PACKAGED.search(text)) or bool(_RPM_FAMILY.search(family))
    return judge_version(name, text, floors().runc, parts=2, packaged=packaged, fix=fix)


def floors_age(now: datetime) -> Check:
    """Check that the list of floors is young enough to mean something."""
    age = (now.date() - floors().dated).days
    wanted, fix = f"at most {MAX_AGE_DAYS} days old", "update Sealrig, which brings a newer list; until then passes of versions mean less"
    seen = f"of {floors().dated.isoformat()}, {age} days old"
    return judged(AGE, True, seen, wanted, fix) if age <= MAX_AGE_DAYS else unknown(AGE, seen, wanted, fix)


def _shown(text: str) -> str:
    return text.splitlines()[0] if text else "none"


CHECKS: dict[str, Callable[[Host], Check | None]] = {
    "nvidia-driver-version": nvidia_driver,
    "nvidia-container-toolkit-version": nvidia_container_toolkit,
    "runc-version": runc,
}
