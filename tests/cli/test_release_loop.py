"""The release agent's loop over many leases, against a control plane in memory."""

from __future__ import annotations

import httpx
import pytest

from sandbox.cli import release as module
from sandbox.cli.console import Console
from sandbox.customer.release import Decision
from sandbox.customer.state import State
from sandbox.errors import ReleaseError, ServerError, StateError
from sandbox.sealing.keys import Identity
from tests.customer.fakes import FakeControl, sign, statement


class EnoughError(Exception):
    """The test has seen enough."""


class Agent:
    """Answers each lease with what was planned for it: a decision, None, or an error."""

    def __init__(self, plans):
        self.plans = plans
        self.attended = []

    def attend(self, info):
        self.attended.append(info.id)
        plan = self.plans[info.id].pop(0)
        if isinstance(plan, Exception):
            raise plan
        return plan


@pytest.fixture
def control(tmp_path):
    State(tmp_path / "state")
    return FakeControl()


@pytest.fixture
def sleeps(monkeypatch):
    """Record every pause; the loop ends after ten."""
    found = []

    def pause(seconds):
        found.append(seconds)
        if len(found) == 10:
            raise EnoughError

    monkeypatch.setattr(module.time, "sleep", pause)
    return found


def waiting(control, count):
    identity = Identity.generate()
    jobs = [statement(identity) for _ in range(count)]
    for job in jobs:
        control.leases[job.lease] = control.info(job.lease, "placed", sign(job, identity))
    return [job.lease for job in jobs]


def test_one_foreign_or_moved_lease_does_not_keep_the_others_waiting(control, sleeps, capsys):
    foreign, moved, good = waiting(control, 3)
    agent = Agent({foreign: [ReleaseError("not ours")], moved: [StateError("gone on"), None, None], good: [None]})
    agent.plans[good].append(Decision(good, granted=True, level="software", reasons=(), steps=()))

    def attend(info, plain=agent.attend):
        decision = plain(info)
        if decision is not None:
            control.leases.clear()
        return decision

    agent.attend = attend
    decisions = module._all(control.client(), agent, Console(), watch=False)
    assert [decision.lease for decision in decisions] == [good]
    assert agent.attended.count(foreign) == 1
    err = capsys.readouterr().err
    assert f"{foreign}  left alone: not ours" in err
    assert f"{good}  keys released, level software" in err


def test_watching_goes_on_through_an_absent_server_and_says_so_once(control, sleeps, capsys):
    calls = [0]

    def away(request):
        calls[0] += 1
        if calls[0] <= 3:
            raise httpx.ReadError("reset", request=request)

    control.fault = away
    with pytest.raises(EnoughError):
        module._all(control.client(patience=0), Agent({}), Console(), watch=True)
    err = capsys.readouterr().err
    assert err.count("going on when it answers") == 1
    assert err.count("the server answers again") == 1
    assert sleeps[:3] == [module.AWAY_SECONDS] * 3
    assert sleeps[3:] == [module.IDLE_SECONDS] * 7


def test_without_watch_an_absent_server_is_an_error(control, sleeps):
    def away(request):
        raise httpx.ReadError("reset", request=request)

    control.fault = away
    with pytest.raises(ServerError):
        module._all(control.client(patience=0), Agent({}), Console(), watch=False)


def test_nothing_to_do_ends_at_once(control, sleeps):
    assert module._all(control.client(), Agent({}), Console(), watch=False) == []
    assert sleeps == []


def test_the_server_may_fail_in_mid_decision_and_the_lease_is_tried_again(control, sleeps, capsys):
    [lease] = waiting(control, 1)
    agent = Agent({lease: [ServerError("lost"), None] + [None] * 20})
    with pytest.raises(EnoughError):
        module._all(control.client(), agent, Console(), watch=True)
    assert agent.attended.count(lease) > 2
    assert "lost; going on" in capsys.readouterr().err
