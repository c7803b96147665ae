"""The end of a lease, whatever came before: run record, wipe, certificate, last report. Also the way that a crash resumes.

Nothing here can be skipped and nothing goes back. The wipe never waits for the control plane; only the last report does.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, get_args

import structlog

from attestation.canonical import sha256_digest
from attestation.certificate import CERTIFICATE_PAYLOAD_TYPE, DOCUMENT_KINDS, build_certificate
from attestation.collect.runner import runner_digest
from attestation.run import RUN_PAYLOAD_TYPE, RunRecord
from attestation.signing import Envelope, sign_envelope
from attestation.wipe import WIPE_PAYLOAD_TYPE
from sandbox.errors import SealrigError
from sandbox.lifecycle import LeaseState, Outcome, end_state
from sandbox.node.journal import Journal
from sandbox.node.limits import Verdict
from sandbox.node.plan import ScratchKind
from sandbox.node.views import servers
from sandbox.node.wipe import Remains, wipe

if TYPE_CHECKING:
    from attestation.wipe import WipeReport
    from sandbox.node.context import Node
    from sandbox.node.report import Reporter
    from sandbox.node.steps import Account
    from sandbox.wire import LeaseInfo

_log = structlog.get_logger("sealrig.node")
LAST = "last"
REPORTED = "reported"
"""Events of the journal: about to send the last report; the control plane has it."""
MAKE_GOOD_SECONDS = 60.0
"""How long the proof that follows a quarantine waits for the control plane; it is sent again with a later poll."""
LOG_SECONDS = 60.0
"""How long the last report waits for the job's last sealed output to be taken."""


@dataclass(frozen=True)
class Ending:
    """All that is needed to end a lease. ``last`` is the last state that the node had reached before."""

    lease: str
    last: LeaseState
    verdict: Verdict
    run: bytes | None
    result: str | None
    gpus: tuple[str, ...]


def from_story(node: Node, lease: str, journal: Journal, account: Account, verdict: Verdict) -> Ending:
    """Close the books of a story that this process told."""
    if account.logs is not None:
        account.logs.finish()
    run = None
    if account.plan is not None:
        record = RunRecord(
            lease=lease,
            node=node.id,
            container=account.container,
            image=account.plan.image_reference,
            plan_digest=account.plan.digest,
            inspect_digest=account.inspect_digest,
            started_at=account.started_at,
            ended_at=datetime.now(UTC),
            exit_code=_exit_code(verdict.exit_code),
            outcome=verdict.outcome.value,
            limit=verdict.limit,
            log_chunks=account.logs.chunks if account.logs else 0,
            log_digest=account.logs.digest if account.logs else None,
            result=account.result.digest if account.result else None,
            result_size=account.result.size if account.result else 0,
            incidents=account.incidents,
        )
        run = sign_envelope(record.to_payload(), RUN_PAYLOAD_TYPE, node.key).to_bytes()
    return Ending(lease, journal.recall().state, verdict, run, account.result.digest if account.result else None, account.gpus)


def from_journal(node: Node, lease: str, journal: Journal) -> Ending:
    """Take up a lease that an earlier process left, however far it came. What was signed then is said again; nothing else is claimed."""
    recalled = journal.recall()
    documents = journal.documents()
    detail = str(recalled.facts.get("detail") or "the node stopped in mid-lease")
    gpus = tuple(str(uuid) for uuid in recalled.facts.get("gpus") or ())
    if "run" in documents:
        record = RunRecord.from_payload(Envelope.from_bytes(documents["run"]).verify(RUN_PAYLOAD_TYPE, [node.key.public]))
        verdict = Verdict(Outcome(record.outcome), record.exit_code, record.limit, detail)
        return Ending(lease, recalled.state, verdict, documents["run"], record.result, gpus)
    if "plan" not in documents:
        return Ending(lease, recalled.state, Verdict(recalled.outcome or Outcome.NODE_FAILURE, None, None, detail), None, None, gpus)
    record = RunRecord(
        lease=lease,
        node=node.id,
        container=recalled.facts.get("container"),
        image=str(json.loads(documents["plan"])["plan"]["image_reference"]),
        plan_digest=sha256_digest(documents["plan"]),
        ended_at=datetime.now(UTC),
        exit_code=_exit_code(recalled.exit_code),
        outcome=Outcome.NODE_FAILURE.value,
    )
    run = sign_envelope(record.to_payload(), RUN_PAYLOAD_TYPE, node.key).to_bytes()
    return Ending(lease, recalled.state, Verdict(Outcome.NODE_FAILURE, recalled.exit_code, None, detail), run, None, gpus)


