"""What tests wait with, and the ports that they take, leave nothing to chance."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests import patience, ports
from tests.patience import eventually


def test_eventually_returns_what_came_at_last():
    answers = [None, 0, "", "here"]
    assert eventually(lambda: answers.pop(0)) == "here"


def test_eventually_looks_once_more_when_time_is_up_and_then_fails(monkeypatch):
    monkeypatch.setattr(patience, "LONG", 0.0)
    assert eventually(lambda: True)
    with pytest.raises(AssertionError, match="for the server"):
        eventually(lambda: False, "the server")


@pytest.mark.parametrize(
    ("told", "first", "last"),
    [("32768\t60999\n", 20_000, 31_999), ("1024 25000", 25_001, 31_999), ("30000 65535", 20_000, 29_999), ("1024 65535", 20_000, 31_999)],
)
def test_ports_are_outside_what_the_kernel_gives_to_connections(told, first, last):
    found = ports.candidates(told)
    assert (found[0], found[-1]) == (first, last)


def test_no_port_is_given_twice_nor_one_that_somebody_listens_on(monkeypatch):
    mine, theirs, free = ports.free_port(), ports.free_port(), ports.free_port()
    os.close(ports._held.pop())
    with socket.create_server(("127.0.0.1", theirs)):
        os.close(ports._held.pop())
        monkeypatch.setattr(ports, "candidates", lambda _: [mine, theirs, free])
        assert ports.free_port() == free
        with pytest.raises(AssertionError, match="is free"):
            ports.free_port()


def test_another_process_does_not_get_what_this_one_holds():
    mine = ports.free_port()
    program = f"from tests import ports; ports.candidates = lambda _: [{mine}]; ports.free_port()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "is free" in done.stderr
