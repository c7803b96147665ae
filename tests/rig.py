"""The three programs as real processes, and people who use them through the real command line.

A ``Rig`` owns one folder: the server's data, the nodes' data, and a home for each person. Programs are started and killed by process id
only; each is in a session of its own with its output in a file. A ``Person`` runs ``sealrig`` in this process, which is fast, with
the environment of that person; ``spawn`` runs it as a process of its own, for what must be killed or watched.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from sandbox.cli import main
from tests.patience import PATIENCE
from tests.ports import free_port

START_SECONDS = 60.0
STOP_SECONDS = 60.0
LOOK_SECONDS = 5.0
"""How long one question for a lease's next state is held open: looking again and again takes a processor from what is waited for."""
_PERSONAL = ("SEALRIG_SERVER", "SEALRIG_TOKEN", "SEALRIG_KEY", "SEALRIG_TRUST", "XDG_CONFIG_HOME", "XDG_STATE_HOME")


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and both streams."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        """Standard output as text."""
        return self.raw.decode()

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.raw)

    @property
    def error(self) -> Any:
        """The error of a command that was run with ``--json``."""
        return self.json["error"]

    def ok(self) -> Self:
        """Return this result of a command that succeeded; fail the test otherwise."""
        assert self.code == 0, f"exit {self.code}\n{self.err}\n{self.out}"
        return self


class Program:
    """One process, its output in a file."""

    def __init__(self, name: str, args: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sandbox.cli", *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(env),
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill it, as a power cut would."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end and return its exit code; kill it if it does not."""
        if self.running:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def text(self) -> str:
        """Return what it has written so far."""
        return self.log.read_text(errors="replace")


class Person:
    """Somebody with a home of their own: configuration, state and identity."""

    def __init__(self, home: Path, url: str) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home, self.key, self.trust, self.token = home, home / "id", home / "TRUST.yaml", ""
        self.env = {
            "SEALRIG_SERVER": url, "SEALRIG_KEY": str(self.key), "SEALRIG_TRUST": str(self.trust), "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
        }  # fmt: skip

    def run(self, *args: object, stdin: bytes = b"") -> Result:
        """Run ``sealrig`` in this process as this person."""
        return run(*args, env=self.env, stdin=stdin)

    def json(self, *args: object) -> Any:
        """Run a command that must succeed, with ``--json``, and return its document."""
        return self.run(*args, "--json").ok().json

    def login(self, token: str) -> Self:
        """Keep a token."""
        self.run("config", "login", self.env["SEALRIG_SERVER"], "--token-file", "-", stdin=f"{token}\n".encode()).ok()
        self.token = token
        return self

    def wait_change(self, lease: str, state: str, seconds: float) -> None:
        """Let the server say when a lease is in another state; return after ``seconds`` at most, at once where there is no server."""
        params: dict[str, str | float] = {"since": state, "wait": seconds}
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(
                f"{self.env['SEALRIG_SERVER']}/v1/leases/{lease}", params=params, headers={"Authorization": f"Bearer {self.token}"},
                timeout=seconds + 10,
            )  # fmt: skip

    def spawn(self, name: str, *args: object) -> Program:
        """Run ``sealrig`` as a process of its own."""
        return Program(name, [str(arg) for arg in args], _clean(self.env), self.home)


