"""What all tests share: when a test is left out, the public vectors, and a plain summary of every test that was left out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# Timing belongs to benches: a busy machine must not fail a property.
settings.register_profile("sealrig", deadline=None)
settings.load_profile("sealrig")

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ROOT.parent / "shared" / "vectors"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out, with the reason, what this machine cannot run."""
    if os.geteuid() != 0:
        _leave_out(items, "root", "needs root: mounts, loop devices and namespaces")
    if any(item.get_closest_marker("docker") for item in items):
        problem = _engine_problem()
        if problem:
            _leave_out(items, "docker", f"needs a Docker Engine that answers: {problem}")


def _leave_out(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def _engine_problem() -> str:
    import docker

    try:
        client = docker.from_env(timeout=10)
    except docker.errors.DockerException as error:
        return str(error)
    try:
        client.ping()
    except docker.errors.DockerException as error:
        return str(error)
    finally:
        client.close()
    return ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out and why, so that a green run cannot hide it."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        longrepr = report.longrepr
        text = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reasons[text.removeprefix("Skipped: ")] += 1
    terminalreporter.section("left out, and why")
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count:4d}  {reason}")
    if not reasons:
        terminalreporter.line("   nothing was left out")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Return the folder of public test vectors that lies beside the checkout."""
    if not VECTORS.is_dir():
        pytest.skip(f"the public vectors are not beside the checkout ({VECTORS.parent.name}/{VECTORS.name})")
    return VECTORS
