"""The story of a lease on the node: one function a state. Each takes the frozen result of the one before, so that no check can be left out.

::

    place    the signed job, verified; may it run here at all?                    → Placed
    attest   plan, fresh lease key, evidence for the agent's nonce                → Attested
    unlock   ciphertext fetched; the customer's grant, verified; keys unwrapped   → Unlocked
    furnish  scratch made, inputs opened into it, keys dropped                    → Furnished
    launch   container created and compared with the plan                         → Launched
    run      running.py: started, watched, ended                                  → Ran
    collect  running.py: /out sealed to the customer and uploaded                 → Verdict
    finish   ending.py: wipe, certificate, last report

The results stand in steps.py.

The intent is in the journal, durably, before each side effect. Whatever goes wrong, and whenever the control plane asks for the end,
the way on is ``Ended`` and the wipe.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
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
from sandbox.errors import JobError, ReleaseError, SealrigError, ServerError, StateError
from sandbox.job import JOB_PAYLOAD_TYPE, parse_statement
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import egress, evidence, inputs, views
from sandbox.node.facts import facts_now
from sandbox.node.inbox import Ended
from sandbox.node.isolation import lacking
from sandbox.node.limits import Verdict
from sandbox.node.plan import HostFacts, make_plan
from sandbox.node.running import collect, run
from sandbox.node.scratch.choose import available_kinds, available_memory, choose, scratch_of
from sandbox.node.steps import Attested, Furnished, Launched, Placed, Story, Unlocked
from sandbox.sealing.keys import DataKey, LeaseKey
from sandbox.sealing.public import IdentityPublic

if TYPE_CHECKING:
    from sandbox.node.state import LastWipes

_log = structlog.get_logger("sealrig.node")
END_SECONDS = 20.0
FETCH_RETRY_SECONDS = 2.0
HEARD_SECONDS = 120.0
"""How long evidence waits for the control plane's answer on the end of an earlier lease."""
LOOK_SECONDS = 1.0
"""How often a lease that waits looks whether it is to end."""
GPU_SECONDS = 5.0
"""How long a lease waits for GPUs whose last lease the control plane calls over, but this node has yet to put away."""


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
    spec = statement.job.spec
    # Taken first, because rules may ask of the very GPUs; they are this lease's to wipe once the policy has said yes.
    gpus = story.node.gpus.take(story.lease, spec.resources.gpus, spec.resources.gpu_memory, patience=GPU_SECONDS)
    decision = evaluate(policy, launch_request(statement, statement.tenant), facts_now(story.node, gpus))
    if not decision.allowed:
        reasons = "; ".join(f"{reason.rule}: seen {reason.seen}, wanted {reason.wanted}" for reason in decision.reasons)
        raise Ended(Verdict(Outcome.DENIED, None, None, f"the policy says no on this node: {reasons}"))
    if lacks := lacking(spec, story.node.facts):
        raise Ended(Verdict(Outcome.NODE_FAILURE, None, None, f"isolation {spec.isolation}: {lacks}"))
    story.account.gpus = gpus
    _clean(story)
    kind = choose(spec.resources.scratch, policy.policy.spec.scratch.kind, available_memory=available_memory(), kinds=available_kinds())
    return Placed(statement, envelope.digest, customer, policy, kind)


