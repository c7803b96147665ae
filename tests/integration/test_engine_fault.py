"""A lease's thread breaks in a way nobody foresaw: the job is ended and wiped at once, in the same process. On the real engine."""

from __future__ import annotations

import json

import pytest

from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import ending, running, story
from tests.patience import eventually

pytestmark = [pytest.mark.docker, pytest.mark.root]


class Unforeseen:
    """Takes the place of a function and breaks, ``times`` times."""

    def __init__(self, real, times):
        self.real, self.times = real, times

    def __call__(self, *args, **kwargs):
        if self.times:
            self.times -= 1
            raise ZeroDivisionError("nobody foresaw this")
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("step", ["attest", "furnish", "_watch", "collect"])
def test_in_the_story(node_rig, monkeypatch, step):
    module = running if step == "_watch" else story
    monkeypatch.setattr(module, step, Unforeseen(getattr(module, step), 1))
    with node_rig.running():
        lease = node_rig.run("sleep 100" if step == "_watch" else "true")
        assert (lease.state, lease.outcome) == (LeaseState.CLOSED, Outcome.NODE_FAILURE)
        assert "ZeroDivision" not in lease.detail
        assert node_rig.wipe(lease).proven
        assert not node_rig.node.state.quarantine
        assert node_rig.run("echo fine").outcome is Outcome.SUCCEEDED
    assert node_rig.leftovers() == []


@pytest.mark.parametrize("step", ["from_story", "wipe", "_certify", "_report_end"])
def test_in_the_ending(node_rig, monkeypatch, step):
    monkeypatch.setattr(ending, step, Unforeseen(getattr(ending, step), 1))
    with node_rig.running():
        lease = node_rig.run("echo short")
        assert lease.state is LeaseState.CLOSED
        assert lease.outcome is (Outcome.NODE_FAILURE if step == "from_story" else Outcome.SUCCEEDED)
        assert node_rig.wipe(lease).proven
        assert not node_rig.node.state.quarantine
        assert node_rig.run("echo fine").outcome is Outcome.SUCCEEDED
    assert node_rig.leftovers() == []


def test_again_and_again_means_quarantine_and_the_next_start_wipes(node_rig, monkeypatch):
    with monkeypatch.context() as planted, node_rig.running():
        planted.setattr(ending, "wipe", Unforeseen(ending.wipe, 2))
        lease = node_rig.control.submit(node_rig.spec("sleep 1"))
        eventually(lambda: node_rig.node.state.quarantine)
        assert lease.id in json.loads(node_rig.node.folder.state.read_bytes())["quarantine"]
    with node_rig.running():
        node_rig.control.wait(lease)
    assert lease.state is LeaseState.CLOSED
    assert node_rig.leftovers() == []
