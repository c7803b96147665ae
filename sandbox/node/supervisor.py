"""The running node: recover what an earlier process left, register, poll, and give each lease a thread."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from attestation.collect.runner import runner_digest
from sandbox.errors import SealrigError, ServerError, StateError
from sandbox.lifecycle import Outcome
from sandbox.node import ending, steps, story, views
from sandbox.node.gpu.inventory import inventory
from sandbox.node.inbox import Inbox
from sandbox.node.inputs import prune
from sandbox.node.journal import Journal
from sandbox.node.limits import Verdict
from sandbox.node.qualification import kept
from sandbox.node.report import Reporter
from sandbox.wire import Capacity, NodeRegistration, PollRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox.node.context import Node
    from sandbox.node.gpu.model import Inventory
    from sandbox.node.layout import NodeFolder
    from sandbox.wire import Assignment, PollAnswer

_log = structlog.get_logger("sealrig.node")
POLL_SECONDS = 20.0
RETRY_SECONDS = 2.0
REFRESH_SECONDS = 300.0
"""How old what the server knows of an idle node's devices may be."""
STOP_SECONDS = 20.0


class Supervisor:
    """One running node. ``run`` blocks until ``stop``."""

    def __init__(self, node: Node, capacity: Capacity, *, cache_bytes: int, poll_seconds: float = POLL_SECONDS) -> None:
        """``cache_bytes`` bounds the ciphertext that is kept between leases."""
        self._node = node
        self._capacity = capacity
        self._cache_bytes = cache_bytes
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._reporters: dict[str, Reporter] = {}
        self._over: set[str] = set()
        self._stopping = threading.Event()
        self._told_at = 0.0

    def run(self) -> None:
        """Recover, register, and work until ``stop`` is called; then end every lease with a wipe."""
        self._recover()
        if views.available():
            self._node.spare.prepare()
        # In a thread of its own, because a poll is held open for long and stopping must not wait for it.
        threading.Thread(target=self._poll, name="poll", daemon=True).start()
        self._stopping.wait()
        self._end_all()

    def _poll(self) -> None:
        self._register()
        while not self._stopping.is_set():
            try:
                self._refresh()
                told = self._told()
                self._take(self._node.client.poll(self._request()), told)
            except ServerError as error:
                # Loss of contact ends nothing: every lease goes on in its own thread.
                _log.warning("no contact", reason=error.message)
                self._stopping.wait(RETRY_SECONDS)
            except SealrigError as error:
                _log.error("poll refused", reason=error.message)
                self._stopping.wait(RETRY_SECONDS)

    def stop(self) -> None:
        """Ask ``run`` to end every lease and return."""
        self._stopping.set()
        with self._lock:
            for inbox in self._inboxes.values():
                inbox.stop()

    def _request(self) -> PollRequest:
        gpus = self._node.gpus.offers() or None
        return PollRequest(held=tuple(self._held()), accepting=self._accepting(), wait=self._poll_seconds, gpus=gpus)

    def _accepting(self) -> bool:
        return not self._stopping.is_set() and not self._node.state.quarantine and len(self._held()) < self._capacity.slots

    def _held(self) -> list[str]:
        with self._lock:
            return sorted(self._threads)

    def _told(self) -> frozenset[str]:
        """Return the leases in quarantine, once all are over and the control plane knows of every failure; until then none."""
        rows, held = self._node.state.quarantine, set(self._held())
        return frozenset(row.lease for row in rows) if all(row.told and row.lease not in held for row in rows) else frozenset()

    def _registration(self, found: Inventory) -> NodeRegistration:
        return NodeRegistration(
            public_key=self._node.key.public.text,
            version=runner_digest()[1],
            capacity=self._capacity,
            inventory={
                **found.summary(),
                # What policies ask of a node, and the server asks them of, before a key is released.
                "scratch": list(self._node.facts.scratch),
                "engine": dict(self._node.facts.engine),
            },
        )

    def _refresh(self) -> None:
        """Tell the server anew of the devices, now and then while no lease runs: heat, errors, a card that is gone.

        What is leased stays what was found at the start: a card that came later waits for the node's next start.
        """
        if time.monotonic() - self._told_at >= REFRESH_SECONDS and not self._held():
            self._told_at = time.monotonic()
            self._node.client.register(self._registration(self._node.gpus.described(inventory())))

    def _register(self) -> None:
        registration = self._registration(self._node.gpus.inventory)
        while not self._stopping.is_set():
            try:
                self._node.client.register(registration)
            except SealrigError as error:
                _log.warning("not registered yet", reason=error.message)
                self._stopping.wait(RETRY_SECONDS)
            else:
                self._told_at = time.monotonic()
                self._qualified()
                return

    def _qualified(self) -> None:
        """Send the qualification of the GPUs that the operator had made; the control plane may have it already."""
        found = kept(self._node.folder, self._node.key.public)
        if found is not None:
            try:
                self._node.client.qualify(found[0])
            except SealrigError as error:
                _log.warning("qualification not sent", reason=error.message)

    def _take(self, answer: PollAnswer, told: frozenset[str]) -> None:
        seen = {assignment.lease: assignment for assignment in answer.assignments}
        with self._lock:
            known = dict(self._inboxes)
        for lease, inbox in known.items():
            if lease in seen:
                inbox.update(seen[lease])
            else:
                inbox.vanish()
        for lease, assignment in seen.items():
            if lease not in self._held() and lease not in self._over:
                self._begin(assignment)
        self._over &= seen.keys()
        # Only the answer to a question that was asked after the failure was told: one on its way before calls the node ready, too.
        if told and answer.node_state == "ready" and told == self._told():
            self._restore()

    def _begin(self, assignment: Assignment) -> None:
        """Start a lease that was just placed here; one that is further on was left by an earlier process and goes to the wipe."""
        lease = assignment.lease
        folder = self._node.folder.lease(lease)
        if assignment.state != "placed" or folder.root.exists():
            journal = Journal.create(folder)
            self._hold_gpus(lease, journal)
            self._start(lease, self._recover_one, journal)
            return
        if not self._accepting():
            return  # the control plane asks again with the next poll
        inbox = Inbox(assignment)
        with self._lock:
            self._inboxes[lease] = inbox
        self._start(lease, self._tell, Journal.create(folder))

    def _start(self, lease: str, target: Callable[[str, Journal], None], journal: Journal) -> None:
        thread = threading.Thread(target=self._guard, args=(target, lease, journal), name=f"lease-{lease[-8:]}", daemon=True)
        with self._lock:
            self._threads[lease] = thread
            self._reporters[lease] = Reporter(self._node.client, self._node.key, lease)
        thread.start()

    def _guard(self, target: Callable[[str, Journal], None], lease: str, journal: Journal) -> None:
        try:
            try:
                target(lease, journal)
            except Exception:  # noqa: BLE001  (whatever it was, the job must not run on)
                _log.exception("lease thread failed", lease=lease)
                self._mend(lease, journal)
        except Exception:  # noqa: BLE001  (whatever it was, the node goes on without this lease, in quarantine)
            # Broken a second time, now in the wipe: its folder stays, and the next start of the node takes it up again.
            _log.exception("a failed lease was not ended", lease=lease)
            self._node.state.put_in_quarantine(lease, "the lease's thread failed; restart the node to wipe again")
        finally:
            self._reporters[lease].stop()
            with self._lock:
                # An answer that was on its way while the lease ended may still name it.
                self._over.add(lease)
                self._threads.pop(lease, None)
                self._inboxes.pop(lease, None)
                self._reporters.pop(lease, None)
            self._node.engine.close()
            prune(self._node.folder.cache, self._cache_bytes, set())

    def _mend(self, lease: str, journal: Journal) -> None:
        """End a lease whose thread broke in a way nobody foresaw, by its journal and at once, as the next start of the node would."""
        with self._lock:
            self._reporters[lease].stop()  # its thread may be over already
            self._reporters[lease] = Reporter(self._node.client, self._node.key, lease)
        self._recover_one(lease, journal)

    def _tell(self, lease: str, journal: Journal) -> None:
        told = steps.Story(self._node, lease, self._inboxes[lease], journal, self._reporters[lease])
        try:
            verdict = story.tell(told)
        except Exception:  # noqa: BLE001  (the wipe is not for the story to hold up)
            _log.exception("story failed", lease=lease)
            verdict = Verdict(Outcome.NODE_FAILURE, told.account.exit_code, None, "the node failed in mid-lease; its own log says why")
        end = ending.from_story(self._node, lease, journal, told.account, verdict)
        ending.finish(self._node, end, journal, told.reporter, told.account)

    def _recover(self) -> None:
        """Send every lease that an earlier process left into the wipe: by its folder, or by a container's label alone."""
        leases = set(self._node.folder.held()) | {item.lease for item in self._node.engine.containers(node=self._node.id)}
        for lease in sorted(leases):
            journal = Journal.create(self._node.folder.lease(lease))
            self._hold_gpus(lease, journal)
            if any(event["event"] == ending.REPORTED for event in journal.events()):
                self._look_again(lease, journal)
            else:
                _log.info("taking up a lease of an earlier run", lease=lease)
                if ending.unheard(journal):
                    self._node.state.end_under_way(lease)  # before the first poll can bring a lease that wants evidence
                self._start(lease, self._recover_one, journal)

    def _hold_gpus(self, lease: str, journal: Journal) -> None:
        """Keep a lease's GPUs from others until its wipe has ended. A journal that is lost names none: then all are kept."""
        gpus = journal.recall().facts.get("gpus") or ()
        self._node.gpus.hold(lease, [str(uuid) for uuid in gpus] if journal.events() else None)

    def _look_again(self, lease: str, journal: Journal) -> None:
        """Wipe what a reported lease left. A quarantined one keeps its folder until the operator lifts the quarantine."""
        quarantined = lease in {row.lease for row in self._node.state.quarantine}
        report = ending.wipe_now(self._node, lease, journal, ending.from_journal(self._node, lease, journal).gpus)
        if report.proven and not quarantined:
            ending.forget(self._node, lease, journal)
        else:
            self._node.state.quarantine_told(lease)

    def _recover_one(self, lease: str, journal: Journal) -> None:
        if not ending.say_last(self._node, lease, journal, self._reporters[lease]):
            ending.finish(self._node, ending.from_journal(self._node, lease, journal), journal, self._reporters[lease])

    def _restore(self) -> None:
        """Follow the operator, who lifted the quarantine: what was left must be gone now, or the node stays in it."""
        left = [lease for lease in self._node.folder.held() if lease not in self._held()]
        proven = [self._make_good(lease) for lease in left]
        if all(proven):
            self._node.state.restore()
            _log.info("restored")
        else:
            _log.error("restored by the operator, but a wipe is still not proven")
            self._stopping.wait(RETRY_SECONDS)

    def _make_good(self, lease: str) -> bool:
        reporter = Reporter(self._node.client, self._node.key, lease)
        return ending.make_good(self._node, lease, Journal.create(self._node.folder.lease(lease)), reporter)

    def _end_all(self) -> None:
        self.stop()
        self._node.spare.close()
        deadline = time.monotonic() + STOP_SECONDS
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        with self._lock:
            for reporter in self._reporters.values():
                reporter.stop()  # wiped, but not reported: the next start says it
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(1.0)


@contextmanager
def only_one(folder: NodeFolder) -> Iterator[None]:
    """Hold the node's data folder. Raises ``StateError`` when another process has it."""
    fd = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                "this node runs already",
                rule="node-lock",
                seen=str(folder.lock),
                wanted="one process a data folder",
                fix="stop the other process",
            ) from error
        yield
    finally:
        os.close(fd)
