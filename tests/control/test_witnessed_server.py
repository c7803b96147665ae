"""A server whose log has witnesses, a watch and an exchange of its key: all of them real programs that speak HTTP."""

from __future__ import annotations

import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.log.note import Checkpoint, Note, NoteVerifier
from attestation.signing import SigningKey
from tests.control.server_process import ServerProcess
from tests.patience import LONG, eventually
from tests.ports import free_port
from tests.rig import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class WitnessProcess:
    """``sealrig audit witness`` on a port of the loopback that it keeps through all its lives."""

    def __init__(self, folder: Path, *logs: str) -> None:
        self.folder, self.listen = folder, f"127.0.0.1:{free_port()}"
        self.start(*logs)

    def start(self, *logs: str) -> None:
        words = [word for log in logs for word in ("--log", log)]
        command = [sys.executable, "-m", "sandbox.cli", "audit", "witness", str(self.folder), *words, "--listen", self.listen]
        with self.folder.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--name", f"{self.folder.name}.example", "--json"], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.folder.with_suffix(".log").read_text()
            text += line
        told = json.loads(text)
        self.url, self.vkey = told["listen"], told["vkey"]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(LONG)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def server(folder: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(folder)
    yield process
    process.close()


@pytest.fixture
def witnesses(folder: Path, server: ServerProcess) -> Iterator[list[WitnessProcess]]:
    vkey = server.http.get("/log/vkey").text.strip()
    running = [WitnessProcess(folder / name, vkey) for name in ("one", "two")]
    yield running
    for each in running:
        if each.process.poll() is None:
            each.stop()


def cli(*words: object) -> tuple[int, dict]:
    done = run(*words, "--json", env={})
    return done.code, done.json


def test_with_witnesses(folder: Path, server: ServerProcess, witnesses: list[WitnessProcess]) -> None:
    vkey = server.http.get("/log/vkey").text.strip()
    policy = folder / "witnesses.txt"
    lines = [f"witness {number} {each.vkey} {each.url}\n" for number, each in enumerate(witnesses)]
    policy.write_text(f"log {vkey}\n{''.join(lines)}group both all 0 1\nquorum both\n")
    operator = server.operator
    server.stop()
    server.more = ("--witness-policy", str(policy))
    server.start()

    def shown() -> tuple[int, set[str]]:
        note = Note.parse(server.http.get("/log/checkpoint").text)
        return Checkpoint.parse(note.text).size, {each.name for each in note.signatures}

    def act() -> None:
        assert operator.post("/v1/tokens", {"role": "auditor", "tenant": "operator"}).status_code == 201

    origin = vkey.partition("+")[0]
    act()
    before, signers = shown()
    assert signers == {origin, "one.example", "two.example"}
    assert server.http.get("/readyz").text == "ok\n"
    watch = ["audit", "watch", "--once", "--key", vkey, "--state", folder / "watch.json", "--quorum", 2]
    for each in witnesses:
        watch += ["--witness", each.vkey]
    assert cli(*watch, "--log", server.http.base_url) == (0, {"ok": True, "alarms": [], "size": before})

    # A witness goes: changes are still acknowledged, and what is shown stays behind.
    witnesses[1].stop()
    act()
    act()
    assert shown()[0] == before
    eventually(
        lambda: "2 entries wait for their witnesses" in server.http.get("/readyz").text and "of 1)" in server.http.get("/readyz").text
    )
    metrics = server.http.get("/metrics").text
    assert f"sealrig_log_published {before}.0" in metrics
    assert 'sealrig_log_witness_ok{witness="1"} 0.0' in metrics
    assert 'sealrig_log_witness_ok{witness="0"} 1.0' in metrics
    server.kill()
    server.start()
    assert shown()[0] == before
    witnesses[1].start(vkey)
    eventually(lambda: shown()[0] > before)
    assert shown()[1] == signers
    assert server.http.get("/readyz").text == "ok\n"

    # The key is exchanged: witnesses are told first, and whoever trusts the old key is led to the new one.
    server.stop()
    code, told = cli("audit", "rotate-key", "--data", server.data, "--prepare")
    assert code == 0
    for each in witnesses:
        each.stop()
        each.start(vkey, told["next"])
    code, rotated = cli("audit", "rotate-key", "--data", server.data)
    assert (code, rotated["vkey"]) == (0, told["next"])
    server.start()
    act()
    assert shown()[1] == signers
    assert server.http.get("/log/vkey").text.strip() == told["next"]
    for key in (vkey, told["next"]):
        code, checked = cli("audit", "verify", "--log", server.http.base_url, "--key", key)
        assert (code, checked["size"]) == (0, shown()[0])
    assert cli(*watch, "--log", server.http.base_url) == (0, {"ok": True, "alarms": [], "size": shown()[0]})
    assert server.http.get("/log/keys/2").status_code == 404
    assert NoteVerifier.from_text(told["next"]).name == origin


def test_alarms_reach_the_webhook(folder: Path, server: ServerProcess) -> None:
    """Each alarm ends a single look with exit code 1 and is posted."""
    posted: list[dict] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    try:
        _alarms(folder, server, f"http://127.0.0.1:{hook.server_port}/", posted)
    finally:
        hook.shutdown()
        hook.server_close()


def _alarms(folder: Path, server: ServerProcess, hook: str, posted: list[dict]) -> None:
    vkey, base = server.http.get("/log/vkey").text.strip(), server.http.base_url

    def look(*more: object, state: str = "watch.json") -> list[str]:
        code, told = cli("audit", "watch", "--once", "--log", base, "--state", folder / state, "--webhook", hook, *more)
        posted_now = [each["alarm"] for each in posted]
        posted.clear()
        if code == 0:
            assert posted_now == []
            return []
        assert code == 1
        assert told["error"]["details"]["alarm"] == posted_now[0]
        return posted_now

    assert look("--key", vkey) == []
    other = NoteVerifier(vkey.partition("+")[0], NoteVerifier.from_text(_other_key()).key).text
    assert look("--key", other, state="other.json") == ["unknown-key"]
    witness = _other_key(kind=4)
    assert look("--key", vkey, "--witness", witness, "--quorum", 1) == ["quorum-lost"]
    state = json.loads((folder / "watch.json").read_text())
    (folder / "watch.json").write_text(json.dumps({**state, "since": state["since"] - 3600}))
    assert look("--key", vkey, "--stale", "30m") == ["stale"]
    # A server that was put back to before: the log shrinks.
    operator = server.operator
    server.stop()
    _copy(server.data, folder / "old")
    server.start()
    assert operator.post("/v1/tokens", {"role": "auditor", "tenant": "operator"}).status_code == 201
    base = server.http.base_url
    assert look("--key", vkey) == []
    server.stop()
    _copy(folder / "old" / "log", server.data / "log")
    _copy(folder / "old" / "log-state", server.data / "log-state")
    _copy(folder / "old" / "log-lock", server.data / "log-lock")
    _copy_file(folder / "old", server.data, "control.db")
    code, told = cli("audit", "watch", "--once", "--log", server.data, "--state", folder / "watch.json", "--webhook", hook, "--key", vkey)
    assert (code, told["error"]["details"]["alarm"], [each["alarm"] for each in posted]) == (1, "shrink", ["shrink"])
    posted.clear()
    # It goes on from there, with other entries in the place of those that were shown: a fork, with evidence for everybody.
    server.start()
    assert operator.post("/v1/tokens", {"role": "auditor", "tenant": "operator"}).status_code == 201
    assert operator.post("/v1/tokens", {"role": "auditor", "tenant": "operator"}).status_code == 201
    base = server.http.base_url
    code, told = cli("audit", "watch", "--once", "--log", base, "--state", folder / "watch.json", "--webhook", hook, "--key", vkey)
    assert (code, told["error"]["details"]["alarm"], [each["alarm"] for each in posted]) == (1, "fork", ["fork"])
    evidence = folder / "fork.json"
    evidence.write_text(posted[0]["details"]["evidence"])
    assert cli("audit", "verify", "--fork", evidence, "--key", vkey)[0] == 0


def _other_key(kind: int = 1) -> str:
    return NoteVerifier("other.example", SigningKey(b"\x33" * 32).public, kind).text


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _copy_file(source: Path, target: Path, name: str) -> None:
    for path in target.glob(f"{name}*"):
        path.unlink()
    for path in source.glob(f"{name}*"):
        (target / path.name).write_bytes(path.read_bytes())