class Rig:
    """One control plane, its nodes, and the people around it. Use it in a ``with`` statement: everything ends with it."""

    def __init__(self, folder: Path, *, policy: str = "development", docker_host: str | None = None) -> None:
        self.folder, self.policy = folder, policy
        self.docker_host = docker_host or os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        self.data = folder / "control"
        self.url = f"http://127.0.0.1:{free_port()}"
        self.server: Program | None = None
        self.nodes: dict[str, Program] = {}
        self._spawned: list[Program] = []

    def __enter__(self) -> Self:
        self.start_server()
        self.operator = Person(self.folder / "operator", self.url).login((self.data / "operator.token").read_text().strip())
        return self

    def __exit__(self, *_: object) -> None:
        for program in [*self._spawned, *self.nodes.values(), *([self.server] if self.server else [])]:
            if program.running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.stop()

    def start_server(self) -> Program:
        """Start the control plane on its data folder and wait until it is ready."""
        args = ["serve", "--data", str(self.data), "--listen", self.url.removeprefix("http://"), "--policy", self.policy]
        args += ["--unsafe-development"] if self.policy == "development" else []
        self.server = server = Program("server", args, _clean({}), self._made())
        self.wait_for(lambda: _answers(f"{self.url}/readyz"), "the server to be ready", server)
        return server

    def kill_server(self) -> None:
        """Kill the control plane, as a power cut would."""
        assert self.server is not None
        self.server.kill()

    def token(self, role: str, tenant: str) -> str:
        """Issue a token as the operator and return its secret."""
        return str(self.operator.json("token", "new", "--role", role, "--tenant", tenant)["token"])

    def person(self, name: str, role: str = "customer", tenant: str | None = None, *, identity: bool = True) -> Person:
        """Return somebody who is logged in, with an identity."""
        person = Person(self.folder / name, self.url).login(self.token(role, tenant or name))
        if identity:
            person.run("key", "new", person.key).ok()
        return person

    def add_node(self, name: str = "node", *, slots: int = 2, cpus: int | None = None) -> str:
        """Make a node, start it, wait until the server knows it, and return its id. ``cpus`` is what it says it has, not the machine's."""
        node = self.make_node(name, slots=slots)
        if cpus is not None:
            with (self.folder / name / "node.yaml").open("a") as settings:
                settings.write(f"cpus: {cpus}\n")
        self.start_node(name)
        self.wait_node(node, name)
        return node

    def make_node(self, name: str = "node", *, slots: int = 2) -> str:
        """Make a node's folder and return its id."""
        data = self.folder / name
        token = self.token("node", "rig")
        args = ["node", "init", "--server", self.url, "--data", data, "--docker", self.docker_host, "--slots", slots]
        made = run(*args, "--token-file", "-", "--json", stdin=f"{token}\n".encode())
        return str(made.ok().json["node"])

    def start_node(self, name: str = "node", env: Mapping[str, str] | None = None) -> Program:
        """Start a node that was made before, or start it again."""
        self.nodes[name] = Program(name, ["node", "run", "--data", str(self.folder / name)], _clean(env or {}), self._made())
        return self.nodes[name]

    def wait_node(self, node: str, name: str = "node") -> None:
        """Wait until the server knows a node."""
        self.wait_for(
            lambda: any(each["id"] == node for each in self.operator.json("node", "list")), f"{name} to register", self.nodes[name]
        )

    def agent(self, person: Person, *args: object) -> Program:
        """Start a person's release agent."""
        program = person.spawn("agent", "release", "--watch", *args)
        self._spawned.append(program)
        self.wait_for(lambda: "release agent of" in program.text(), "the release agent to start", program)
        return program

    def wait_for(self, done: Callable[[], Any], what: str, program: Program | None = None, *, seconds: float = START_SECONDS) -> Any:
        """Wait until ``done`` returns something true, and return it; fail when it takes too long or the program has ended."""
        deadline = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < deadline:
            if found := done():
                return found
            assert program is None or program.running, f"{program.name} ended while waiting for {what}:\n{program.text()[-3000:]}"
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s for {what}\n{program.text()[-3000:] if program else ''}")

    def wait_state(self, person: Person, lease: str, *states: str, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Wait until a lease is in one of ``states`` and return it."""

        def look() -> dict[str, Any] | None:
            info: dict[str, Any] = person.json("lease", "show", lease)
            if info["state"] in states:
                return info
            person.wait_change(lease, info["state"], LOOK_SECONDS)
            return None

        return self.wait_for(look, f"{lease} to be {' or '.join(states)}", seconds=seconds)  # type: ignore[no-any-return]

    def _made(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder


def run(*args: object, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> Result:
    """Run ``sealrig`` in this process with the personal settings of ``env`` and no others; return what it left."""
    out, err = io.BytesIO(), io.StringIO()
    with _environment(env or {}), _streams(out, err, stdin):
        code = main([str(arg) for arg in args])
    return Result(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _streams(out: io.BytesIO, err: io.StringIO, stdin: bytes) -> Iterator[None]:
    stdout = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
    kept = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(err):
            yield
        stdout.flush()
        stdout.detach()
    finally:
        sys.stdin = kept


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in _PERSONAL if name in os.environ}
    os.environ.update(env)
    try:
        yield
    finally:
        for name in env:
            os.environ.pop(name, None)
        os.environ.update(kept)


def _clean(env: Mapping[str, str]) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name not in _PERSONAL}, "PYTHONUNBUFFERED": "1", **env}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
