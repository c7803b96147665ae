"""The Docker Engine, and nothing else of Sealrig touches it. Every call has a time limit; every answer is checked.

Requests are written out whole (``drift.create_request``) because the SDK's own helpers drop values such as 0, False and [] silently.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from sandbox.errors import EngineError, ImageError
from sandbox.model import is_sha256_digest
from sandbox.node import drift
from sandbox.node.layout import LEASE_LABEL, NODE_LABEL
from sandbox.node.plan import ImageFacts, LaunchPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CALL_SECONDS = 30
PULL_SECONDS = 3600
_FRAME_HEADER = 8
_READ_BYTES = 64 * 1024
DEFAULT_SOCKET = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class EngineFacts:
    """What the engine says of itself."""

    version: str
    api_version: str
    runtimes: tuple[str, ...]
    cgroup_version: str
    security: tuple[str, ...]
    cdi: bool
    gvisor_args: str = ""
    """The arguments that the engine gives the runtime runsc."""

    @property
    def apparmor(self) -> bool:
        """Whether the host confines containers with AppArmor."""
        return any("name=apparmor" in item for item in self.security)


def engine_facts(info: Mapping[str, Any], version: Mapping[str, Any]) -> EngineFacts:
    """Return what matters of the engine's answers to ``GET /info`` and ``GET /version``. Pure."""
    runtimes = info.get("Runtimes") or {}
    return EngineFacts(
        version=str(version.get("Version", "")),
        api_version=str(version.get("ApiVersion", "")),
        runtimes=tuple(sorted(runtimes)),
        cgroup_version=str(info.get("CgroupVersion", "1")),
        security=tuple(info.get("SecurityOptions") or ()),
        cdi=bool(info.get("CDISpecDirs")),
        gvisor_args=" ".join((runtimes.get("runsc") or {}).get("runtimeArgs") or ()),
    )


@dataclass(frozen=True)
class Exit:
    """How a container ended."""

    exit_code: int
    oom_killed: bool
    error: str


@dataclass(frozen=True)
class Container:
    """A container of ours, as found by label."""

    id: str
    name: str
    lease: str
    running: bool


