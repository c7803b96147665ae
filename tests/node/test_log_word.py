"""What a node says of its own wipes agrees with the audit log: no evidence while an end is under way to it, and none in quarantine."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest

from attestation.signing import SigningKey
from sandbox.errors import StateError
from sandbox.lifecycle import LeaseState
from sandbox.node import ending, story, supervisor
from sandbox.node.client import ControlClient
from sandbox.node.inbox import Ended, Inbox
from sandbox.node.journal import Journal
from sandbox.node.layout import NodeFolder
from sandbox.node.report import Reporter
from sandbox.node.state import NodeState
from sandbox.node.steps import Story
from sandbox.sealing.keys import Identity
from sandbox.wire import Assignment, Capacity
from tests.node.fake_control import FakeControl
from tests.patience import PATIENCE

NODE = "node-" + "0" * 32
LONG = 60 * PATIENCE


class Log:
    """The fake control plane behind a line that can hold back an answer: the log has the report then, and the node does not know."""

    def __init__(self):
        self.control = FakeControl(Identity.generate())
        self.logged, self.answered = threading.Event(), threading.Event()
        self.lease = self.control.submit({"image": "sha256:" + "0" * 64, "command": ["x"]}, grant_at_once=False)
        self.lease.state = LeaseState.CLOSED  # the end was logged before: a report that says it again is answered the same
        self.lease.history.append((LeaseState.CLOSED, 42))

    def answer(self, request):
        found = self.control.handle(request)
        self.logged.set()
        assert self.answered.wait(LONG)
        return found


@pytest.fixture
def log():
    held = Log()
    yield held
    held.answered.set()


@pytest.fixture
def node(tmp_path, log):
    key = SigningKey.generate()
    log.control.node_key = key.public
    client = ControlClient("http://control", "secret", NODE, transport=httpx.MockTransport(log.answer))
    folder = NodeFolder(tmp_path)
    folder.root.mkdir(exist_ok=True)
    gpus = SimpleNamespace(give_back=lambda _lease: None, hold=lambda *_: None, devices=lambda _gpus: {})
    engine = SimpleNamespace(containers=lambda **_: [], image=lambda _reference: None)
    return SimpleNamespace(
        id=NODE, folder=folder, key=key, client=client, state=NodeState(folder), gpus=gpus, engine=engine, seccomp="", apparmor=""
    )


@pytest.fixture
def journal(node, log):
    """Return the journal of a lease that was wiped with proof and is about to say so."""
    journal = Journal.create(node.folder.lease(log.lease.id))
    journal.keep("wipe", b'{"payload":""}')
    journal.keep("certificate", b"{}")
    journal.write(ending.LAST, state=LeaseState.CLOSED, proven=True, gpus=["GPU-1"])
    return journal


@pytest.fixture
def next_story(node, log):
    """Return the story of the node's next lease, with the agent's nonce at hand."""
    lease = log.control.submit({"image": "sha256:" + "0" * 64, "command": ["x"]})
    inbox = Inbox(Assignment(lease=lease.id, state="placed", job=lease.job.to_json(), policy="", nonce="0" * 64))
    story_ = Story(node, lease.id, inbox, Journal.create(node.folder.lease(lease.id)), Reporter(node.client, node.key, lease.id))
    yield story_
    story_.reporter.stop()


@contextmanager
def saying_the_end(node, log, journal):
    reporter = Reporter(node.client, node.key, log.lease.id)
    thread = threading.Thread(target=ending.say_last, args=(node, log.lease.id, journal, reporter), daemon=True)
    thread.start()
    try:
        assert log.logged.wait(LONG)
        yield thread
    finally:
        log.answered.set()
        thread.join(LONG)
        reporter.stop()


def test_evidence_waits_until_the_node_has_heard_of_its_own_wipe(node, log, journal, next_story):
    with saying_the_end(node, log, journal) as thread:
        assert node.state.last_wipes((), 0) is None
        log.answered.set()
        said = story._last_wipes(next_story)
        assert said.indexes == {"node": 42}
        thread.join(LONG)
    assert NodeState(node.folder).previous_wipes(["GPU-1"]) == {"node": 42, "GPU-1": 42}


def test_an_answer_that_does_not_come_ends_the_lease_with_the_reason(node, log, journal, next_story, monkeypatch):
    monkeypatch.setattr(story, "HEARD_SECONDS", 0.0)
    monkeypatch.setattr(story, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(story, "HostFacts", lambda **_: None)
    monkeypatch.setattr(story, "make_plan", lambda *_: None)
    job = log.control.statement(log.lease).job
    placed = SimpleNamespace(statement=SimpleNamespace(job=job), kind="tmpfs", job_digest="", policy=SimpleNamespace(digest=""))
    with saying_the_end(node, log, journal), pytest.raises(StateError, match="has not answered on the end of an earlier lease"):
        story.attest(next_story, placed)


def test_a_lease_that_waits_for_the_answer_still_hears_that_it_is_to_end(node, log, journal, next_story, monkeypatch):
    monkeypatch.setattr(story, "LOOK_SECONDS", 0.0)
    with saying_the_end(node, log, journal):
        next_story.inbox.vanish()
        with pytest.raises(Ended):
            story._last_wipes(next_story)


def test_a_report_that_is_refused_holds_no_evidence_up(node, log, journal):
    log.lease.state = LeaseState.EXPIRED
    log.answered.set()
    reporter = Reporter(node.client, node.key, log.lease.id)
    assert ending.say_last(node, log.lease.id, journal, reporter)
    assert reporter.refused is not None
    assert node.state.last_wipes((), 0).indexes == {"node": None}


@pytest.mark.parametrize("heard", [False, True])
def test_after_a_restart_it_waits_for_what_was_under_way(node, journal, monkeypatch, heard):
    if heard:
        journal.write(ending.REPORTED, state=LeaseState.CLOSED)
    running = supervisor.Supervisor(node, Capacity(slots=2, cpus=1, memory=1, scratch=1, gpus=()), cache_bytes=0)
    monkeypatch.setattr(running, "_start", lambda *_: None)  # before the lease's own thread has come to anything
    monkeypatch.setattr(running, "_look_again", lambda *_: None)
    running._recover()
    assert (node.state.last_wipes((), 0) is None) is not heard


def test_a_crash_right_after_the_answer_forgets_no_wipe(node, log, journal, monkeypatch):
    log.answered.set()

    def crash(_self, event, **_facts):
        raise OSError(event)

    monkeypatch.setattr(Journal, "write", crash)
    reporter = Reporter(node.client, node.key, log.lease.id)
    with pytest.raises(OSError, match=ending.REPORTED):
        ending.say_last(node, log.lease.id, journal, reporter)
    assert NodeState(node.folder).previous_wipes(["GPU-1"]) == {"node": 42, "GPU-1": 42}


def test_no_evidence_is_made_in_quarantine(node, log, next_story):
    """The failed wipe may not be in the log yet, so that the customer's agent would not know of it."""
    node.state.put_in_quarantine(log.lease.id, "wipe not proven: gpu")
    with pytest.raises(Ended) as ended:
        story._last_wipes(next_story)
    assert "in quarantine" in ended.value.verdict.detail