def finish(node: Node, ending: Ending, journal: Journal, reporter: Reporter, account: Account | None = None) -> bool:
    """End the lease: journal, report, wipe, certificate, report. Returns whether the wipe was proven."""
    verdict = ending.verdict
    if ending.run is not None:
        journal.keep("run", ending.run)
    journal.write(
        "state",
        state=LeaseState.WIPING,
        outcome=verdict.outcome,
        exit_code=verdict.exit_code,
        limit=verdict.limit,
        result=ending.result,
        detail=verdict.detail,
    )
    reporter.send(
        LeaseState.WIPING,
        detail=verdict.detail,
        outcome=verdict.outcome,
        exit_code=verdict.exit_code,
        result=ending.result,
        documents={"run": ending.run} if ending.run is not None else None,
    )
    report = wipe_now(node, ending.lease, journal, ending.gpus)
    for view in account.views if account is not None else ():
        with contextlib.suppress(SealrigError):
            view.stop()  # collects the process; whether the view is gone is the wipe's to say
    _certify(node, ending.lease, journal, report)
    if account is not None and account.logs is not None and not account.logs.sent(LOG_SECONDS):
        account.logs.give_up()
        _log.warning("logs not sent", lease=ending.lease, reason=account.logs.failed or "no answer")
    _report_end(node, ending, journal, reporter, report)
    return report.proven


def wipe_now(node: Node, lease: str, journal: Journal, gpus: tuple[str, ...]) -> WipeReport:
    """Wipe; where a step is not proven the node is in quarantine before anything else happens."""
    recalled = journal.recall()
    kind = recalled.facts.get("kind")
    remains = Remains(
        lease=lease,
        node=node.id,
        folder=journal.folder,
        kind=kind if kind in get_args(ScratchKind) else None,
        gpus=gpus,
        servers=servers(recalled.facts.get("servers")),
    )
    report = wipe(remains, node.engine, node.gpu_wiper)
    # Only what this wipe proved is clean, and only until somebody uses it.
    node.state.set_clean({gpu.uuid: node.gpu_mark(gpu.uuid) if gpu.ok else None for gpu in report.gpus})
    if not report.proven:
        failed = ", ".join(f"{step.step} ({step.seen})" for step in report.failed) or "a medium or GPU"
        node.state.put_in_quarantine(lease, f"wipe not proven: {failed}")
        _log.error("wipe not proven: quarantine", lease=lease, failed=failed)
    return report


def _certify(node: Node, lease: str, journal: Journal, report: WipeReport) -> None:
    journal.keep("wipe", sign_envelope(report.to_payload(), WIPE_PAYLOAD_TYPE, node.key).to_bytes())
    digests = {kind: sha256_digest(data) for kind, data in journal.documents().items() if kind in DOCUMENT_KINDS}
    payload = build_certificate(
        lease=lease, node=node.id, documents=digests, wipe=report, tool_version=runner_digest()[1], at=datetime.now(UTC)
    )
    journal.keep("certificate", sign_envelope(payload, CERTIFICATE_PAYLOAD_TYPE, node.key).to_bytes())
    journal.write("wiped", proven=report.proven)


def _report_end(node: Node, ending: Ending, journal: Journal, reporter: Reporter, report: WipeReport) -> None:
    """Send the last report in the state that follows from what the control plane itself has on record."""
    info = reporter.settled()
    if info is None:
        _log.warning("end not reported yet", lease=ending.lease, reason=reporter.refused.message if reporter.refused else "stopped")
        _give_back_unlogged(node, ending.lease, reporter, proven=report.proven)
        return
    before, outcome = _on_record(info, ending)
    journal.write(LAST, state=end_state(before, outcome, proven=report.proven), proven=report.proven, gpus=list(ending.gpus))
    say_last(node, ending.lease, journal, reporter)