class Engine:
    """One engine. Safe for use by several threads: each thread has its own connection pool."""

    def __init__(self, url: str = DEFAULT_SOCKET) -> None:
        """Remember the engine's address; the first call connects."""
        self.url = url
        self._local = threading.local()

    @property
    def _api(self) -> Any:  # noqa: ANN401  (the SDK is untyped)
        api = getattr(self._local, "api", None)
        if api is None:
            with _errors("connect"):
                api = docker.APIClient(base_url=self.url, timeout=CALL_SECONDS, version="auto")
            self._local.api = api
        return api

    def facts(self) -> EngineFacts:
        """Ask the engine for its version and abilities. Raises ``EngineError``."""
        with _errors("ask for the version"):
            return engine_facts(self._api.info(), self._api.version())

    def image(self, reference: str) -> ImageFacts:
        """Return the facts of an image that is named by content digest. Raises ``ImageError`` where it is not, or cannot be had."""
        with _errors("inspect the image"):
            try:
                found = self._api.inspect_image(reference)
            except ImageNotFound:
                found = self._pull(reference)
        if reference != found["Id"] and reference not in (found.get("RepoDigests") or ()):
            raise ImageError(
                "the engine answered with another image",
                rule="image-digest",
                seen=str(found["Id"]),
                wanted=reference,
                fix="load the image again on this node",
            )
        config = found.get("Config") or {}
        return ImageFacts(
            id=str(found["Id"]),
            env=tuple(config.get("Env") or ()),
            volumes=tuple(sorted(config.get("Volumes") or {})),
            labels=dict(config.get("Labels") or {}),
            exposed_ports=tuple(sorted(config.get("ExposedPorts") or {})),
            architecture=str(found.get("Architecture", "")),
        )

    def find_image(self, name: str) -> str | None:
        """Return the id of a local image by name and tag, None where there is none."""
        with _errors("inspect the image"):
            try:
                return str(self._api.inspect_image(name)["Id"])
            except ImageNotFound:
                return None

    def import_image(self, rootfs: BinaryIO, *, name: str, changes: list[str]) -> str:
        """Make an image from a tar of its root file system and return its id. Raises ``EngineError``."""
        repository, _, tag = name.rpartition(":")
        api: Any = docker.APIClient(base_url=self.url, timeout=PULL_SECONDS, version="auto")
        try:
            with _errors("import the image"):
                # An iterator, not the file: the SDK announces chunks, and requests sends a plain file as one piece.
                chunks = iter(lambda: rootfs.read(1024 * 1024), b"")
                api.import_image_from_stream(chunks, repository=repository, tag=tag, changes=changes)
                return str(api.inspect_image(name)["Id"])
        finally:
            api.close()

    def _pull(self, reference: str) -> dict[str, Any]:
        repository, _, digest = reference.rpartition("@")
        if not repository or not is_sha256_digest(digest):
            raise ImageError(
                "the image is not on this node",
                rule="image",
                seen="no such image",
                wanted=reference,
                fix="load it on the node (docker load), or name it as repository@sha256:…",
            )
        api: Any = docker.APIClient(base_url=self.url, timeout=PULL_SECONDS, version="auto")
        try:
            api.pull(repository, tag=digest)
            found: dict[str, Any] = api.inspect_image(reference)
        except (APIError, NotFound) as error:
            raise ImageError(
                "the image could not be pulled",
                rule="image",
                seen=_reason(error),
                wanted=reference,
                fix="check that the registry has it and that this node may read it",
            ) from error
        else:
            return found
        finally:
            api.close()

    def create(self, plan: LaunchPlan, *, network_mode: str) -> tuple[str, bytes]:
        """Create the container, compare it with the plan, and return its id and the inspect that was compared.

        Raises ``DriftError`` when the engine made anything else; the container is then still there for the wipe.
        """
        request = drift.create_request(plan, network_mode=network_mode)
        with _errors("create the container"):
            made = self._api.create_container_from_config(request, plan.container)
            inspected = self._api.inspect_container(made["Id"])
        return str(made["Id"]), drift.check(plan, inspected, network_mode=network_mode)

    @contextmanager
    def attached(self, container: str) -> Iterator[Iterator[bytes]]:
        """Attach to stdout and stderr before the start, so that no byte is lost; yields an iterator that ends with the container."""
        with _errors("attach"):
            stream = self._api.attach_socket(container, params={"stdout": 1, "stderr": 1, "stream": 1, "logs": 0})
        raw: socket.socket = getattr(stream, "_sock", stream)
        raw.settimeout(None)
        try:
            yield _frames(raw)
        finally:
            # The response before its socket: left to the garbage collector it would flush what is closed by then.
            if response := getattr(stream, "_response", None):
                response.close()
            raw.close()
            stream.close()

    def start(self, container: str) -> None:
        """Start a created container. Raises ``EngineError`` with the engine's reason."""
        with _errors("start the container"):
            self._api.start(container)

    def state(self, container: str) -> Exit | None:
        """Return how a container ended, or None while it runs. Raises ``EngineError``; a container that is gone is an error."""
        with _errors("inspect the container"):
            state = self._api.inspect_container(container)["State"]
        if state.get("Running") or state.get("Status") in ("created", "restarting"):
            return None
        return Exit(int(state.get("ExitCode", -1)), bool(state.get("OOMKilled")), str(state.get("Error", ""))[:500])

    def wait(self, container: str, seconds: float) -> Exit | None:
        """Wait for the end of a container, ``seconds`` at most; None when it still runs then."""
        try:
            self._api.wait(container, timeout=max(0.05, seconds))
        except requests.exceptions.Timeout:
            return None
        except requests.exceptions.ConnectionError as error:
            if "timed out" in str(error).lower():
                return None
            raise EngineError(
                "Docker broke off while waiting",
                rule="engine",
                seen=_reason(error),
                wanted="the container's end",
                fix="check that the engine runs",
            ) from error
        except (DockerException, requests.exceptions.RequestException) as error:
            raise EngineError(
                "Docker failed while waiting",
                rule="engine",
                seen=_reason(error),
                wanted="the container's end",
                fix="check that the engine runs",
            ) from error
        return self.state(container)

    def kill(self, container: str) -> None:
        """Kill all processes of a container at once; one that does not run, or is gone, is fine."""
        with _errors("kill the container"):
            try:
                self._api.kill(container)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != requests.codes.conflict and "is not running" not in _reason(error):
                    raise

    def remove(self, container: str) -> None:
        """Remove a container with its anonymous volumes; one that is gone is fine."""
        with _errors("remove the container"):
            try:
                self._api.remove_container(container, v=True, force=True)
            except NotFound:
                return

    def volumes_of(self, container: str) -> list[str]:
        """Return the names of volumes that a container holds; there should be none."""
        with _errors("inspect the container"):
            try:
                mounts = self._api.inspect_container(container).get("Mounts") or []
            except NotFound:
                return []
        return [str(item.get("Name")) for item in mounts if item.get("Type") == "volume"]

    def volume_exists(self, name: str) -> bool:
        """Say whether a volume is there."""
        with _errors("inspect the volume"):
            try:
                self._api.inspect_volume(name)
            except NotFound:
                return False
        return True

    def containers(self, *, lease: str | None = None, node: str | None = None) -> list[Container]:
        """Return our containers in any state, by label."""
        label = f"{LEASE_LABEL}={lease}" if lease else LEASE_LABEL
        labels = [label, f"{NODE_LABEL}={node}"] if node else [label]
        with _errors("list containers"):
            rows = self._api.containers(all=True, filters={"label": labels})
        return [
            Container(
                id=str(row["Id"]),
                name=str((row.get("Names") or [""])[0]).lstrip("/"),
                lease=str((row.get("Labels") or {}).get(LEASE_LABEL, "")),
                running=row.get("State") == "running",
            )
            for row in rows
        ]

    def exists(self, name: str) -> bool:
        """Say whether a container of this name or id is there."""
        with _errors("inspect the container"):
            try:
                self._api.inspect_container(name)
            except NotFound:
                return False
        return True

    def pid(self, container: str) -> int:
        """Return the host's process id of a running container's first process."""
        with _errors("inspect the container"):
            return int(self._api.inspect_container(container)["State"]["Pid"])

    def close(self) -> None:
        """Close this thread's connection."""
        api = getattr(self._local, "api", None)
        if api is not None:
            api.close()
            self._local.api = None


def _frames(raw: socket.socket) -> Iterator[bytes]:
    """Yield the payloads of the engine's multiplexed stream (stdout and stderr in order of arrival)."""
    while True:
        header = _exactly(raw, _FRAME_HEADER)
        if header is None:
            return
        left = int.from_bytes(header[4:8], "big")
        while left:
            piece = _receive(raw, min(left, _READ_BYTES))
            if not piece:
                return
            left -= len(piece)
            yield piece


def _exactly(raw: socket.socket, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        piece = _receive(raw, count - len(data))
        if not piece:
            return None
        data += piece
    return data


def _receive(raw: socket.socket, count: int) -> bytes:
    try:
        return raw.recv(count)
    except OSError:
        return b""  # the engine or we ourselves closed the stream: the end, as far as logs go


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    """Turn every way in which the SDK fails into ``EngineError`` with the engine's own words."""
    try:
        yield
    except EngineError:
        raise
    except (DockerException, requests.exceptions.RequestException) as error:
        raise EngineError(
            f"Docker could not {doing}: {_reason(error)}",
            rule="engine",
            seen=_reason(error),
            wanted="an answer within the time limit",
            fix="check that the Docker Engine runs and that this user may use it (docker info)",
        ) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "explanation", None) or error)[:500]
