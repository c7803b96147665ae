"""The separate processes of the demo: long-running programs with their logs in files, and commands as a person types them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from sandbox.cli.demo.interrupt import Interrupts
from sandbox.errors import SealrigError, ServerError

START_SECONDS = 60.0
COMMAND_SECONDS = 300.0
STOP_SECONDS = 20.0
_LOG_TAIL = 2000
_PORTS = range(10_000, 20_000)


class CommandError(SealrigError):
    """A command of the demo did not do what it should; ``code`` and details are the command's own."""

    def __init__(self, command: str, code: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(f"'{command}' failed: {message}", **details)
        self.code = code  # type: ignore[misc]  # the code of the command that failed, told on


@dataclass(frozen=True)
class Person:
    """One of the three people: a name, and settings of their own, apart from those of whoever started the demo."""

    name: str
    home: Path
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

    def environment(self) -> dict[str, str]:
        """Return the environment of this person's commands. The token travels here, never in the arguments."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SEALRIG_")}
        return {
            **kept,
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_STATE_HOME": str(self.home / ".state"),
            "PYTHONUNBUFFERED": "1",
            **self.settings,
        }


class Programs:
    """Everything that the demo started. ``stop`` ends all of it."""

    def __init__(self, interrupts: Interrupts) -> None:
        """Start with nothing."""
        self._interrupts = interrupts
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Path] = {}

    def start(self, name: str, person: Person, words: list[str], log: Path | None) -> None:
        """Start ``sealrig WORDS`` in a session of its own, its output going to ``log``, or to our own stderr."""
        with self._interrupts.held():
            out = os.dup(sys.stderr.fileno()) if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                self._running[name] = subprocess.Popen(
                    [*_SEALRIG, *words],
                    env=person.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            finally:
                os.close(out)
            if log is not None:
                self._logs[name] = log

    def command(self, person: Person, words: list[str]) -> Any:  # noqa: ANN401  (each command has its own document)
        """Run ``sealrig WORDS --json`` and return its document. Raises ``CommandError`` with the command's own words."""
        typed = f"sealrig {shlex.join(words)}"
        try:
            code, out, err = _run([*_SEALRIG, *words, "--json"], person.environment())
        except subprocess.TimeoutExpired as error:
            raise CommandError(typed, "timeout", f"no answer within {COMMAND_SECONDS:.0f} s", {}) from error
        try:
            document = json.loads(out)
        except ValueError as error:
            raise CommandError(typed, "internal", err.decode(errors="replace")[-_LOG_TAIL:].strip(), {}) from error
        if code:
            problem = document.get("error", {}) if isinstance(document, dict) else {}
            raise CommandError(
                typed, problem.get("code", "internal"), problem.get("message", "no reason given"), problem.get("details", {})
            )
        return document

    def wait_ready(self, name: str, server: str) -> None:
        """Wait until the control plane answers. Raises ``ServerError`` with the end of its log where it does not."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            self.check(name)
            try:
                if httpx.get(f"{server}/readyz", timeout=2, trust_env=False).status_code == httpx.codes.OK:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise ServerError(
            "the control plane does not get ready",
            rule="demo-start",
            seen=self._tail(name),
            wanted="200 from /readyz",
            fix=self._where(name),
        )

    def check(self, name: str) -> None:
        """Raise ``ServerError`` with the end of its log where a program has ended."""
        code = self._running[name].poll()
        if code is not None:
            raise ServerError(
                f"{name} ended with code {code}",
                rule="demo-program",
                seen=self._tail(name),
                wanted="a running program",
                fix=self._where(name),
            )

    def wait(self, name: str, seconds: float) -> int | None:
        """Wait for a program's own end; its exit code, or None where it still runs after ``seconds``."""
        try:
            return self._running[name].wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, name: str) -> None:
        """End one program: politely, then by force. One that never started, or has ended, is fine."""
        process = self._running.get(name)
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop_all(self) -> None:
        """End all programs, the last started first."""
        for name in reversed(self._running):
            self.stop(name)

    def _tail(self, name: str) -> str:
        log = self._logs.get(name)
        return log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip() if log else "see above"

    def _where(self, name: str) -> str:
        log = self._logs.get(name)
        return f"look at {log}" if log else "see what it said above"


def _run(words: list[str], environment: dict[str, str]) -> tuple[int, bytes, bytes]:
    """Run a command to its end; one that is interrupted, or takes too long, is gone before anything is cleaned up."""
    with subprocess.Popen(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=COMMAND_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return process.returncode, out, err


def free_port() -> int:
    """Return a loopback port that was free a moment ago, if possible none of those that the kernel gives to whatever connects next."""
    with socket.socket() as probe:
        for port in (*random.SystemRandom().sample(_PORTS, 100), 0):
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                break
        return int(probe.getsockname()[1])


_SEALRIG = [sys.executable, "-m", "sandbox.cli"]
