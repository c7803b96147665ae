"""What all tests share: when a test is left out, the public vectors, and a plain summary of every test that was left out."""

from __future__ import annotations

import os
import socket
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

from attestation.log.bucket import Bucket
from sandbox.node.engine import DEFAULT_SOCKET
from tests.alone import turn
from tests.postgres import PostgresServer, find_binaries

# Timing belongs to benches: a busy machine must not fail a property.
settings.register_profile("sealrig", deadline=None)
settings.load_profile("sealrig")

ROOT = Path(__file__).resolve().parents[1]
# No test talks to a stranger over TLS. Without this each HTTP client, here and in every program that a test starts, first reads the
# machine's 140 certificate authorities, which takes longer than what most of them then ask. Some want one at least.
os.environ["SSL_CERT_FILE"] = str(ROOT / "tests" / "authority.pem")
os.environ["SSL_CERT_DIR"] = "/nonexistent"

VECTORS = ROOT.parent / "shared" / "vectors"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the clock of a test's timeout begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that changes the machine wait for its turn."""
    if os.geteuid() != 0 or not any(map(item.get_closest_marker, ("docker", "root"))):
        return (yield)
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


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
    """Say why the engine does not answer. Asked over a plain socket: the SDK, as httpx, leaves its own open where nobody listens."""
    scheme, _, place = (os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET).partition("://")
    try:
        if scheme == "unix":
            with socket.socket(socket.AF_UNIX) as plain:
                plain.settimeout(10)
                plain.connect(place)
                plain.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                said = plain.recv(100)
        else:
            said = httpx.get(f"http://{place}/_ping", timeout=10).text.encode()
    except (OSError, httpx.HTTPError) as error:
        return str(error)
    return "" if b"OK" in said else f"it says {said[:50]!r}"


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


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server that speaks S3, in this process, on a port of its own."""
    server = pytest.importorskip("moto.server", reason="needs the package moto[server], a server that speaks S3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        yield f"http://{host}:{port}"
        running.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> Bucket:
    """An empty bucket for a log."""
    name = f"log-{os.urandom(6).hex()}"
    assert httpx.put(f"{s3_endpoint}/{name}", timeout=60).is_success
    options = {"endpoint": s3_endpoint, "region": "us-east-1", "access_key_id": "key", "secret_access_key": "secret"}
    return Bucket(name, "some/prefix", {**options, "client_options": {"allow_http": True}, "retry_config": {"max_retries": 1}})


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run; each test makes databases of its own in it."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = PostgresServer(binaries)
    yield server
    server.stop()
