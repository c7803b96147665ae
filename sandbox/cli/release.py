"""``sealrig release``: the agent that hands out keys, and the way to take them back."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandbox.cli.console import Console, console
from sandbox.cli.context import KeyOption, PassphraseOption, ServerOption, TrustOption, client, identity, state, trust_file

if TYPE_CHECKING:
    from attestation.evidence import Evidence
    from attestation.trust import Trust
    from attestation.verify import NodeHistory
    from sandbox.customer.client import Client
    from sandbox.customer.release import Candidate, Decision, ReleaseAgent
    from sandbox.wire import LeaseInfo

IDLE_SECONDS = 0.5
BUSY_SECONDS = 0.1
AWAY_SECONDS = 5.0
"""Between two looks: with nothing to do, with a lease to decide, and while the server is away."""
LOG_SECONDS = 20.0
"""How long one file of the audit log may take."""


def release(
    lease: Annotated[
        str | None,
        typer.Argument(metavar="[LEASE]|revoke LEASE", help="One lease; all that wait for keys if not given.", show_default=False),
    ] = None,
    target: Annotated[str | None, typer.Argument(metavar="", hidden=True, show_default=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on and decide about every lease that comes, until interrupted.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Ask a person before each release.")] = False,
    key: KeyOption = None,
    trust: TrustOption = None,
    passphrase_file: PassphraseOption = None,
    server: ServerOption = None,
) -> None:
    """Verify the node's evidence against your trust file, and only then release the keys of a lease's bundles.

    A refusal names every check that failed, is sent to the server, and ends the lease. 'sealrig release revoke LEASE' takes keys
    back: the node stops the job and wipes.
    """
    from sandbox.errors import UsageError

    if lease == "revoke":
        _revoke(target, server)
        return
    if target is not None:
        raise UsageError(
            "one lease at a time",
            rule="arguments",
            seen=target[:100],
            wanted="LEASE, or revoke LEASE",
            fix="leave the LEASE out to serve all",
        )
    out = console()
    if confirm and not out.interactive:
        raise UsageError("--confirm needs a terminal", rule="confirm", seen="no terminal, or --json", wanted="a person who can answer",
                         fix="leave --confirm out to decide by the trust file alone")  # fmt: skip
    me, accepted, folder = identity(key, passphrase_file), trust_file(trust), state()
    from sandbox.customer.release import ReleaseAgent
    from sandbox.customer.state import checked_lease

    with client(server) as control, out.progress("checking a bundle") as progress:
        control.enrol(me.public.text)
        agent = ReleaseAgent(
            control,
            me,
            accepted,
            folder,
            history=lambda evidence: _history(control, accepted, evidence),
            confirm=_ask if confirm else None,
            progress=progress,
        )
        out.say(
            f"release agent of {me.public.fingerprint}: level {accepted.spec.level} or higher, {len(accepted.spec.nodes)} nodes accepted"
        )
        decisions = _one(control, agent, checked_lease(lease), out) if lease is not None else _all(control, agent, out, watch=watch)
    _finish(out, decisions, lease)


def _one(control: Client, agent: ReleaseAgent, lease: str, out: Console) -> list[Decision]:
    """Follow one lease until it is decided or has moved past deciding."""
    from sandbox.lifecycle import LeaseState

    waiting = (LeaseState.SUBMITTED, LeaseState.ADMITTED, LeaseState.PLACED, LeaseState.ATTESTED)
    info = control.lease(lease)
    while info.state in waiting:
        decision = agent.attend(info)
        if decision is not None:
            _tell(out, decision)
            return [decision]
        info = control.lease(lease, since=info.state) if info.state is not LeaseState.ATTESTED else _later(control, lease)
    return []


def _later(control: Client, lease: str) -> LeaseInfo:
    time.sleep(IDLE_SECONDS)
    return control.lease(lease)


def _all(control: Client, agent: ReleaseAgent, out: Console, *, watch: bool) -> list[Decision]:
    """Decide about every lease that waits for keys; with ``watch`` until interrupted, through any absence of the server."""
    from sandbox.errors import ServerError
    from sandbox.lifecycle import LeaseState

    decisions: list[Decision] = []
    foreign: set[str] = set()
    away = False
    while True:
        pending: list[LeaseInfo] = []
        try:
            pending = [*control.leases(LeaseState.PLACED), *control.leases(LeaseState.ATTESTED)]
            pending = [info for info in pending if info.id not in foreign]
            found = [decision for info in pending if (decision := _attend(agent, info, foreign, out)) is not None]
            decisions += [] if watch else found
            if away:
                out.say("the server answers again")
            away = False
        except ServerError as error:
            if not watch:
                raise
            if not away:
                out.say(f"{error.message}; going on when it answers")
            away = True
        if not watch and not pending:
            return decisions
        time.sleep(AWAY_SECONDS if away else BUSY_SECONDS if pending else IDLE_SECONDS)


def _attend(agent: ReleaseAgent, info: LeaseInfo, foreign: set[str], out: Console) -> Decision | None:
    """Attend to one lease among many: what is wrong with it must not keep the others waiting."""
    from sandbox.errors import NotFoundError, ReleaseError, StateError

    try:
        decision = agent.attend(info)
    except ReleaseError as error:
        foreign.add(info.id)
        out.say(f"{info.id}  left alone: {error.message}")
        return None
    except (StateError, NotFoundError):
        return None  # it moved on while the agent was at it: there is nothing left to decide
    if decision is not None:
        _tell(out, decision)
    return decision


def _tell(out: Console, decision: Decision) -> None:
    again = " (decided before, sent again)" if decision.again else ""
    if decision.granted:
        level = f", level {decision.level}" if decision.level else ""
        out.say(f"{decision.lease}  keys released{level}{again}")
        return
    out.say(f"{decision.lease}  refused{again}")
    for reason in decision.reasons:
        out.say(f"  {reason.rule}: seen {reason.seen}; wanted {reason.wanted}")
        if reason.fix:
            out.say(f"    fix: {reason.fix}")


def _finish(out: Console, decisions: list[Decision], lease: str | None) -> None:
    from sandbox.customer.release import refusal_error
    from sandbox.errors import StateError

    document = {"decisions": [_document(decision) for decision in decisions]}
    for decision in decisions:
        if not decision.granted:
            out.fail(document, refusal_error(decision))
    if not decisions and lease is not None:
        out.fail(document, StateError(f"{lease} does not wait for keys", rule="lease-state", seen="a lease past its release, or ended",
                                      wanted="a lease that is placed or attested", fix=f"see 'sealrig lease show {lease}'"))  # fmt: skip
    out.emit(document, None if decisions else "nothing waits for keys")


def _document(decision: Decision) -> dict[str, Any]:
    steps = [{"step": step.step, "ok": step.ok, "seen": step.seen, "wanted": step.wanted} for step in decision.steps]
    reasons = [reason.model_dump() for reason in decision.reasons]
    return {
        "lease": decision.lease,
        "granted": decision.granted,
        "level": decision.level,
        "again": decision.again,
        "reasons": reasons,
        "steps": steps,
    }


def _ask(candidate: Candidate) -> bool:
    spec, out = candidate.statement.job.spec, console()
    out.say(f"{candidate.statement.lease}  {candidate.statement.job.metadata.name}")
    out.say(f"  node    {candidate.evidence.node}, level {candidate.appraisal.level.label}, {len(candidate.steps)} checks held")
    out.say(f"  runner  {candidate.evidence.runner_version} {candidate.evidence.runner_digest}")
    out.say(f"  image   {spec.image}")
    out.say(f"  keys    {', '.join(item.bundle for item in spec.inputs) or 'none'}")
    sys.stderr.write("Release the keys? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _history(control: Client, accepted: Trust, evidence: Evidence) -> NodeHistory | None:
    """Read the node's history from the audit log, unless the trust file takes the node's word.

    A log that is not the trusted one is a reason to refuse; one that does not answer right now is not.
    """
    import httpx

    from attestation.history import read_history
    from attestation.log.errors import LogFetchError
    from attestation.log.reader import LogReader
    from sandbox.errors import ServerError

    if accepted.spec.interlock == "claimed":
        return None
    try:
        with httpx.Client(timeout=LOG_SECONDS) as web:
            return read_history(LogReader.from_url(f"{control.base}/log", web), accepted, evidence.node)
    except LogFetchError as error:
        raise ServerError(f"the audit log cannot be read: {error.message}", **error.details) from error


def _revoke(lease: str | None, server: str | None) -> None:
    from sandbox.cli.leases import state_words
    from sandbox.customer.state import checked_lease
    from sandbox.errors import UsageError

    if lease is None:
        raise UsageError("no lease is named", rule="arguments", seen="revoke", wanted="revoke LEASE", fix="see 'sealrig lease list'")
    with client(server) as control:
        info = control.revoke(checked_lease(lease))
    state().record({"lease": lease, "decision": "revoked"})
    console().emit(info, f"{info.id}  {state_words(info)}: the node stops and wipes")
