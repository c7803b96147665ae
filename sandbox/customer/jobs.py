"""Jobs on the customer's side: what would be decided about one, and signing and submitting it.

The signed job is remembered before it is sent. The release agent decides by this copy, and a submission that was cut off is sent
again as it was: the lease id in it makes that safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from attestation.canonical import canonical_json
from attestation.signing import Envelope, sign_envelope
from policies.engine import evaluate
from policies.loader import LoadedPolicy
from policies.model import Decision
from sandbox.admission import launch_request
from sandbox.customer.client import Client
from sandbox.customer.state import State
from sandbox.errors import DeniedError, NotFoundError
from sandbox.job import JOB_PAYLOAD_TYPE, Job, JobStatement, secret_warnings
from sandbox.model import new_id
from sandbox.sealing.keys import Identity
from sandbox.wire import LeaseInfo


@dataclass(frozen=True)
class JobCheck:
    """What is known of a job before it is submitted. ``decision`` is None where no policy was at hand."""

    job: Job
    warnings: tuple[str, ...]
    policy: str | None
    decision: Decision | None
    missing: tuple[str, ...]
    """Bundles that the server does not have."""

    @property
    def ok(self) -> bool:
        """Whether nothing that was checked stands against the job."""
        return not self.missing and (self.decision is None or self.decision.allowed)


def check_job(job: Job, policy: LoadedPolicy | None, tenant: str, client: Client | None) -> JobCheck:
    """Check a job against a policy (rules about nodes are deferred), and with ``client`` whether its bundles are on the server."""
    decision = evaluate(policy, launch_request(job, tenant), None) if policy is not None else None
    missing = () if client is None else tuple(_missing(client, job))
    return JobCheck(job, tuple(secret_warnings(job)), policy.digest if policy is not None else None, decision, missing)


def _missing(client: Client, job: Job) -> Iterator[str]:
    for bundle in dict.fromkeys(item.bundle for item in job.spec.inputs):
        try:
            client.bundle(bundle)
        except NotFoundError:
            yield bundle


def denied(check: JobCheck) -> DeniedError:
    """Return the error that tells of everything that stands against a job."""
    reasons = [
        {"rule": each.rule, "seen": each.seen, "wanted": each.wanted, "fix": each.fix}
        for each in (check.decision.reasons if check.decision else ())
    ]
    reasons += [
        {"rule": "job-inputs", "seen": digest, "wanted": "a bundle on the server", "fix": "push it: 'sealrig push FILE'"}
        for digest in check.missing
    ]
    return DeniedError("this job would be refused", policy=check.policy, reasons=reasons)


def submit_job(client: Client, identity: Identity, state: State, job: Job, *, lease: str | None = None) -> LeaseInfo:
    """Sign a job and submit it; with ``lease`` (an earlier submission that was cut off) send the remembered job again.

    The policy digest that is signed is the one that the server shows now; if it changes on the way, the server refuses. Raises
    ``DeniedError`` with every reason.
    """
    client.enrol(identity.public.text)
    known = state.document(lease, "job") if lease is not None else None
    envelope = Envelope.from_bytes(known) if known is not None else _sign(client, identity, job, lease or new_id("lease"))
    if known is None:
        state.remember(_lease_of(envelope), "job", envelope.to_bytes())
    return client.submit(envelope)


def _sign(client: Client, identity: Identity, job: Job, lease: str) -> Envelope:
    statement = JobStatement(
        lease=lease,
        tenant=client.whoami().tenant,
        customer=identity.public.text,
        policy_digest=client.policy().digest,
        submitted_at=datetime.now(UTC),
        job=job,
    )
    payload = canonical_json(statement.model_dump(mode="json", by_alias=True))
    return sign_envelope(payload, JOB_PAYLOAD_TYPE, identity.signing_key)


def _lease_of(envelope: Envelope) -> str:
    return JobStatement.model_validate_json(envelope.payload).lease
