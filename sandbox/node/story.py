"""The story of a lease on the node: one function a state. Each takes the frozen result of the one before, so that no check can be left out.

::

    place    the signed job, verified; may it run here at all?                    → Placed
    attest   plan, fresh lease key, evidence for the agent's nonce                → Attested
    unlock   ciphertext fetched; the customer's grant, verified; keys unwrapped   → Unlocked
    furnish  scratch made, inputs opened into it, keys dropped                    → Furnished
    launch   container created and compared with the plan                         → Launched
    run      started, watched, ended                                              → Ran
    collect  /out sealed to the customer and uploaded                             → Result
    ending.py: wipe, certificate, last report

The intent is in the journal, durably, before each side effect. Whatever goes wrong, and whenever the control plane asks for the end,
the way on is ``Ended`` and the wipe.
"""

from __future__ import annotations

import resource
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from attestation.canonical import sha256_digest
from attestation.errors import AttestationError
from attestation.grant import GRANT_PAYLOAD_TYPE, Grant, grant_info
from attestation.signing import Envelope, b64decode
from policies.engine import evaluate
from policies.errors import PolicyError
from policies.loader import load_policy
from sandbox.admission import launch_request
from sandbox.errors import JobError, ReleaseError, SealrigError, ServerError
from sandbox.job import JOB_PAYLOAD_TYPE, JobStatement, parse_statement
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import egress, evidence, inputs, limits, output, views
from sandbox.node.inbox import Ended, Inbox
from sandbox.node.limits import Verdict
from sandbox.node.logs import LogStream
from sandbox.node.plan import HostFacts, LaunchPlan, ScratchKind, make_plan
from sandbox.node.scratch.choose import available_kinds, available_memory, choose, scratch_of
from sandbox.node.views import Server
from sandbox.sealing.keys import DataKey, LeaseKey
from sandbox.sealing.logs import LogSealer
from sandbox.sealing.public import IdentityPublic

if TYPE_CHECKING:
    from policies.loader import LoadedPolicy
    from sandbox.node.context import Node
    from sandbox.node.engine import Exit
    from sandbox.node.journal import Journal
    from sandbox.node.layout import LeaseFolder
    from sandbox.node.report import Reporter
    from sandbox.sealing.mount import Mount

_log = structlog.get_logger("sealrig.node")
WATCH_SECONDS = 0.2
END_SECONDS = 20.0
FETCH_RETRY_SECONDS = 2.0


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
    result: output.Result | None = None
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
    """The data keys of the inputs, by bundle digest."""

    attested: Attested
    keys: dict[str, DataKey]


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
    """How the job ended."""

    attested: Attested
    verdict: Verdict


def tell(story: Story) -> Verdict:
    """Tell the story up to the wipe; return how the lease ended. Never raises but for what no lease can survive."""
    try:
        return collect(story, run(story, launch(story, furnish(story, unlock(story, attest(story, place(story)))))))
    except Ended as ended:
        return ended.verdict
    except (JobError, PolicyError, AttestationError, ReleaseError) as error:
        _log.warning("lease refused", lease=story.lease, reason=error.message)
        return Verdict(Outcome.NODE_FAILURE, story.account.exit_code, None, error.message)
    except (SealrigError, OSError) as error:
        reason = error.message if isinstance(error, SealrigError) else f"{type(error).__name__}: {error.strerror or error}"
        _log.error("lease failed", lease=story.lease, reason=reason)
        return Verdict(Outcome.NODE_FAILURE, story.account.exit_code, None, reason)


