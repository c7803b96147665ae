"""The release agent: verifies what a node says of itself, and only then hands out keys. The only maker of a ``Grant``.

For one lease, each step needs the one before::

    1. the signed job    the customer's own copy; only the customer's signature makes it one
    2. the question      a fresh nonce, remembered before it is sent
    3. the evidence      answers this nonce, for this job, policy and plan, from a node that the trust file lists
    4. the plan          launches what the job says, and nothing else
    5. a person          with ``confirm``
    6. the grant         one for each lease, remembered before it is sent, wrapped to the attested lease key

Anything that fails is a refusal that names every failed step. Every decision is written down first and sent afterwards, so that a
crash in between repeats the same decision. Nothing decides on the server's word.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from attestation.appraisal import Appraisal, Level
from attestation.canonical import parse_json, sha256_digest
from attestation.errors import AttestationError, Step, VerificationError
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.grant import GRANT_PAYLOAD_TYPE, Grant, WrappedKey, grant_info
from attestation.signing import Envelope, b64decode, b64encode, sign_envelope
from attestation.steps import Steps
from attestation.trust import Trust
from attestation.verify import Expected, NodeHistory, verify_evidence
from attestation.verify.cache import NOTHING, Cached
from policies.errors import PolicyError
from policies.loader import load_policy
from sandbox.customer.client import Client
from sandbox.customer.headers import Progress, bundle_key
from sandbox.customer.planned import check_plan
from sandbox.customer.state import State
from sandbox.errors import BundleError, InputError, NotFoundError, ReleaseError, StateError
from sandbox.job import JOB_PAYLOAD_TYPE, JobStatement, parse_statement
from sandbox.lifecycle import LeaseState
from sandbox.sealing.keys import Identity, wrap_to_lease_key
from sandbox.wire import Denial, EvidenceInfo, LeaseInfo, Refusal

NONCE_BYTES = 32
GRANT_LIFETIME = timedelta(minutes=10)
"""How long a node may take to use a grant."""
DECISIONS_A_MINUTE = 60
"""More decisions than this wait: a server that floods the agent must not get its keys any faster."""

PUBLISH_SECONDS = 60.0
"""How long the agent waits for a log entry that the evidence names: the server acknowledges it before the witnesses have signed."""
LOOK_SECONDS = 0.5
"""Between two looks at the log meanwhile."""
_BY_NEW_ENTRIES = frozenset({"interlock-wipes", "interlock-unproven"})
"""The steps that an entry which is not published yet can make good: a proven wipe, or one after a quarantine."""

History = Callable[[Evidence], NodeHistory | None]
"""What the audit log says of the node that made the evidence; None where it is not read."""


@dataclass(frozen=True)
class Candidate:
    """Evidence that was verified: all that a grant is made from."""

    statement: JobStatement
    envelope: Envelope
    evidence: Evidence
    appraisal: Appraisal
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Decision:
    """What the agent decided about one lease, and why. ``again`` says that it was decided before and only sent once more."""

    lease: str
    granted: bool
    level: str | None
    reasons: tuple[Denial, ...]
    steps: tuple[Step, ...]
    again: bool = False


class RateLimit:
    """At most so many decisions in any minute, over all threads that share it."""

    def __init__(self, a_minute: int = DECISIONS_A_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._recent: deque[float] = deque(maxlen=a_minute)

    def take(self) -> bool:
        """Say whether another decision may be made now; if so, it counts."""
        with self._lock:
            now = self._clock()
            if len(self._recent) == self._recent.maxlen and now - self._recent[0] < 60:
                return False
            self._recent.append(now)
            return True


class ReleaseAgent:
    """Decides about the leases of one identity, one at a time. Several threads and processes may run one each: a lease is decided once."""

    def __init__(
        self,
        client: Client,
        identity: Identity,
        trust: Trust,
        state: State,
        *,
        history: History,
        confirm: Callable[[Candidate], bool] | None = None,
        limit: RateLimit | None = None,
        cached: Callable[[], Cached] = lambda: NOTHING,
        progress: Progress | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        patience: float = PUBLISH_SECONDS,
    ) -> None:
        """``confirm`` asks a person; None decides by the trust file alone. Agents of one service share a ``limit``.

        ``cached`` reads the customer's own collateral, anew for each decision.
        """
        self._client, self._identity, self._trust, self._state = client, identity, trust, state
        self._history, self._confirm, self._progress, self._now = history, confirm, progress, now
        self._limit, self._cached, self._patience = limit or RateLimit(), cached, patience

    def attend(self, info: LeaseInfo) -> Decision | None:
        """Do what a lease needs now: ask the node, decide, or nothing (None).

        Raises ``ReleaseError`` for a lease whose signed job is not this identity's, and what the server raises; then nothing was decided.
        """
        if info.state not in (LeaseState.PLACED, LeaseState.ATTESTED):
            return None
        with self._state.locked(info.id) as mine:
            if not mine:
                return None
            statement, job = self._job(info.id)
            if (sent := self._resend(info.id)) is not None:
                return sent
            if info.state is LeaseState.PLACED:
                self._ask(info.id)
                return None
            if not self._limit.take():
                return None
            return self._decide(statement, job, self._client.evidence(info.id))

    def _job(self, lease: str) -> tuple[JobStatement, Envelope]:
        """Take step 1: the customer's own copy, else the server's, if this identity signed it."""
        raw = self._state.document(lease, "job")
        fix = "run the agent with the state folder and identity of whoever submitted the job"
        try:
            envelope = Envelope.from_bytes(raw if raw is not None else self._server_copy(lease))
            statement = parse_statement(envelope.verify(JOB_PAYLOAD_TYPE, [self._identity.public.verify_key]))
        except (AttestationError, InputError) as error:
            raise ReleaseError(f"the job of {lease} is not one that this identity signed", rule="job-signature", seen=error.message,
                               wanted="a job signed by this identity", fix=fix) from error  # fmt: skip
        if statement.lease != lease or statement.customer != self._identity.public.text:
            raise ReleaseError(
                f"the job of {lease} is for another lease or customer", rule="job-lease", seen=statement.lease, wanted=lease, fix=fix
            )
        if raw is None:
            self._state.remember(lease, "job", envelope.to_bytes())
        return statement, envelope

    def _server_copy(self, lease: str) -> bytes:
        try:
            receipt = parse_json(self._client.receipt(lease))
            return b64decode(receipt["documents"]["job"]["data"])
        except (StateError, NotFoundError, KeyError, TypeError) as error:
            raise ReleaseError(f"the signed job of {lease} is not known here", rule="job-copy", seen="no copy in the state folder",
                               wanted="the job as it was signed", fix="run the agent where the job was submitted") from error  # fmt: skip

    def _ask(self, lease: str) -> None:
        """Take step 2. The nonce is remembered first, so that a crash cannot make this agent ask twice."""
        nonce = self._state.document(lease, "nonce")
        if nonce is None:
            nonce = os.urandom(NONCE_BYTES)
            self._state.remember(lease, "nonce", nonce)
        self._client.put_nonce(lease, nonce)

    def _decide(self, statement: JobStatement, job: Envelope, info: EvidenceInfo) -> Decision:
        try:
            candidate = self._appraise(statement, job, info)
        except VerificationError as error:
            return self._refuse(
                statement.lease, [step for step in error.steps if not step.ok], error.steps, str(error.details.get("fix", ""))
            )
        except AttestationError as error:
            seen = f"{error.message}: {error.details.get('seen', '')}"
            return self._refuse(
                statement.lease,
                [Step(str(error.details.get("rule", error.code)), ok=False, seen=seen, wanted=str(error.details.get("wanted", "")))],
                (),
                str(error.details.get("fix") or "compare what the server shows with what the trust file names"),
            )
        if self._confirm is not None and not self._confirm(candidate):
            said_no = Step("confirm", ok=False, seen="the person said no", wanted="the person's yes")
            return self._refuse(statement.lease, [said_no], candidate.steps, "submit the job again to be asked again")
        try:
            grant = self._make_grant(candidate)
        except (BundleError, InputError) as error:
            failed = Step(
                error.code, ok=False, seen=f"{error.message} ({error.details.get('seen', '')})", wanted=str(error.details.get("wanted", ""))
            )
            return self._refuse(statement.lease, [failed], candidate.steps, str(error.details.get("fix", "")))
        return self._grant(candidate, grant)

    def _appraise(self, statement: JobStatement, job: Envelope, info: EvidenceInfo) -> Candidate:
        """Take steps 3 and 4. Raises ``VerificationError`` with every step, or another ``AttestationError`` for what cannot be read."""
        steps = Steps(f"the evidence for {statement.lease}")
        nonce = self._state.document(statement.lease, "nonce")
        steps.need(
            "question",
            ok=nonce is not None and len(nonce) == NONCE_BYTES,
            seen="no nonce of this agent" if nonce is None else "a nonce",
            wanted="a nonce that this agent chose",
            fix="let the agent that asked decide, or submit the job again",
        )
        policy, plan = b64decode(info.policy), b64decode(info.plan)
        steps.check(
            "policy",
            ok=sha256_digest(policy) == statement.policy_digest,
            seen=sha256_digest(policy),
            wanted=statement.policy_digest,
            fix="the policy changed after the job was signed: look at it, then submit again",
        )
        _mark_unsafe(policy, steps)
        known, mine = self._trust.spec.customers, self._identity.public.verify_key.text
        steps.check(
            "customer",
            ok=known is None or mine in known,
            seen=mine,
            wanted="a customer that the trust file lists" if known else "any",
            fix="add this identity's key to 'customers' in the trust file",
        )
        check_plan(plan, statement, steps)
        try:
            envelope = Envelope.from_json(info.evidence)
            evidence = Evidence.from_payload(envelope.verify(EVIDENCE_PAYLOAD_TYPE, self._trust.node_keys))
        except AttestationError as error:
            steps.fail("signature", error)
        expected = Expected(
            lease=statement.lease, nonce=(nonce or b"").hex(), job_digest=job.digest, policy_digest=statement.policy_digest,
            image=statement.job.spec.image, plan=plan, history=None,
        )  # fmt: skip
        try:
            appraisal = self._verified(envelope, evidence, expected, patience=self._patience if all(step.ok for step in steps.all) else 0.0)
        except VerificationError as error:
            steps.absorb(error.steps)
            raise VerificationError(error.message, steps=steps.all, **error.details) from error
        steps.absorb(appraisal.steps)
        least = Level.from_label(statement.job.spec.attestation.minimum)
        steps.check("job-level", ok=appraisal.level >= least, seen=appraisal.level.label, wanted=f"{least.label} or higher",
                    fix="lower 'attestation.minimum' in the job, or wait for a node with more evidence")  # fmt: skip
        steps.finish()
        return Candidate(statement, envelope, evidence, appraisal, steps.all)

    def _verified(self, envelope: Envelope, evidence: Evidence, expected: Expected, *, patience: float) -> Appraisal:
        """Verify the evidence with the log's history of the node.

        Where nothing speaks against it but that the log does not reach yet what the evidence names, the log is read again for
        ``patience`` seconds. What is refused anyway is refused at once.
        """
        newest = max((index for index in evidence.previous_wipes.values() if index is not None), default=-1)
        deadline = time.monotonic() + patience
        while True:
            history = self._history(evidence)
            known = replace(expected, history=history)
            try:
                return verify_evidence(envelope, trust=self._trust, expected=known, at=self._now(), cached=self._cached())
            except VerificationError as error:
                others = {step.step for step in error.steps if not step.ok} - _BY_NEW_ENTRIES
                if history is None or newest < history.size or others or time.monotonic() >= deadline:
                    raise
            time.sleep(LOOK_SECONDS)

    def _make_grant(self, candidate: Candidate) -> Envelope:
        """Take step 6, in memory: the data key of each bundle, wrapped so that it opens for this lease, evidence and bundle only."""
        statement, digest = candidate.statement, candidate.envelope.digest
        lease_key = b64decode(candidate.evidence.lease_public_key)
        keys = []
        for bundle in dict.fromkeys(item.bundle for item in statement.job.spec.inputs):
            secret, header = bundle_key(self._client, self._state, self._identity, bundle, self._progress)
            wrapped = wrap_to_lease_key(lease_key, secret.raw, grant_info(statement.lease, digest, bundle))
            keys.append(WrappedKey(bundle=bundle, header=header, wrapped=b64encode(wrapped)))
        at = self._now()
        grant = Grant(
            lease=statement.lease, evidence_digest=digest, lease_public_key_digest=sha256_digest(lease_key), keys=tuple(keys), issued_at=at,
            expires_at=at + GRANT_LIFETIME,
        )  # fmt: skip
        return sign_envelope(grant.to_payload(), GRANT_PAYLOAD_TYPE, self._identity.signing_key)

    def _grant(self, candidate: Candidate, grant: Envelope) -> Decision:
        lease, level = candidate.statement.lease, candidate.appraisal.level.label
        self._state.remember(lease, "evidence", candidate.envelope.to_bytes())
        self._state.remember(lease, "grant", grant.to_bytes())
        self._state.record({
            "lease": lease, "decision": "granted", "level": level, "node": candidate.evidence.node, "evidence": candidate.envelope.digest,
            "grant": grant.digest, "trust": self._trust.digest,
        })  # fmt: skip
        self._client.grant(lease, grant)
        return Decision(lease, granted=True, level=level, reasons=(), steps=candidate.steps)

    def _refuse(self, lease: str, failed: list[Step], steps: tuple[Step, ...], fix: str) -> Decision:
        reasons = tuple(Denial(rule=step.step, seen=step.seen, wanted=step.wanted, fix=step.fix or fix) for step in failed[:64])
        refusal = Refusal(reasons=reasons)
        self._state.remember(lease, "refusal", refusal.model_dump_json().encode())
        self._state.record(
            {"lease": lease, "decision": "refused", "reasons": [reason.model_dump() for reason in reasons], "trust": self._trust.digest}
        )
        self._client.refuse(lease, refusal)
        return Decision(lease, granted=False, level=None, reasons=reasons, steps=steps or tuple(failed))

    def _resend(self, lease: str) -> Decision | None:
        """Send a decision that was made before, exactly as it was made: a lease gets one."""
        grant = self._state.document(lease, "grant")
        if grant is not None:
            self._client.grant(lease, Envelope.from_bytes(grant))
            return Decision(lease, granted=True, level=None, reasons=(), steps=(), again=True)
        raw = self._state.document(lease, "refusal")
        if raw is None:
            return None
        refusal = Refusal.model_validate_json(raw)
        self._client.refuse(lease, refusal)
        return Decision(lease, granted=False, level=None, reasons=refusal.reasons, steps=(), again=True)


def _mark_unsafe(policy: bytes, steps: Steps) -> None:
    """Mark a decision under a policy that says itself that it protects nobody (``unsafeDevelopment``)."""
    with contextlib.suppress(PolicyError):  # not ours to judge: the digest of these bytes is what the customer signed
        if load_policy(policy).policy.spec.unsafe_development:
            steps.check(
                "policy-unsafe",
                ok=True,
                seen="unsafeDevelopment: this policy says that it protects nobody",
                wanted="a policy that protects",
            )


def refusal_error(decision: Decision) -> ReleaseError:
    """Return the error that tells of a refusal."""
    first = decision.reasons[0]
    return ReleaseError(
        f"no key for {decision.lease}: {first.rule} did not hold", rule=first.rule, seen=first.seen, wanted=first.wanted, fix=first.fix,
        steps=[{"step": step.step, "ok": step.ok, "seen": step.seen, "wanted": step.wanted} for step in decision.steps],
    )  # fmt: skip
