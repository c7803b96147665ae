"""The control plane as a process of its own, to be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.control.actors import POLICY, Customer, Node, Person, ok
from tests.patience import LONG


class ServerProcess:
    """``sealrig serve`` on a free port of the loopback; the same data folder through all its lives."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.data, self.more, self.folder = folder / "data", more, folder
        self.policy = folder / "policy.yaml"
        self.policy.write_bytes(POLICY)
        self.process: subprocess.Popen[str] | None = None
        self.http = httpx.Client(timeout=60)
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "sandbox.cli",
            "serve",
            "--json",
            "--data",
            str(self.data),
            "--listen",
            "127.0.0.1:0",
            "--policy",
            str(self.policy),
        ]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *self.more], stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
            )
        assert self.process.stdout is not None
        text = ""
        while True:
            line = self.process.stdout.readline()
            assert line, (self.folder / "server.log").read_text()
            text += line
            if line == "}\n":
                break
        answer = json.loads(text)
        assert "url" in answer, answer
        self.http.base_url = httpx.URL(answer["url"])

    def kill(self) -> None:
        """End it as a power cut would, as far as a process can tell."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; return its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(LONG)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.http.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def operator(self) -> Person:
        return Person(self.http, (self.data / "operator.token").read_text().strip(), "operator")

    def token(self, role: str, tenant: str) -> str:
        return str(ok(self.operator.post("/v1/tokens", {"role": role, "tenant": tenant}))["token"])

    def customer(self, tenant: str = "lab") -> Customer:
        return Customer(self.http, self.token("customer", tenant), tenant).enrol()

    def node(self) -> Node:
        node = Node(self.http, self.token("node", "operator"), "operator")
        ok(node.register())
        return node