def place(story: Story) -> Placed:
    """Verify the signed job and decide whether this node may and can run it."""
    assignment = story.inbox.assignment
    envelope = Envelope.from_json(assignment.job)
    raw_policy = b64decode(assignment.policy)
    story.journal.keep("job", envelope.to_bytes())
    story.journal.keep("policy", raw_policy)
    story.journal.write("state", state=LeaseState.PLACED, job=envelope.digest)
    claimed = parse_statement(envelope.payload)
    customer = IdentityPublic.parse(claimed.customer)
    statement = parse_statement(envelope.verify(JOB_PAYLOAD_TYPE, [customer.verify_key]))
    if statement.lease != story.lease:
        raise JobError(
            "the job was signed for another lease", rule="job-lease", seen=statement.lease, wanted=story.lease, fix="submit the job again"
        )
    policy = load_policy(raw_policy)
    if policy.digest != statement.policy_digest:
        raise JobError(
            "the policy is not the one the customer signed under",
            rule="policy-digest",
            seen=policy.digest,
            wanted=statement.policy_digest,
            fix="submit the job again under the current policy",
        )
    decision = evaluate(policy, launch_request(statement, statement.tenant), story.node.facts_now())
    if not decision.allowed:
        reasons = "; ".join(f"{reason.rule}: seen {reason.seen}, wanted {reason.wanted}" for reason in decision.reasons)
        raise Ended(Verdict(Outcome.DENIED, None, None, f"the policy says no on this node: {reasons}"))
    spec = statement.job.spec
    if spec.isolation == "gvisor" and "gvisor" not in story.node.facts.isolation:
        raise Ended(Verdict(Outcome.NODE_FAILURE, None, None, "isolation gvisor: this node's Docker Engine has no runtime runsc"))
    if spec.isolation == "gvisor" and spec.network != "none" and "--network=none" in story.node.facts.engine.get("runsc", ""):
        raise Ended(
            Verdict(Outcome.NODE_FAILURE, None, None, "isolation gvisor: this node's runtime runsc gives no network (--network=none)")
        )
    story.account.gpus = story.node.gpus.take(story.lease, spec.resources.gpus, spec.resources.gpu_memory)
    kind = choose(spec.resources.scratch, policy.policy.spec.scratch.kind, available_memory=available_memory(), kinds=available_kinds())
    return Placed(statement, envelope.digest, customer, policy, kind)


def attest(story: Story, placed: Placed) -> Attested:
    """Make the plan and the lease key; answer the agent's nonce with evidence that binds them."""
    node, job = story.node, placed.statement.job
    image = node.engine.image(job.spec.image)
    host = HostFacts(
        node=node.id,
        folder=story.folder,
        scratch_kind=placed.kind,
        seccomp=node.seccomp,
        apparmor=node.apparmor,
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        views=views.available(),
        egress=() if job.spec.network == "none" else egress.resolve(job.spec.network.egress),
        **node.gpus.devices(story.account.gpus),
    )
    plan = make_plan(story.lease, job, image, host)
    story.account.plan = plan
    while not story.inbox.wait_for(lambda seen: seen.nonce is not None, END_SECONDS):
        story.go_on()
    story.go_on()
    key = LeaseKey.generate()
    envelope = evidence.make(
        node,
        plan,
        nonce=str(story.inbox.assignment.nonce),
        lease_public_key=key.public,
        job_digest=placed.job_digest,
        policy_digest=placed.policy.digest,
        leased=story.account.gpus,
    )
    raw = envelope.to_bytes()
    story.journal.keep("plan", plan.to_bytes())
    story.journal.keep("evidence", raw)
    story.journal.write(
        "state", state=LeaseState.ATTESTED, plan=plan.digest, evidence=envelope.digest, kind=placed.kind, gpus=list(story.account.gpus)
    )
    story.reporter.send(LeaseState.ATTESTED, documents={"evidence": raw, "plan": plan.to_bytes()})
    return Attested(placed, plan, key, envelope.digest)


