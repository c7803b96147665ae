"""A Docker Engine that answers: the one that is there, or one of our own with its data under ``.dev``."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

from system import Refusal, find, install, prefix_root, say

DEFAULT_SOCKET = "/var/run/docker.sock"
START_SECONDS = 30.0
PING_SECONDS = 5.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PING_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PING_SECONDS)
        self.sock.connect(self._path)


def ensure_engine(root: Path) -> str | None:
    """Return the ``DOCKER_HOST`` of an engine that answers, None where the default is right. Raises ``Refusal``."""
    chosen = os.environ.get("DOCKER_HOST")
    if chosen:
        if answers(chosen):
            return chosen
        raise Refusal(f"DOCKER_HOST={chosen} does not answer; start that engine or unset DOCKER_HOST")
    if answers(f"unix://{DEFAULT_SOCKET}"):
        return None
    own = _own_folder(root)
    host = f"unix://{own}/docker.sock"
    if answers(host):
        return host
    if find("dockerd") is None:
        install(["docker.io", "iptables"])
    if _start_service() or answers(f"unix://{DEFAULT_SOCKET}"):
        return None
    _start_own(root, own, host)
    return host


def answers(host: str) -> bool:
    """Say whether an engine answers at a ``DOCKER_HOST``; one that only root may reach counts, the commands run as root."""
    where = urlsplit(host)
    if where.scheme == "unix":
        connection: http.client.HTTPConnection = _UnixConnection(where.path)
    elif where.scheme in {"tcp", "http"} and where.hostname and not os.environ.get("DOCKER_TLS_VERIFY"):
        connection = http.client.HTTPConnection(where.hostname, where.port or 2375, timeout=PING_SECONDS)
    else:
        return True  # ssh, TLS: the engine client itself will say
    try:
        connection.request("GET", "/_ping")
        return connection.getresponse().status == http.HTTPStatus.OK
    except PermissionError:
        return os.geteuid() != 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _own_folder(root: Path) -> Path:
    # A Unix socket's path may have 107 bytes; a clone may lie deeper than that.
    return Path("/run") / f"sealrig-{hashlib.sha256(bytes(root)).hexdigest()[:8]}"


def _start_service() -> bool:
    """Start the machine's own engine where systemd runs."""
    if not Path("/run/systemd/system").is_dir() or find("systemctl") is None:
        return False
    say("starting the Docker service")

    subprocess.run(prefix_root(["systemctl", "start", "docker"]), check=False, stdin=subprocess.DEVNULL, capture_output=True)
    return _wait(f"unix://{DEFAULT_SOCKET}", None)


def _start_own(root: Path, own: Path, host: str) -> None:
    """Start ``dockerd`` detached, with its own data, socket and pid file; without a bridge where the kernel has no NAT."""
    log = root / ".dev" / "dockerd.log"
    log.parent.mkdir(exist_ok=True)
    subprocess.run(prefix_root(["mkdir", "-p", str(own)]), check=True)
    said = ""
    for extra in ([], ["--iptables=false", "--ip6tables=false", "--bridge=none"]):
        say(f"starting a Docker Engine of our own (log: {log})")
        base = ["dockerd", "--config-file", str(_settings(root)), "--data-root", str(root / ".dev" / "docker")]
        base += ["--exec-root", str(own / "exec")]
        command = prefix_root([*base, "-H", host, "-p", str(own / "docker.pid"), *extra])
        with log.open("wb") as out:
            # All three streams go elsewhere and the session is new: whoever waits for our output must not wait for the daemon.
            process = subprocess.Popen(
                [find(command[0]) or command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
            )
        if _wait(host, process):
            say(f"it answers at {host}; stop it with: kill $(cat {own}/docker.pid)")
            return
        process.terminate()
        process.wait()
        said = log.read_text(errors="replace").strip().rpartition("\n")[2]
    raise Refusal(f"Docker Engine does not start here ({said[-300:]}); start one and set DOCKER_HOST")


def _settings(root: Path) -> Path:
    """Write the engine's settings: gVisor as a second runtime where it is installed, without network and with ptrace, which works in a VM.

    CDI, through which leases get their GPUs, is on without asking from Docker Engine 28.3 on.
    """
    runtimes = {}
    if runsc := find("runsc"):
        runtimes["runsc"] = {"path": runsc, "runtimeArgs": ["--network=none", "--platform=ptrace"]}
    place = root / ".dev" / "dockerd.json"
    place.write_text(json.dumps({"runtimes": runtimes, "features": {"cdi": True}}))
    return place


def _wait(host: str, process: subprocess.Popen[bytes] | None) -> bool:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if answers(host):
            return True
        if process is not None and process.poll() is not None:
            return False
        time.sleep(0.1)
    return False
