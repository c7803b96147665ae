"""The tables. Times are UTC; documents are kept as the exact bytes that digests were taken over.

No table holds a key or plaintext: tokens are kept as SHA-256 (they are 256 random bits, so a slow hash adds nothing).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone in Python and UTC in every database (SQLite drops zones)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  (SQLAlchemy's signature)
        """Store UTC; a time without a zone is a mistake in this program."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = "a time needs its zone"
            raise ValueError(msg)
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  (SQLAlchemy's signature)
        """Give UTC back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# SQLite counts rows up only in columns of type INTEGER.
BigId = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {datetime: UtcDateTime(), dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012  (SQLAlchemy's own way)


class PolicyRow(Base):
    """A policy's exact bytes. Rows are never changed: leases refer to the policy they were admitted under."""

    __tablename__ = "policies"
    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]


class TenantRow(Base):
    """A tenant. ``ref`` is the random id that stands in the public log in place of the name; one that was erased keeps nothing else."""

    __tablename__ = "tenants"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    ref: Mapped[str] = mapped_column(String(64), unique=True)
    policy: Mapped[str] = mapped_column(ForeignKey("policies.digest"))
    policy_pinned: Mapped[bool] = mapped_column(default=False)
    quota: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    erased_at: Mapped[datetime | None]


class PolicyChangeRow(Base):
    """A change of a tenant's policy: the document in its exact bytes, whose digest the audit log's entry names."""

    __tablename__ = "policy_changes"
    __table_args__ = (Index("policy_changes_tenant", "tenant", "id"),)
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    event: Mapped[int] = mapped_column(ForeignKey("events.id"))
    before: Mapped[str | None] = mapped_column(ForeignKey("policies.digest"))
    after: Mapped[str] = mapped_column(ForeignKey("policies.digest"))
    digest: Mapped[str] = mapped_column(String(71), index=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class TokenRow(Base):
    """A token without its secret. A node's token is bound to the first node id that uses it."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    node: Mapped[str | None] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class IdentityRow(Base):
    """A customer's public identity, enrolled for a tenant."""

    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("tenant", "digest"),)
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    digest: Mapped[str] = mapped_column(String(71))
    text: Mapped[str] = mapped_column(Text)
    verify_key: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime]


class BundleRow(Base):
    """A bundle in the store, once, however many tenants own it."""

    __tablename__ = "bundles"
    digest: Mapped[str] = mapped_column(String(71), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    stored_at: Mapped[datetime]


class BundleOwnerRow(Base):
    """Which tenant has brought (or was given) which bundle."""

    __tablename__ = "bundle_owners"
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("bundles.digest"), primary_key=True, index=True)
    created_at: Mapped[datetime]


class UploadRow(Base):
    """An upload. Its bytes are one file, whose size is the offset, so that a restart resumes at the exact byte.

    A finished one (``done``) is remembered for a while: a client that missed the last answer still learns that all is there. A part of one
    that is to come has no digest. ``parts`` are ``[id, size]`` of the files that an upload is made of, where it was joined from several.
    ``stated`` is the ``Upload-Metadata`` that it was begun with, as it came.
    """

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"), index=True)
    owner: Mapped[str] = mapped_column(ForeignKey("tokens.id"))
    digest: Mapped[str] = mapped_column(String(71))
    size: Mapped[int] = mapped_column(BigInteger)
    lease: Mapped[str | None] = mapped_column(String(64))
    parts: Mapped[list[Any]] = mapped_column(default=list)
    stated: Mapped[str | None] = mapped_column(Text)
    verified: Mapped[bool] = mapped_column(default=False)
    done: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class NodeRow(Base):
    """A node as it registered."""

    __tablename__ = "nodes"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    public_key: Mapped[str] = mapped_column(String(200))
    version: Mapped[str] = mapped_column(String(100))
    capacity: Mapped[dict[str, Any]]
    inventory: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(Text, default="")
    stale: Mapped[bool] = mapped_column(default=False)
    registered_at: Mapped[datetime]
    last_seen: Mapped[datetime]