def unlock(story: Story, attested: Attested) -> Unlocked:
    """Fetch the ciphertext, wait for the customer's grant, verify it, and unwrap the data keys."""
    bundles = tuple(dict.fromkeys(item.bundle for item in attested.placed.statement.job.spec.inputs))
    for bundle in bundles:
        _fetch(story, bundle)
    while not story.inbox.wait_for(lambda seen: seen.grant is not None, END_SECONDS):
        story.go_on()
    story.go_on()
    envelope = Envelope.from_json(story.inbox.assignment.grant)
    grant = Grant.from_payload(envelope.verify(GRANT_PAYLOAD_TYPE, [attested.placed.customer.verify_key]))
    _check_grant(story, attested, grant, bundles)
    story.journal.keep("grant", envelope.to_bytes())
    story.journal.write("state", state=LeaseState.UNLOCKED, grant=envelope.digest)
    keys = {
        item.bundle: DataKey(attested.key.unwrap(b64decode(item.wrapped), grant_info(story.lease, attested.evidence_digest, item.bundle)))
        for item in grant.keys
    }
    return Unlocked(attested, keys)


def _fetch(story: Story, bundle: str) -> None:
    while True:
        story.go_on()
        try:
            with story.node.fetching(bundle):
                inputs.fetch(story.node.client, story.node.folder.cache, bundle, go_on=story.go_on)
        except ServerError as error:
            _log.info("fetch waits", lease=story.lease, reason=error.message)
            time.sleep(FETCH_RETRY_SECONDS)
        else:
            return


def _check_grant(story: Story, attested: Attested, grant: Grant, bundles: tuple[str, ...]) -> None:
    now = datetime.now(UTC)
    checks = (
        ("lease", grant.lease, story.lease),
        ("evidence", grant.evidence_digest, attested.evidence_digest),
        ("lease key", grant.lease_public_key_digest, sha256_digest(attested.key.public)),
        ("bundles", ", ".join(sorted(item.bundle for item in grant.keys)), ", ".join(sorted(bundles))),
        ("expiry", "in time" if grant.expires_at > now else f"expired at {grant.expires_at}", "in time"),
    )
    for rule, seen, wanted in checks:
        if seen != wanted:
            raise ReleaseError(
                f"the grant is not for this lease: {rule}", rule=f"grant-{rule}", seen=seen, wanted=wanted, fix="release the keys again"
            )


def furnish(story: Story, unlocked: Unlocked) -> Furnished:
    """Make the scratch and open the inputs into it; after this the data keys are not needed any more."""
    attested, plan = unlocked.attested, unlocked.attested.plan
    story.go_on()
    story.journal.write("scratch", kind=plan.scratch_kind, size=plan.scratch)
    scratch_of(plan.scratch_kind).open(story.folder, plan.scratch)
    for number, item in enumerate(attested.placed.statement.job.spec.inputs):
        story.go_on()
        key, place = unlocked.keys[item.bundle], Path(plan.binds[number].source)
        if place.parent == story.folder.views:
            _show(story, place, item.bundle, key)
        else:
            inputs.open_input(story.node.folder.cache, place, item.bundle, key, budget=plan.scratch)
    unlocked.keys.clear()
    return Furnished(attested)


def _show(story: Story, place: Path, bundle: str, key: DataKey) -> None:
    story.journal.write("view", place=place.name)
    mount, server = views.show(inputs.cached(story.node.folder.cache, bundle), place, key)
    story.account.views.append(mount)
    story.account.servers.append(server)
    story.journal.write("view", place=place.name, servers=[[item.pid, item.started] for item in story.account.servers])


def launch(story: Story, furnished: Furnished) -> Launched:
    """Create the container and compare what the engine made with the plan, field by field."""
    plan = furnished.attested.plan
    story.go_on()
    story.journal.write("create", container=plan.container)
    network = egress.open_network(story.node.engine, plan) if plan.egress else "none"
    container, inspected = story.node.engine.create(plan, network_mode=network)
    story.account.container = container
    story.account.inspect_digest = sha256_digest(inspected)
    return Launched(furnished.attested, container)