def _clean(story: Story) -> None:
    """Wipe the lease's GPUs unless it is known that nobody used them since the last wipe; a GPU that cannot be wiped ends the lease."""
    node, gpus = story.node, story.account.gpus
    unknown = tuple(uuid for uuid in gpus if node.state.clean_mark(uuid) is None or node.gpu_mark(uuid) != node.state.clean_mark(uuid))
    node.state.set_clean(dict.fromkeys(gpus))
    if not unknown:
        return
    story.journal.write("wipe-before", gpus=list(gpus), wiped=list(unknown))
    reports = node.gpu_wiper.wipe(unknown)
    for report in reports:
        _log.info("gpu wiped before a lease", lease=story.lease, gpu=report.uuid, residue=report.residue_words_before, ok=report.ok)
    left = sorted(set(unknown) - {report.uuid for report in reports if report.ok})
    if left:
        raise Ended(
            Verdict(Outcome.NODE_FAILURE, None, None, f"not wiped with proof before the lease, and so not given out: {', '.join(left)}")
        )


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
        wipes=_last_wipes(story),
    )
    raw = envelope.to_bytes()
    story.journal.keep("plan", plan.to_bytes())
    story.journal.keep("evidence", raw)
    story.journal.write(
        "state", state=LeaseState.ATTESTED, plan=plan.digest, evidence=envelope.digest, kind=placed.kind, gpus=list(story.account.gpus)
    )
    story.reporter.send(LeaseState.ATTESTED, documents={"evidence": raw, "plan": plan.to_bytes()})
    return Attested(placed, plan, key, envelope.digest)


def _last_wipes(story: Story) -> LastWipes:
    """Return what may be said of earlier wipes: nothing while the log may know of an end that the node has yet to hear of."""
    deadline = time.monotonic() + HEARD_SECONDS
    while (found := story.node.state.last_wipes(story.account.gpus, LOOK_SECONDS)) is None:
        story.go_on()
        if time.monotonic() >= deadline:
            raise StateError(
                f"no evidence can be made: for {HEARD_SECONDS:.0f} s the control plane has not answered on the end of an earlier lease,"
                " and the audit log may know more of this node's wipes than the node itself",
                rule="end-under-way",
                seen="no answer",
                wanted="the answer on the end of every earlier lease",
                fix="see that the node reaches the control plane, then submit the job again",
            )
    if story.node.state.quarantine:
        raise Ended(Verdict(Outcome.NODE_FAILURE, None, None, "the node is in quarantine: the wipe of an earlier lease was not proven"))
    return found


def unlock(story: Story, attested: Attested) -> Unlocked:
    """Fetch the ciphertext of what is copied, wait for the customer's grant, verify it, and unwrap the data keys."""
    wanted = attested.placed.statement.job.spec.inputs
    bundles = tuple(dict.fromkeys(item.bundle for item in wanted))
    copied = {item.bundle for item, bind in zip(wanted, attested.plan.binds, strict=False) if not _is_view(story, Path(bind.source))}
    for bundle in bundles:
        if bundle in copied:
            _until_answered(story, partial(_fetch, story, bundle))
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
    return Unlocked(attested, keys, {item.bundle: item.header for item in grant.keys})


def _is_view(story: Story, place: Path) -> bool:
    return place.parent == story.folder.views


def _fetch(story: Story, bundle: str) -> None:
    with story.node.fetching(bundle):
        inputs.fetch(story.node.client, story.node.folder.cache, bundle, go_on=story.go_on)


def _until_answered(story: Story, deed: Callable[[], None]) -> None:
    """Do what needs the control plane, again and again until it answers, or the lease is to end."""
    while True:
        story.go_on()
        try:
            deed()
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
        if _is_view(story, place):
            _until_answered(story, partial(_show, story, place, item.bundle, key, unlocked.headers[item.bundle]))
        else:
            inputs.open_input(story.node.folder.cache, place, item.bundle, key, budget=plan.scratch)
    unlocked.keys.clear()
    return Furnished(attested)


def _show(story: Story, place: Path, bundle: str, key: DataKey, header: str) -> None:
    """Show an input from the cache if all of it is there, else straight from the control plane, which is then asked for what is read."""
    story.journal.write("view", place=place.name)
    source = inputs.lazily(story.node, story.folder, bundle, place.name)
    mount, server = views.show(source, place, key, header=header, spare=story.node.spare, tell=partial(story.tell_incident, bundle))
    story.account.views.append(mount)
    story.account.servers.append(server)
    story.journal.write("view", place=place.name, servers=[item.row() for item in story.account.servers])


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
