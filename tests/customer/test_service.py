"""The release agent as a service over many leases, against a control plane in memory."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from sandbox.customer.release import Decision, RateLimit
from sandbox.customer.service import AWAY_SECONDS, ReleaseService
from sandbox.errors import ReleaseError, ServerError, StateError
from sandbox.lifecycle import LeaseState
from sandbox.sealing.keys import Identity
from sandbox.wire import LeaseInfo, WaitingLeases
from tests.customer.fakes import FakeControl, sign, statement
from tests.patience import LONG


class EnoughError(Exception):
    """The test has seen enough."""


class Agent:
    """Answers each lease with what was planned for it: a decision, None, or an error; a decided lease leaves the list."""

    def __init__(self, control, plans):
        self.control, self.plans, self.attended = control, plans, []

    def attend(self, info):
        self.attended.append(info.id)
        plan = self.plans[info.id].pop(0)
        if isinstance(plan, Exception):
            raise plan
        if plan is not None:
            self.control.leases.pop(info.id)
        return plan


class Told:
    """What the service said."""

    def __init__(self, control, agent, **options):
        self.decisions, self.lines, self.sleeps = [], [], []
        self.service = ReleaseService(
            lambda: control.client(patience=0), lambda _client: agent, tell=self.decisions.append, say=self.lines.append,
            sleep=self.pause, **options,
        )  # fmt: skip

    def pause(self, seconds):
        self.sleeps.append(seconds)
        if len(self.sleeps) == 5:
            raise EnoughError


@pytest.fixture
def control():
    return FakeControl()


def waiting(control, count, state="attested"):
    identity = Identity.generate()
    jobs = [statement(identity) for _ in range(count)]
    for job in jobs:
        control.leases[job.lease] = control.info(job.lease, state, sign(job, identity))
    return [job.lease for job in jobs]


def granted(lease):
    return Decision(lease, granted=True, level="software", reasons=(), steps=())


class Slow(Agent):
    """Is still busy with a lease when the lease goes on."""

    def attend(self, info):
        time.sleep(0.2)
        return super().attend(info)


class Scripted:
    """A client whose server holds a question that names the newest answer's mark."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def waiting(self, *, mark, wait):
        assert wait
        if len(self.answers) > 1:
            return self.answers.pop(0)
        if mark == self.answers[0].mark:
            raise EnoughError
        return self.answers[0]


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_next_state_of_a_lease_is_attended_to_before_the_next_question_is_held(control, at_once):
    (lease,) = waiting(control, 1, "placed")
    placed = LeaseInfo.model_validate(control.leases[lease])
    attested = placed.model_copy(update={"state": LeaseState.ATTESTED})
    client = Scripted(WaitingLeases(mark="one", leases=(placed,)), WaitingLeases(mark="two", leases=(attested,)))
    agent = Slow(control, {lease: [None] * 9})
    service = ReleaseService(lambda: client, lambda _: agent, tell=print, say=print, sleep=print, at_once=at_once)
    with pytest.raises(EnoughError):
        service.run(watch=True)
    assert len(agent.attended) >= 2


@pytest.mark.parametrize("at_once", [1, 4])
def test_one_foreign_or_moved_lease_does_not_keep_the_others_waiting(control, at_once):
    foreign, moved, good = waiting(control, 3)
    agent = Agent(control, {foreign: [ReleaseError("not ours")], moved: [StateError("gone on"), granted(moved)], good: [granted(good)]})
    told = Told(control, agent, at_once=at_once)
    decisions = told.service.run(watch=False)
    assert {decision.lease for decision in decisions} == {good, moved}
    assert agent.attended.count(foreign) == 1
    assert told.lines == [f"{foreign}  left alone: not ours"]
    assert len(told.decisions) == 2


def test_a_slow_lease_does_not_hold_up_another(control):
    """The first is decided only after the second was: one after the other they would wait for ever."""
    slow, quick = waiting(control, 2)
    done = threading.Event()

    class Two(Agent):
        def attend(self, info):
            if info.id == slow:
                assert done.wait(LONG)
            decision = super().attend(info)
            done.set()
            return decision

    told = Told(control, Two(control, {slow: [granted(slow)], quick: [granted(quick)]}))
    assert [decision.lease for decision in told.service.run(watch=False)] == [slow, quick]
    assert [decision.lease for decision in told.decisions] == [quick, slow]


def test_an_idle_agent_asks_one_question_that_the_server_holds_open(control):
    questions = []

    def count(request):
        questions.append(float(request.url.params["wait"]))
        if len(questions) == 4:
            raise EnoughError

    control.fault = count
    with pytest.raises(EnoughError):
        Told(control, Agent(control, {})).service.run(watch=True)
    assert min(questions) >= 20
    assert control.held == [False, True, True]


def test_watching_goes_on_through_an_absent_server_and_says_so_once(control):
    calls = [0]

    def away(request):
        calls[0] += 1
        if calls[0] <= 3:
            raise httpx.ReadError("reset", request=request)
        if calls[0] == 6:
            raise EnoughError

    control.fault = away
    told = Told(control, Agent(control, {}))
    with pytest.raises(EnoughError):
        told.service.run(watch=True)
    assert [line.rpartition("; ")[2] for line in told.lines] == ["going on when it answers", "the server answers again"]
    assert told.sleeps == [AWAY_SECONDS] * 3


def test_without_watch_an_absent_server_is_an_error(control):
    def away(request):
        raise httpx.ReadError("reset", request=request)

    control.fault = away
    with pytest.raises(ServerError):
        Told(control, Agent(control, {})).service.run(watch=False)


def test_nothing_to_do_ends_at_once(control):
    told = Told(control, Agent(control, {}))
    assert (told.service.run(watch=False), told.sleeps, told.lines) == ([], [], [])


def test_the_server_may_fail_in_mid_decision_and_the_lease_is_tried_again(control):
    [lease] = waiting(control, 1)
    agent = Agent(control, {lease: [ServerError("lost"), ServerError("lost"), granted(lease)]})
    told = Told(control, agent, at_once=1)

    def enough(decision):
        raise EnoughError

    told.service._tell = enough
    with pytest.raises(EnoughError):
        told.service.run(watch=True)
    assert agent.attended == [lease] * 3
    assert told.lines[0] == "lost; going on when it answers"


def test_a_fault_of_ours_in_a_thread_is_not_swallowed(control):
    [lease] = waiting(control, 1)
    with pytest.raises(ZeroDivisionError):
        Told(control, Agent(control, {lease: [ZeroDivisionError()]})).service.run(watch=False)


def test_decisions_are_limited_over_all_threads():
    now = [0.0]
    limit = RateLimit(3, clock=lambda: now[0])
    assert [limit.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 59.0
    assert not limit.take()
    now[0] = 61.0
    assert [limit.take() for _ in range(4)] == [True, True, True, False]
