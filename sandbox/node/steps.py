"""What the steps of a lease's story hand to each other on the node: frozen results, each made by one step and wanted by the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from attestation.incident import MAX_INCIDENTS, Incident
from sandbox.errors import BundleError, BundleTamperedError
from sandbox.job import JobStatement
from sandbox.lifecycle import Outcome
from sandbox.node.inbox import Ended, Inbox
from sandbox.node.limits import Verdict
from sandbox.node.logs import LogStream
from sandbox.node.output import Result
from sandbox.node.plan import LaunchPlan, ScratchKind
from sandbox.node.views import Server
from sandbox.sealing.keys import DataKey, LeaseKey
from sandbox.sealing.public import IdentityPublic

if TYPE_CHECKING:
    from policies.loader import LoadedPolicy
    from sandbox.node.context import Node
    from sandbox.node.journal import Journal
    from sandbox.node.layout import LeaseFolder
    from sandbox.node.report import Reporter
    from sandbox.sealing.mount import Mount, Problem

_log = structlog.get_logger("sealrig.node")
_UNVERIFIED = {BundleError.code, BundleTamperedError.code}


@dataclass
class Account:
    """What happened so far, for the run record; the only thing of a story that changes."""

    plan: LaunchPlan | None = None
    gpus: tuple[str, ...] = ()
    container: str | None = None
    inspect_digest: str | None = None
    started_at: datetime | None = None
    exit_code: int | None = None
    logs: LogStream | None = None
    result: Result | None = None
    incidents: int = 0
    views: list[Mount] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)


@dataclass(frozen=True)
class Story:
    """What all steps of one lease share."""

    node: Node
    lease: str
    inbox: Inbox
    journal: Journal
    reporter: Reporter
    account: Account = field(default_factory=Account)

    @property
    def folder(self) -> LeaseFolder:
        """The lease's paths."""
        return self.journal.folder

    def tell_incident(self, bundle: str, problem: Problem) -> None:
        """Report that part of an input did not verify; reads that failed for another reason are the job's to notice.

        Without the file's name, which is the customer's secret.
        """
        code = str(problem.get("code"))
        if code not in _UNVERIFIED:
            _log.warning("a view could not be read", lease=self.lease, bundle=bundle, code=code)
            return
        if self.account.incidents >= MAX_INCIDENTS:
            return
        self.account.incidents += 1
        _log.error("an input did not verify", lease=self.lease, bundle=bundle, segment=problem["segment"], code=code)
        segment = int(problem["segment"])
        self.reporter.tell(Incident(lease=self.lease, node=self.node.id, at=datetime.now(UTC), bundle=bundle, segment=segment, code=code))

    def go_on(self) -> None:
        """Raise ``Ended`` once the control plane has asked for the end."""
        end = self.inbox.end
        if end is not None:
            raise Ended(Verdict(end, self.account.exit_code, None, f"the control plane asked for the end: {end}"))
        if self.reporter.refused is not None:
            raise Ended(
                Verdict(Outcome.NODE_FAILURE, self.account.exit_code, None, f"a report was refused: {self.reporter.refused.message}")
            )


@dataclass(frozen=True)
class Placed:
    """A job that its customer signed, and the policy that it was signed under."""

    statement: JobStatement
    job_digest: str
    customer: IdentityPublic
    policy: LoadedPolicy
    kind: ScratchKind


@dataclass(frozen=True)
class Attested:
    """A plan and evidence for it, waiting for the customer's keys. ``key`` exists in this process's memory only."""

    placed: Placed
    plan: LaunchPlan
    key: LeaseKey
    evidence_digest: str


@dataclass(frozen=True)
class Unlocked:
    """The data keys of the inputs, and the digests of their headers as the customer's agent saw them, by bundle digest."""

    attested: Attested
    keys: dict[str, DataKey]
    headers: dict[str, str]


@dataclass(frozen=True)
class Furnished:
    """Inputs stand in scratch."""

    attested: Attested


@dataclass(frozen=True)
class Launched:
    """A container that is exactly the plan, not started yet."""

    attested: Attested
    container: str


@dataclass(frozen=True)
class Ran:
    """How the job ended, and whether its output is small enough to be collected."""

    attested: Attested
    verdict: Verdict
    collectable: bool
