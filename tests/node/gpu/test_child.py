"""A worker that hangs in the driver or cannot be started is told of, and nobody waits for it."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import ClassVar

import pytest

from sandbox.node.gpu import child
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.measure import QUICK
from sandbox.node.gpu.qualify import _pair, qualify
from sandbox.node.gpu.vram import wipe_device

FACTS = DeviceFacts("RAM-0", "memory", "ram", 2**20, 0, 2**20, 2**20, 1)


class Unkillable:
    """A worker in a driver's call that does not return: it outlives every signal. Leaving a ``with`` block would wait for it for ever."""

    stdout = stderr = None
    returncode = None
    argv: ClassVar[list[object]] = []

    def __init__(self, argv, **_pipes) -> None:
        self.argv.append(argv)
        self.killed = 0

    def communicate(self, timeout=None):
        return self.wait(timeout)

    def wait(self, timeout=None):
        assert timeout is not None, "waited for without end"
        raise subprocess.TimeoutExpired("worker", timeout)

    def poll(self) -> None:
        return None

    def kill(self) -> None:
        self.killed += 1


@pytest.fixture
def unkillable(monkeypatch):
    monkeypatch.setattr(Unkillable, "argv", [])
    monkeypatch.setattr(subprocess, "Popen", Unkillable)
    return Unkillable


def test_without_room_for_its_words_a_worker_is_told_of_as_one_that_cannot_be_started(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    report = wipe_device(FACTS)
    assert not report.ok
    assert report.failures[0].startswith("the worker could not be started: ")


def test_of_a_worker_that_said_much_the_last_words_are_told(monkeypatch) -> None:
    monkeypatch.setattr(child, "MAX_WORDS", 10)
    with pytest.raises(child.WorkerError, match=r"its last words: the end$"):
        child.answer([sys.executable, "-c", "import sys; sys.exit('at first\\nthe end')"], 60)


def test_a_worker_that_cannot_be_killed_is_not_waited_for(unkillable) -> None:
    report = wipe_device(FACTS, limit=2)
    assert not report.ok
    assert report.failures == ("the worker cannot be killed: it had 2 s, and hangs in a call of the driver",)
    assert len(unkillable.argv) == 1


def test_the_qualification_does_not_wait_for_it_either(unkillable) -> None:
    effort = QUICK.model_copy(update={"limit": 0})
    (one, other) = qualify([FACTS, replace(FACTS, uuid="GPU-1")], effort, progress=lambda *_: None), _pair("GPU-0", "GPU-1")
    assert all("cannot be killed" in "; ".join(row.detail for row in card.measurements) for card in one)
    assert "cannot be killed" in other.detail
    assert len(unkillable.argv) == 3


def test_what_a_worker_says_is_heard_while_it_works(tmp_path) -> None:
    """The worker goes on only once its first line was heard."""
    heard, go = [], tmp_path / "go"
    code = f"""
import os, sys, time
print("one", file=sys.stderr, flush=True)
while not os.path.exists({str(go)!r}):
    time.sleep(0.01)
print("two", file=sys.stderr, flush=True)
print("done", flush=True)
"""

    def tell(line: str) -> None:
        heard.append(line)
        go.touch()

    assert child.answer([sys.executable, "-c", code], 60, tell) == b"done\n"
    assert heard == ["one", "two"]
    with pytest.raises(child.WorkerError, match="the worker was stopped after 1 s"):
        child.answer([sys.executable, "-c", "import time; time.sleep(60)"], 1, tell)


def test_a_machine_without_room_for_another_process_is_no_crash(monkeypatch) -> None:
    def fork(*_arguments, **_pipes):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fork)
    report = wipe_device(FACTS)
    assert not report.ok
    assert "could not be started" in report.failures[0]
    (card,) = qualify([FACTS], QUICK, progress=lambda *_: None)
    assert card.grade == "unfit"