class QualificationRow(Base):
    """The newest qualification of a node's GPUs, in the exact bytes that the node signed; earlier ones stand in the log by digest."""

    __tablename__ = "qualifications"
    node: Mapped[str] = mapped_column(ForeignKey("nodes.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71))
    data: Mapped[bytes] = mapped_column(LargeBinary)


class LeaseRow(Base):
    """A lease. ``state`` changes only by compare-and-swap (``control.transitions``)."""

    __tablename__ = "leases"
    __table_args__ = (Index("leases_queue", "state", "created_at"), Index("leases_tenant", "tenant", "created_at"))
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.name"))
    name: Mapped[str] = mapped_column(String(63))
    state: Mapped[str] = mapped_column(String(16))
    state_before_wipe: Mapped[str | None] = mapped_column(String(16))
    ending: Mapped[str | None] = mapped_column(String(16))
    outcome: Mapped[str | None] = mapped_column(String(16))
    exit_code: Mapped[int | None]
    detail: Mapped[str] = mapped_column(Text, default="")
    denials: Mapped[list[Any]] = mapped_column(default=list)
    image: Mapped[str] = mapped_column(String(400))
    job_digest: Mapped[str] = mapped_column(String(71))
    policy_digest: Mapped[str] = mapped_column(ForeignKey("policies.digest"))
    customer_key: Mapped[str] = mapped_column(String(200))
    node: Mapped[str | None] = mapped_column(ForeignKey("nodes.id"), index=True)
    nonce: Mapped[str | None] = mapped_column(String(64))
    level: Mapped[str | None] = mapped_column(String(32))
    result: Mapped[str | None] = mapped_column(String(71))
    cpus: Mapped[float] = mapped_column(Float)
    memory: Mapped[int] = mapped_column(BigInteger)
    scratch: Mapped[int] = mapped_column(BigInteger)
    gpus: Mapped[int]
    gpu_memory: Mapped[int] = mapped_column(BigInteger)
    isolation: Mapped[str] = mapped_column(String(16))
    output_max: Mapped[int] = mapped_column(BigInteger)
    deadline: Mapped[datetime | None] = mapped_column(index=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class LeaseInputRow(Base):
    """A bundle that a lease reads."""

    __tablename__ = "lease_inputs"
    lease: Mapped[str] = mapped_column(ForeignKey("leases.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71), primary_key=True, index=True)


def _by(column: str) -> Index:
    """Return the index that finds a column's value in the order of the log; what is not in the log yet costs it nothing."""
    logged = text("log_index IS NOT NULL")
    return Index(f"events_by_{column}", column, "log_index", sqlite_where=logged, postgresql_where=logged)


class EventRow(Base):
    """The outbox of the audit log, and its index once ``log_index`` is known. The columns repeat what the leaf says, to be searched."""

    __tablename__ = "events"
    __table_args__ = tuple(map(_by, ("type", "actor", "tenant_ref", "resource", "outcome", "evidence", "occurred_at")))
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    leaf_id: Mapped[str] = mapped_column(String(64), unique=True)
    type: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(64))
    tenant_ref: Mapped[str] = mapped_column(String(64))
    resource: Mapped[str] = mapped_column(String(80))
    outcome: Mapped[str] = mapped_column(String(64))
    evidence: Mapped[str | None] = mapped_column(String(96))
    occurred_at: Mapped[datetime]
    leaf: Mapped[bytes] = mapped_column(LargeBinary)
    log_index: Mapped[int | None] = mapped_column(BigInteger, unique=True)


class CommittedRow(Base):
    """What an entry of the log commits to: salt and value, sealed under the key of the subject that they are about."""

    __tablename__ = "committed"
    leaf_id: Mapped[str] = mapped_column(ForeignKey("events.leaf_id"), primary_key=True)
    field: Mapped[str] = mapped_column(String(64), primary_key=True)
    subject: Mapped[str] = mapped_column(String(64), index=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)


class TransitionRow(Base):
    """One step in a lease's history."""

    __tablename__ = "transitions"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    lease: Mapped[str] = mapped_column(ForeignKey("leases.id"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    at: Mapped[datetime]
    detail: Mapped[str] = mapped_column(Text, default="")
    event: Mapped[int] = mapped_column(ForeignKey("events.id"))


class DocumentRow(Base):
    """A document of a lease, in its exact bytes."""

    __tablename__ = "documents"
    lease: Mapped[str] = mapped_column(ForeignKey("leases.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71))
    data: Mapped[bytes] = mapped_column(LargeBinary)


class ReportRow(Base):
    """A node's signed report, in its exact bytes: what the log's digest of a ``running`` or ``collecting`` entry is over."""

    __tablename__ = "reports"
    lease: Mapped[str] = mapped_column(ForeignKey("leases.id"), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), primary_key=True)
    digest: Mapped[str] = mapped_column(String(71))
    data: Mapped[bytes] = mapped_column(LargeBinary)


class LogChunkRow(Base):
    """One chunk of a job's output, sealed to the customer on the node."""

    __tablename__ = "log_chunks"
    lease: Mapped[str] = mapped_column(ForeignKey("leases.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(LargeBinary)