def unheard(journal: Journal) -> bool:
    """Say whether a lease's last report may be in the audit log without the node having heard so."""
    events = {event["event"] for event in journal.events()}
    return LAST in events and REPORTED not in events


def say_last(node: Node, lease: str, journal: Journal, reporter: Reporter) -> bool:
    """Send the last report as the journal has it, once or again; return False where the journal has none.

    Until the answer was taken in, the node makes no evidence.
    """
    node.state.end_under_way(lease)
    try:
        return _say_last(node, lease, journal, reporter)
    finally:
        node.state.end_heard(lease)


def _say_last(node: Node, lease: str, journal: Journal, reporter: Reporter) -> bool:
    last = next((event for event in reversed(journal.events()) if event["event"] == LAST), None)
    documents = journal.documents()
    if last is None or not {"wipe", "certificate"} <= set(documents):
        return False
    reporter.send(
        LeaseState(last["state"]),
        detail="" if last["proven"] else "the wipe was not proven",
        documents={"wipe": documents["wipe"], "certificate": documents["certificate"]},
    )
    if not reporter.finish():
        _log.error("end refused", lease=lease, reason=reporter.refused.message if reporter.refused else "stopped")
        _give_back_unlogged(node, lease, reporter, proven=last["proven"])
        return True
    if last["proven"]:
        # Before the journal calls it reported: after a crash in between it is asked for again, and so never forgotten.
        _remember_wipe(node, tuple(str(uuid) for uuid in last["gpus"]), reporter)
    journal.write(REPORTED, state=last["state"])
    if not last["proven"]:
        node.state.quarantine_told(lease)
        return True
    forget(node, lease, journal)
    return True


def make_good(node: Node, lease: str, journal: Journal, reporter: Reporter) -> bool:
    """Wipe a quarantined lease once more, after the operator lifted the quarantine, and prove it to the control plane.

    The lease stays quarantined; what goes into the audit log is that its remains are gone, so that customers may trust the node again.
    """
    gpus = tuple(str(uuid) for uuid in journal.recall().facts.get("gpus") or ())
    report = wipe_now(node, lease, journal, gpus)
    if not report.proven:
        node.state.quarantine_told(lease)
        return False
    _certify(node, lease, journal, report)
    documents = journal.documents()
    # Nothing to hold back for: in quarantine the node makes no evidence, and it is in quarantine until this was heard.
    reporter.send(
        LeaseState.QUARANTINED,
        detail="wiped with proof after the quarantine",
        documents={"wipe": documents["wipe"], "certificate": documents["certificate"]},
    )
    if not reporter.finish(MAKE_GOOD_SECONDS):
        reporter.stop()
        return False
    _remember_wipe(node, gpus, reporter)
    forget(node, lease, journal)
    return True


def _remember_wipe(node: Node, gpus: tuple[str, ...], reporter: Reporter) -> None:
    """Keep where in the audit log the proof of this wipe stands; the next evidence names it."""
    if reporter.answer is not None and reporter.answer.history and (index := reporter.answer.history[-1].log_index) is not None:
        node.state.wiped(gpus, index)


def forget(node: Node, lease: str, journal: Journal) -> None:
    """Remove what is left of a lease that was wiped with proof and reported; only then are its GPUs free.

    In this order, because the next start of the node holds GPUs, and may wipe them, for every folder that is still there.
    """
    shutil.rmtree(journal.folder.root, ignore_errors=True)
    node.gpus.give_back(lease)


def _give_back_unlogged(node: Node, lease: str, reporter: Reporter, *, proven: bool) -> None:
    """Free a lease's GPUs although the proof of their wipe will not enter the log: the control plane has understood it, and said no."""
    if proven and reporter.refused is not None:
        node.gpus.give_back(lease)


def _on_record(info: LeaseInfo, ending: Ending) -> tuple[LeaseState, Outcome]:
    states = [step.state for step in info.history]
    before = ending.last
    if LeaseState.WIPING in states and states.index(LeaseState.WIPING) > 0:
        before = states[states.index(LeaseState.WIPING) - 1]
    return before, info.outcome or ending.verdict.outcome


def _exit_code(code: int | None) -> int | None:
    return code if code is not None and -255 <= code <= 255 else None
