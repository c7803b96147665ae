"""What the container engine says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox.node.doctor.check import Check, judged, unknown

if TYPE_CHECKING:
    from sandbox.node.engine import EngineFacts


def answers(facts: EngineFacts | None) -> Check:
    """Check that the engine answers."""
    wanted, fix = "a Docker Engine that answers", "start it, and point DOCKER_HOST at it"
    return judged("engine-answers", facts is not None, f"Docker {facts.version}" if facts else "no answer", wanted, fix)


def seccomp(facts: EngineFacts | None) -> Check:
    """Check that the engine can filter system calls."""
    wanted, fix = "seccomp", "boot a kernel with CONFIG_SECCOMP_FILTER"
    if facts is None:
        return unknown("engine-seccomp", "the engine does not answer", wanted, fix)
    return judged(
        "engine-seccomp", any("name=seccomp" in item for item in facts.security), ", ".join(facts.security) or "none", wanted, fix
    )


def cgroup(facts: EngineFacts | None) -> Check:
    """Check that the engine has control groups to put limits on."""
    wanted, fix = "cgroup v1 or v2", "mount the cgroup file system before the engine starts"
    if facts is None:
        return unknown("engine-cgroup", "the engine does not answer", wanted, fix)
    return judged("engine-cgroup", facts.cgroup_version in {"1", "2"}, f"v{facts.cgroup_version}", wanted, fix)


CHECKS: dict[str, Callable[[EngineFacts | None], Check]] = {
    "engine-answers": answers,
    "engine-seccomp": seccomp,
    "engine-cgroup": cgroup,
}
