"""The demo's parts, each alone: what the model must say, the image, interruptions, commands that fail, what is left."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sandbox.cli.demo import assets, leftovers
from sandbox.cli.demo.image import RUNTIME, _files
from sandbox.cli.demo.interrupt import Interrupts
from sandbox.cli.demo.programs import CommandError, Person, Programs
from sandbox.cli.demo.programs import free_port as demo_port
from sandbox.errors import InputError, ServerError, UsageError
from sandbox.sealing.keys import Identity
from tests.ports import free_port


@pytest.fixture
def interrupts():
    found = Interrupts()
    yield found
    found.restore()


def test_the_model_says_what_it_must_say(tmp_path):
    assets.write_weights(tmp_path / "weights")
    assets.write_code(tmp_path / "code")
    assets.write_data(tmp_path / "data")
    (tmp_path / "out").mkdir()
    words = [sys.executable, tmp_path / "code" / "run.py", tmp_path / "weights", tmp_path / "data", tmp_path / "out"]
    subprocess.run(words, check=True, capture_output=True, timeout=120)

    answers = assets.check_result(tmp_path / "out" / "result.json")

    assert len(answers) == len(list((tmp_path / "data").iterdir()))
    assert [item.file for item in answers if not item.ok] == []
    assert len({item.wanted for item in answers}) == len(answers)


@pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', '{"files": {"attachment-01": {"type": "c", "score": "high"}}}'])
def test_a_result_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match="not an answer"):
        assets.check_result(tmp_path / "result.json")


def test_a_wrong_answer_is_seen(tmp_path):
    good = {item: {"type": "python", "score": 1} for item in (f"attachment-{n:02d}" for n in range(1, 14))}
    (tmp_path / "result.json").write_text(json.dumps({"files": good}))
    answers = assets.check_result(tmp_path / "result.json")
    assert [item.ok for item in answers] == [True] + [False] * 12


def test_the_image_has_what_runs_the_model_and_not_the_model():
    targets = {item.target for item in _files()}
    assert any(target.endswith("/os.py") for target in targets)
    assert any(target.endswith("libc.so.6") for target in targets)
    for name in RUNTIME:
        assert any(f"/site-packages/{name}" in target or name == "protobuf" for target in targets), name
    assert not [target for target in targets if target.endswith(".onnx") or target.startswith("/") or ".." in target]


def test_a_signal_waits_until_a_held_block_has_ended(interrupts):
    reached = []

    def hold():
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            reached.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        hold()
    assert reached


def test_after_the_first_signal_the_cleaning_up_is_left_alone(interrupts):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGHUP)


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    Interrupts().restore()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_command_that_fails_tells_its_own_reason(interrupts, tmp_path):
    (tmp_path / "x").write_bytes(b"not a bundle" * 100)
    with pytest.raises(CommandError) as caught:
        Programs(interrupts).command(Person("customer", tmp_path), ["inspect", str(tmp_path / "x")])
    assert caught.value.code == "bad-bundle"


def test_a_person_has_settings_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("SEALRIG_TOKEN", "of whoever started the demo")
    environment = Person("auditor", tmp_path).environment()
    assert "SEALRIG_TOKEN" not in environment
    assert environment["XDG_CONFIG_HOME"].startswith(str(tmp_path))


def test_a_program_that_ends_is_noticed_with_its_last_words(interrupts, tmp_path):
    programs = Programs(interrupts)
    programs.start("control plane", Person("operator", tmp_path), ["serve", "--listen", "nowhere"], tmp_path / "log")
    with pytest.raises(ServerError) as caught:
        programs.wait_ready("control plane", f"http://127.0.0.1:{free_port()}")
    assert caught.value.details["rule"] == "demo-program"
    assert caught.value.details["seen"]
    programs.stop_all()


def test_the_control_plane_s_port_is_none_that_some_connection_gets_meanwhile():
    assert demo_port() in range(10_000, 20_000)


def test_interrupted_while_the_control_plane_starts_it_is_ended(interrupts, tmp_path):
    programs, port = Programs(interrupts), free_port()
    programs.start(
        "control plane", Person("operator", tmp_path), ["serve", "--data", str(tmp_path / "c"), "--listen", f"127.0.0.1:{port}"], None
    )
    process = programs._running["control plane"]
    threading.Timer(random.uniform(0.1, 1), os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        programs.wait_ready("control plane", f"http://127.0.0.1:{free_port()}")  # where nobody will ever answer
    programs.stop_all()
    assert process.returncode is not None
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


def test_interrupted_while_a_job_is_submitted_the_command_is_ended(interrupts, tmp_path):
    job, image = tmp_path / "job.yaml", "sha256:" + "a" * 64
    job.write_text(f"{{apiVersion: sealrig/v1, kind: Job, metadata: {{name: j}}, spec: {{image: '{image}', command: [run]}}}}")
    Identity.generate().save(tmp_path / "key")

    def interrupt():
        while not _running(str(job)):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1))
        os.kill(os.getpid(), signal.SIGINT)

    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and answers none
        settings = {"SEALRIG_SERVER": f"http://127.0.0.1:{silent.getsockname()[1]}", "SEALRIG_TOKEN": "sealrig_token"}
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            Programs(interrupts).command(
                Person("customer", tmp_path, settings), ["job", "submit", str(job), "--key", str(tmp_path / "key")]
            )
    assert not _running(str(job))


def _running(word):
    """Say whether a process has this word in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


@pytest.mark.root
def test_mounts_and_loop_devices_below_a_folder_are_found_and_removed(tmp_path):
    odd = tmp_path / "with space"
    odd.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", odd], check=True)
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 2**20)
    subprocess.run(["losetup", "--find", image], check=True)
    assert leftovers.mounts_below(tmp_path) == [str(odd)]
    assert [item[1] for item in leftovers.loops_below(tmp_path)] == [str(image)]
    leftovers.remove_folder(tmp_path)
    assert odd.is_dir(), "a folder with mounts below is left alone"

    leftovers.remove(tmp_path, None, None)

    assert (leftovers.mounts_below(tmp_path), leftovers.loops_below(tmp_path)) == ([], [])
    leftovers.remove_folder(tmp_path)
    assert not tmp_path.exists()


def test_a_folder_with_files_is_refused(tmp_path):
    from sandbox.cli.demo import _folder

    (tmp_path / "x").touch()
    with pytest.raises(UsageError):
        _folder(tmp_path)
    assert _folder(tmp_path / "new").is_dir()
