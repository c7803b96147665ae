"""What crosses HTTP between customer, control plane and node: one model a message, apart from the domain.

Signed documents travel as DSSE envelopes (``attestation.signing.Envelope``) in their JSON form; other documents as base64 of
their exact bytes, because digests are taken over bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attestation.qualification import Card
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.model import BundleDigest, LeaseId, NodeId, Sha256Digest, TenantName, TokenId, UtcTime

MAX_ENVELOPE_BYTES = 1024 * 1024
"""A signed document in its JSON form."""
MAX_BODY_BYTES = 8 * 1024 * 1024
"""Any JSON request body."""
MAX_LOG_CHUNK_BYTES = 256 * 1024
"""One sealed log chunk."""
MAX_WAIT_SECONDS = 30
"""The longest a long-polling request is held open."""
MAX_PAGE = 500
MAX_CHANGES = 100
"""Of policies, in one answer: each brings its document."""

REPORT_PAYLOAD_TYPE = "application/vnd.sealrig.report+json"

Role = Literal["customer", "operator", "auditor", "node"]
DocumentKind = Literal["job", "policy", "evidence", "plan", "grant", "run", "wipe", "certificate"]
EnvelopeJson = dict[str, Any]
Base64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=MAX_BODY_BYTES)]


class Message(BaseModel):
    """Base of all messages: frozen. Whoever acts on a message refuses unknown fields; whoever reads an answer passes over them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Problem(BaseModel):
    """RFC 9457 problem details, with the stable ``code`` of ``sandbox.errors``."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    details: dict[str, Any] = {}


# ---- people and tokens


class Whoami(Message):
    """Who a token is."""

    token: TokenId
    role: Role
    tenant: TenantName


class TokenRequest(Message):
    """Ask for a token. ``ttl_seconds`` of None never expires."""

    role: Role
    tenant: TenantName
    ttl_seconds: Annotated[int, Field(ge=60, le=366 * 86400)] | None = None


class TokenInfo(Message):
    """A token as it may be listed: without its secret."""

    id: TokenId
    role: Role
    tenant: TenantName
    created_at: UtcTime
    expires_at: UtcTime | None
    revoked_at: UtcTime | None


class TokenIssued(TokenInfo):
    """A fresh token, the only time its secret is shown."""

    token: str


class IdentityEnrolment(Message):
    """A customer's public identity (``IdentityPublic.text``), enrolled for the tenant of the token."""

    identity: Annotated[str, Field(max_length=8192)]


class PolicyInfo(Message):
    """The policy that applies to a tenant: exact bytes and their digest."""

    tenant: TenantName
    name: str
    digest: Sha256Digest
    raw: Base64


class PolicyApplication(Message):
    """A policy's exact bytes, to apply to a tenant."""

    raw: Base64


class Denial(Message):
    """One reason of a refusal."""

    rule: str
    seen: str
    wanted: str
    fix: str


class QueueEffect(Message):
    """What the new policy says to a lease that waits."""

    lease: LeaseId
    name: str
    allowed: bool
    reasons: tuple[Denial, ...] = ()


class PolicyChange(PolicyInfo):
    """A policy as applied (or, on a dry run, as it would be), what was before, and what it does to waiting leases."""

    applied: bool
    before: Sha256Digest
    diff: str
    queued: tuple[QueueEffect, ...] = ()


class LoggedPolicyChange(Message):
    """A change of a tenant's policy as the audit log has it; ``document`` is what the entry names as evidence, in its exact bytes."""

    tenant: TenantName
    log_index: int
    at: UtcTime
    actor: str
    before: Sha256Digest | None
    after: Sha256Digest
    document: Base64


# ---- bundles


class BundleInfo(Message):
    """A stored bundle as its tenant sees it. Sizes in bytes."""

    digest: BundleDigest
    size: int
    created_at: UtcTime


# ---- leases


class LeaseSubmission(Message):
    """A job, signed by the customer (payload: ``sandbox.job.JobStatement``)."""

    job: EnvelopeJson


class Transition(Message):
    """One step in a lease's history. ``log_index`` is its entry in the audit log."""

    state: LeaseState
    at: UtcTime
    detail: str = ""
    log_index: int | None = None


class LeaseInfo(Message):
    """A lease as its tenant, an operator or an auditor sees it."""

    id: LeaseId
    tenant: TenantName
    name: str
    state: LeaseState
    outcome: Outcome | None = None
    exit_code: int | None = None
    detail: str = ""
    image: str
    node: NodeId | None = None
    job_digest: Sha256Digest
    policy_digest: Sha256Digest
    level: str | None = None
    created_at: UtcTime
    updated_at: UtcTime
    nonce: str | None = None
    result: BundleDigest | None = None
    denials: tuple[Denial, ...] = ()
    history: tuple[Transition, ...] = ()


class WaitingLeases(Message):
    """The leases that are at a customer's release agent: placed or attested, and not ending. ``mark`` names this very list."""

    mark: str
    leases: tuple[LeaseInfo, ...]


class NonceRequest(Message):
    """The release agent's fresh nonce for one lease, 32 bytes in hex."""

    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class EvidenceInfo(Message):
    """What the release agent needs to decide: the node's evidence and the plan and policy that it binds."""

    lease: LeaseId
    nonce: str
    evidence: EnvelopeJson
    plan: Base64
    policy: Base64


