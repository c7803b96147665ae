"""``./dev``: what is there is used, what cannot be set up is said in one sentence."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.patience import LONG, eventually

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "dev"))

import engine  # noqa: E402  (a folder that Python runs, not a package)
import environment  # noqa: E402
import node  # noqa: E402
import system  # noqa: E402


class _Ping(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words):
        pass

    def address_string(self):
        return ""


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    def get_request(self):
        connection, _ = super().get_request()
        return connection, ("", 0)


@pytest.fixture
def answering(tmp_path):
    path = tmp_path / "s"
    with _UnixServer(str(path), _Ping) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"unix://{path}"
        server.shutdown()
        thread.join()


def test_an_engine_that_answers_is_used(answering, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", answering)
    assert engine.ensure_engine(tmp_path) == answering


def test_a_chosen_engine_that_does_not_answer_is_said_and_no_other_is_started(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing")
    monkeypatch.setattr(engine, "_start_own", lambda *_words: pytest.fail("another engine was started"))
    with pytest.raises(system.Refusal, match="does not answer; start that engine or unset DOCKER_HOST"):
        engine.ensure_engine(tmp_path)


def test_our_own_engine_is_found_again(answering, monkeypatch, tmp_path):
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "DEFAULT_SOCKET", str(tmp_path / "nothing"))
    (tmp_path / "docker.sock").symlink_to(answering.removeprefix("unix://"))
    monkeypatch.setattr(engine, "_own_folder", lambda _root: tmp_path)
    assert engine.ensure_engine(tmp_path) == f"unix://{tmp_path}/docker.sock"


def test_our_own_engine_can_hand_out_single_gpus(tmp_path):
    (tmp_path / ".dev").mkdir()
    assert json.loads(engine._settings(tmp_path).read_text())["features"] == {"cdi": True}


def test_nothing_missing_installs_nothing(monkeypatch):
    monkeypatch.setattr(system.subprocess, "run", lambda *_words, **_more: pytest.fail("something was run"))
    monkeypatch.setattr(system, "find", lambda tool: f"/usr/bin/{tool}")
    system.ensure_tools()


def test_more_tools_are_installed_at_once_and_one_by_one_where_a_distribution_lacks_one(monkeypatch, capfd):
    asked = []

    def install(packages):
        asked.append(list(packages))
        if "lacking" in packages:
            raise system.Refusal("no such package")

    monkeypatch.setattr(system, "install", install)
    monkeypatch.setattr(system, "find", lambda tool: "/usr/bin/there" if tool == "there" else None)
    system.ensure_more_tools({"there": "present", "gcc": "gcc libc6-dev", "age": "age"})
    assert asked == [["age", "gcc", "libc6-dev"]]
    asked.clear()
    system.ensure_more_tools({"gcc": "gcc libc6-dev", "none": "lacking", "age": "age"})
    assert asked == [["age", "gcc", "libc6-dev", "lacking"], ["age"], ["gcc", "libc6-dev"], ["lacking"]]
    assert "going on without lacking: no such package" in capfd.readouterr().err


def test_without_apt_the_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(system, "find", lambda _tool: None)
    with pytest.raises(system.Refusal, match=r"no apt-get: .*e2fsprogs.*install them"):
        system.ensure_tools()


def test_without_root_and_sudo_it_says_so(monkeypatch):
    monkeypatch.setattr(system.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(system, "find", lambda _tool: None)
    with pytest.raises(system.Refusal, match="there is no sudo; run this as root"):
        system.prefix_root(["true"])


def test_an_environment_that_matches_the_lock_is_left_alone(monkeypatch, tmp_path):
    for name in ("uv.lock", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    calls = []

    def run(command, **_more):
        calls.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environment.subprocess, "run", run)
    monkeypatch.setattr(environment, "_uv", lambda _root: "uv")
    environment.ensure_environment(tmp_path)
    assert len(calls) == 1
    assert "--frozen" in calls[0]
    environment.ensure_environment(tmp_path)
    assert len(calls) == 1
    (tmp_path / "uv.lock").write_text("another")
    environment.ensure_environment(tmp_path)
    assert len(calls) == 2


def test_being_stopped_is_handed_on_and_waited_for(tmp_path):
    command = f"trap 'sleep 0.2; touch {tmp_path}/cleaned; exit 7' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'deploy' / 'dev')!r}); import system; sys.exit(system.run(['sh', '-c', sys.argv[1]]))"
    )
    with subprocess.Popen([sys.executable, "-c", program, command]) as process:
        eventually((tmp_path / "ready").exists)
        process.terminate()
        assert process.wait(LONG) == 7
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize(("words", "code"), [([], 2), (["nonsense"], 2), (["--help"], 0), (["fmt", "x"], 1)])
def test_a_wrong_command_line_is_said(words, code):
    done = subprocess.run([ROOT / "dev", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_packages_for_node_are_fetched_once_as_their_lock_file_says(monkeypatch, tmp_path):
    source = tmp_path / "deploy" / "dev" / "npm"
    source.mkdir(parents=True)
    for name in node.FILES:
        (source / name).write_text("{}")
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\necho "$@" >> "$3/asked"\nmkdir -p "$3/node_modules"\n')
    npm.chmod(0o755)
    monkeypatch.setattr(node, "find", lambda _name: str(npm))
    node.ensure_node_packages(tmp_path)
    node.ensure_node_packages(tmp_path)
    assert (tmp_path / ".dev" / "asked").read_text().count("ci --prefix") == 1
    (source / "package-lock.json").write_text("{ }")
    node.ensure_node_packages(tmp_path)
    assert (tmp_path / ".dev" / "asked").read_text().count("--ignore-scripts") == 2
    npm.write_text("#!/bin/sh\nexit 1\n")
    (source / "package.json").write_text("{ }")
    with pytest.raises(system.Refusal, match="npm could not fetch"):
        node.ensure_node_packages(tmp_path)
    monkeypatch.setattr(node, "find", lambda _name: None)
    with pytest.raises(system.Refusal, match="npm is missing"):
        node.ensure_node_packages(tmp_path)


def test_a_shell_takes_up_the_environment_and_nothing_else_that_was_printed(monkeypatch, capfd, tmp_path):
    place = importlib.util.spec_from_file_location("dev_commands", ROOT / "deploy" / "dev" / "__main__.py")
    commands = importlib.util.module_from_spec(place)
    place.loader.exec_module(commands)

    def machine():
        os.environ["DOCKER_HOST"] = "unix:///run/it's here.sock"
        subprocess.run(["echo", f"touch {tmp_path}/ran"], check=True)

    monkeypatch.setenv("DOCKER_HOST", "")
    monkeypatch.setattr(commands, "_machine", machine)
    monkeypatch.setattr(commands, "ROOT", tmp_path / "a clone")
    assert commands.env([]) == 0
    said = capfd.readouterr()
    assert said.err == f"touch {tmp_path}/ran\n"
    shell = f'{said.out}echo "$DOCKER_HOST"; echo "$PATH"'
    done = subprocess.run(["/bin/sh", "-c", shell], env={"PATH": "/bin"}, capture_output=True, text=True, check=True)
    host, path = done.stdout.splitlines()
    assert host == "unix:///run/it's here.sock"
    assert path.split(":")[0] == f"{tmp_path}/a clone/.venv/bin"
    assert set(os.environ["PATH"].split(":")) <= set(path.split(":"))
    monkeypatch.setenv("PATH", path)
    assert commands.env([]) == 0
    assert capfd.readouterr().out == said.out