def run(story: Story, launched: Launched) -> Ran:
    """Start the job, stream its sealed output, and watch time, contact's wishes and scratch until it ends."""
    node, plan = story.node, launched.attested.plan
    logs = LogStream(
        LogSealer(story.lease, launched.attested.placed.customer), lambda seq, chunk: node.client.put_log(story.lease, seq, chunk)
    )
    story.account.logs = logs
    story.go_on()
    with node.engine.attached(launched.container) as frames:
        reader = threading.Thread(target=logs.take, args=(frames,), name=f"logs-{story.lease[-8:]}", daemon=True)
        reader.start()
        story.journal.write("state", state=LeaseState.RUNNING, container=launched.container)
        node.engine.start(launched.container)
        started = time.monotonic()
        story.account.started_at = datetime.now(UTC)
        story.reporter.send(LeaseState.RUNNING)
        end, stopped, full = _watch(story, launched, reader, started + plan.lease_seconds)
        reader.join(END_SECONDS)
    refused = _blocked(node, plan, logs)
    for view in story.account.views:
        for problem in view.problems[:16]:
            logs.note(f"an input could not be read: {problem.get('message', 'damaged')}"[:500])
    logs.finish()
    story.account.exit_code = end.exit_code if end else None
    size = limits.tree_bytes(story.folder.out)
    verdict = limits.judge(end, stopped=stopped, scratch_full=full, output_bytes=size, output_max=plan.output_max_size)
    return Ran(launched.attested, replace(verdict, detail="; ".join(filter(None, (verdict.detail, refused)))))


def _blocked(node: Node, plan: LaunchPlan, logs: LogStream) -> str:
    """Tell the customer (in the sealed log) and the operator (in the report) what the job tried to reach and may not."""
    if not plan.egress:
        return ""
    found = egress.blocked(node.engine, plan)
    for item in found:
        logs.note(f"blocked: {item.packets} packets to {item.address} ({item.protocol})")
    shown = ", ".join(f"{item.address} {item.protocol} ({item.packets})" for item in found[:16])
    return f"blocked packets to {len(found)} addresses: {shown}" if found else ""


def _watch(story: Story, launched: Launched, reader: threading.Thread, deadline: float) -> tuple[Exit | None, Verdict | None, bool]:
    """Return the engine's word on the end, our own reason if we stopped the job, and whether its scratch was ever full."""
    engine, stopped, full = story.node.engine, None, False
    while reader.is_alive():
        reader.join(WATCH_SECONDS)
        full = full or limits.is_full(story.folder.work)
        if time.monotonic() >= deadline:
            stopped = Verdict(Outcome.TIME_LIMIT, None, "time", f"the lease's {launched.attested.plan.lease_seconds} s are over")
        else:
            try:
                story.go_on()
            except Ended as ended:
                stopped = ended.verdict
        if stopped is not None:
            engine.kill(launched.container)
            break
    return _last_word(story, launched, deadline), stopped, full


def _last_word(story: Story, launched: Launched, deadline: float) -> Exit | None:
    """Ask how the container ended. A job may close its output and live on: the time limit still ends it."""
    engine = story.node.engine
    while (end := engine.wait(launched.container, 1.0)) is None:
        if time.monotonic() >= deadline or story.inbox.end is not None:
            engine.kill(launched.container)
            return engine.wait(launched.container, END_SECONDS)
    return end


_COLLECTED = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIME_LIMIT, Outcome.MEMORY_LIMIT, Outcome.DISK_LIMIT})


def collect(story: Story, ran: Ran) -> Verdict:
    """Seal ``/out`` to the customer and upload it, unless the job was stopped by somebody or made too much."""
    verdict = ran.verdict
    story.journal.write("ended", outcome=verdict.outcome, exit_code=verdict.exit_code, limit=verdict.limit)
    if verdict.outcome not in _COLLECTED:
        return verdict
    story.journal.write("state", state=LeaseState.COLLECTING)
    story.reporter.send(LeaseState.COLLECTING)
    result = output.seal_output(story.folder, story.lease, ran.attested.placed.customer, story.node.key)
    output.upload_result(story.node.client, story.folder, story.lease, result, go_on=story.go_on)
    story.account.result = result
    return verdict
