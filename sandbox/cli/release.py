"""``sealrig release``: the agent that hands out keys, and the way to take them back."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandbox.cli.collateral import open_cache
from sandbox.cli.console import Console, console, counted
from sandbox.cli.context import KeyOption, PassphraseOption, ServerOption, TrustOption, client, identity, state, trust_file

if TYPE_CHECKING:
    from attestation.evidence import Evidence
    from attestation.trust import Trust
    from attestation.verify import NodeHistory
    from sandbox.customer.client import Client
    from sandbox.customer.release import Candidate, Decision, ReleaseAgent
    from sandbox.customer.state import State
    from sandbox.wire import LeaseInfo

AGAIN_SECONDS = 1.0
"""Until a lease that could not be decided right now is looked at again: another process is at it, or there were too many at once."""
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
    from sandbox.customer.release import RateLimit, ReleaseAgent
    from sandbox.customer.service import AT_ONCE, ReleaseService
    from sandbox.customer.state import checked_lease

    limit, history = RateLimit(), _History(accepted, folder)
    with out.progress("checking a bundle") as progress:

        def make(control: Client) -> ReleaseAgent:
            return ReleaseAgent(
                control,
                me,
                accepted,
                folder,
                history=lambda evidence: history.of(evidence, control),
                confirm=_ask if confirm else None,
                limit=limit,
                cached=open_cache(None).load,
                progress=progress,
            )

        with client(server) as control:
            control.enrol(me.public.text)
            nodes = len(accepted.spec.nodes)
            out.say(f"release agent of {me.public.fingerprint}: level {accepted.spec.level} or higher, {counted(nodes, 'node')} accepted")
            if lease is not None:
                decisions = _one(control, make(control), checked_lease(lease), out)
        if lease is None:
            # A person answers on one terminal, one question at a time.
            service = ReleaseService(
                lambda: client(server), make, tell=lambda decision: _tell(out, decision), say=out.say, at_once=1 if confirm else AT_ONCE
            )
            decisions = service.run(watch=watch)
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
    time.sleep(AGAIN_SECONDS)
    return control.lease(lease)


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


class _History:
    """What the audit log says of nodes, unless the trust file takes their word; what was read stays in the state folder.

    A log that is not the trusted one is a reason to refuse; one that does not answer right now is not.
    """

    def __init__(self, accepted: Trust, folder: State) -> None:
        from attestation.history import LogHistory

        self._log = None if accepted.spec.interlock == "claimed" else LogHistory(accepted, folder.log_file(accepted.spec.log.key))

    def of(self, evidence: Evidence, control: Client) -> NodeHistory | None:
        """Return the history of the node that made ``evidence``. Raises ``ServerError`` or ``LogError``."""
        import httpx

        from attestation.log.errors import LogFetchError
        from attestation.log.reader import LogReader
        from sandbox.errors import ServerError

        if self._log is None:
            return None
        try:
            with httpx.Client(timeout=LOG_SECONDS) as web:
                return self._log.of(evidence.node, LogReader.from_url(f"{control.base}/log", web))
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