class GrantSubmission(Message):
    """The wrapped data keys (payload: ``attestation.grant.Grant``), signed by the customer."""

    grant: EnvelopeJson


class Refusal(Message):
    """The release agent's no, with what it saw."""

    reasons: Annotated[tuple[Denial, ...], Field(min_length=1, max_length=64)]


class LogChunk(Message):
    """One sealed chunk of a job's output. ``seq`` counts from 0."""

    seq: int
    data: Base64


class LogPage(Message):
    """Chunks from ``after`` on; ``final`` says that no more will come."""

    chunks: tuple[LogChunk, ...]
    final: bool


# ---- nodes


class Capacity(Message):
    """What a node can give in all. Sizes in bytes."""

    slots: Annotated[int, Field(ge=0, le=1024)]
    cpus: Annotated[float, Field(ge=0)]
    memory: Annotated[int, Field(ge=0)]
    scratch: Annotated[int, Field(ge=0)]
    gpus: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    isolation: tuple[Literal["container", "gvisor"], ...] = ("container",)


class NodeRegistration(Message):
    """What a node says of itself when it starts. ``public_key`` is ``VerifyKey.text``; it is fixed at the first registration."""

    public_key: Annotated[str, Field(max_length=200)]
    version: Annotated[str, Field(max_length=100)]
    capacity: Capacity
    inventory: dict[str, Any] = {}


class QualificationSubmission(Message):
    """A node's qualification of its GPUs (payload: ``attestation.qualification.Qualification``), signed by the node's key."""

    qualification: EnvelopeJson


class QualificationInfo(Message):
    """The newest qualification of a node's GPUs. ``digest`` is of the signed envelope, as it stands in the audit log."""

    digest: Sha256Digest
    mode: Literal["quick", "full"]
    at: UtcTime
    floors_date: str
    cards: tuple[Card, ...]


class NodeInfo(Message):
    """A node as operators, auditors and customers see it."""

    id: NodeId
    public_key: str
    version: str
    capacity: Capacity
    inventory: dict[str, Any]
    state: Literal["ready", "quarantined"]
    detail: str = ""
    last_seen: UtcTime
    leases: tuple[LeaseId, ...] = ()
    qualification: QualificationInfo | None = None


class GpuOffer(Message):
    """A GPU that a node leases: the bytes that a job can use of it, and for which leases it is held now; none where it is free."""

    uuid: Annotated[str, Field(max_length=100)]
    memory: Annotated[int, Field(ge=0)]
    leases: Annotated[tuple[LeaseId, ...], Field(max_length=1024)] = ()


class PollRequest(Message):
    """A node asks for work. ``held`` are the leases it has something of; ``wait`` seconds at most until the answer.

    ``gpus`` are all GPUs that it leases, free or held; None where it does not tell, as nodes did not before: then they are only counted.
    """

    held: tuple[LeaseId, ...] = ()
    accepting: bool = True
    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)] = 0
    gpus: Annotated[tuple[GpuOffer, ...], Field(max_length=64)] | None = None


class Assignment(Message):
    """All that a node needs to know of one lease. ``end`` asks it to stop and wipe, with that outcome."""

    lease: LeaseId
    state: LeaseState
    job: EnvelopeJson
    policy: Base64
    nonce: str | None = None
    grant: EnvelopeJson | None = None
    end: Outcome | None = None


class PollAnswer(Message):
    """The leases placed on this node that have not ended. ``restored`` says that the operator lifted a quarantine."""

    assignments: tuple[Assignment, ...]
    node_state: Literal["ready", "quarantined"]


class NodeReport(Message):
    """The payload of a node's signed report: a lease goes to ``state``. Idempotent: the same report twice is one."""

    v: Literal[1] = 1
    lease: LeaseId
    node: NodeId
    state: LeaseState
    at: UtcTime
    detail: Annotated[str, Field(max_length=2000)] = ""
    outcome: Outcome | None = None
    exit_code: int | None = None
    result: BundleDigest | None = None
    documents: dict[DocumentKind, Base64] = {}
    """Exact bytes of what this step produced: ``evidence`` and ``plan`` with attested, ``run`` with wiping, ``wipe`` and
    ``certificate`` with the last state."""


class IncidentSubmission(Message):
    """An incident (payload: ``attestation.incident.Incident``) in a DSSE envelope signed by the node's key."""

    incident: EnvelopeJson


class ReportSubmission(Message):
    """A ``NodeReport`` in a DSSE envelope signed by the node's key."""

    report: EnvelopeJson


class CommittedInfo(Message):
    """A field that an entry commits to. ``salt`` (base64) and ``value`` open it; both are null once they were erased."""

    field: str
    mac: str
    salt: str | None
    value: str | None


class LogEntryDetail(Message):
    """One entry: its exact bytes as text, its C2SP tlog-proof, and what it commits to, as far as it was not erased."""

    index: int
    leaf: str
    proof: str
    committed: tuple[CommittedInfo, ...]


class ErasureInfo(Message):
    """What was erased, and the entry that says so."""

    subject: str
    values: int
    leases: int
    index: int
