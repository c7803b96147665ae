"""Tokens and who holds them. A token is 256 random bits; only its SHA-256 is kept, which needs no salt or slowness at that entropy."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from sandbox.control.core import Control
from sandbox.control.database.models import TenantRow, TokenRow
from sandbox.control.policy_changes import keep_policy, record_change
from sandbox.errors import AuthenticationError, NotFoundError, StateError
from sandbox.model import new_id
from sandbox.wire import Role, TokenInfo, TokenIssued, TokenRequest

PREFIX = "sealrig_"
MAX_TOKEN_CHARS = 128
SERVER = "server"


@dataclass(frozen=True)
class Caller:
    """Who asks, proven by a token. ``tenant_ref`` is the tenant's name in the public log."""

    token: str
    role: Role
    tenant: str
    tenant_ref: str
    node: str | None

    @property
    def sees_all(self) -> bool:
        """Whether this role reads what belongs to every tenant."""
        return self.role in {"operator", "auditor"}


def authenticate(control: Control, secret: str) -> Caller:
    """Return who ``secret`` belongs to. Raises ``AuthenticationError``, the same for unknown, revoked and expired."""
    if not secret.startswith(PREFIX) or len(secret) > MAX_TOKEN_CHARS:
        raise _no_token()
    return _live_caller(control, TokenRow.hash == _hash(secret))


def caller_of_token(control: Control, token: str) -> Caller:
    """Return who a token's id belongs to, for a session that the token opened. Raises ``AuthenticationError`` once the token ended."""
    return _live_caller(control, TokenRow.id == token)


def _live_caller(control: Control, condition: ColumnElement[bool]) -> Caller:
    with control.database.read() as session:
        found = session.execute(select(TokenRow, TenantRow.ref).join(TenantRow, TenantRow.name == TokenRow.tenant).where(condition)).first()
    if found is None:
        raise _no_token()
    row, ref = found
    if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= control.now()):
        raise _no_token()
    return Caller(row.id, cast("Role", row.role), row.tenant, ref, row.node)


def new_secret() -> str:
    """Return the secret of a token to be: 256 random bits as text."""
    return PREFIX + secrets.token_urlsafe(32)


def issue_token(control: Control, request: TokenRequest, *, actor: str, secret: str | None = None) -> TokenIssued:
    """Make a token, and its tenant where that is new. The secret is in the answer and nowhere else.

    ``secret`` is one of ``new_secret`` that the caller has already kept somewhere, so that a crash cannot lose it.
    """
    secret = secret or new_secret()
    at = control.now()
    expires = at + timedelta(seconds=request.ttl_seconds) if request.ttl_seconds else None
    row = TokenRow(
        id=new_id("token"),
        hash=_hash(secret),
        role=request.role,
        tenant=request.tenant,
        node=None,
        created_at=at,
        expires_at=expires,
        revoked_at=None,
    )
    with control.database.write() as session:
        tenant = ensure_tenant(control, session, request.tenant, actor=actor)
        session.add(row)
        control.journal.record(session, "token.issued", actor=actor, tenant_ref=tenant.ref, resource=row.id, at=at, outcome=row.role,
                               private={"tenant": request.tenant})  # fmt: skip
    control.acknowledge()
    return TokenIssued(**token_info(row).model_dump(), token=secret)


def list_tokens(control: Control) -> list[TokenInfo]:
    """Return all tokens, oldest first, without their secrets."""
    with control.database.read() as session:
        return [token_info(row) for row in session.scalars(select(TokenRow).order_by(TokenRow.created_at, TokenRow.id))]


def revoke_token(control: Control, token: str, *, actor: str) -> TokenInfo:
    """End a token at once. Revoking twice is the same as once. Raises ``NotFoundError``."""
    with control.database.write() as session:
        row = session.get(TokenRow, token, with_for_update=True)
        if row is None:
            raise NotFoundError(
                "no such token", rule="token", seen=token[:80], wanted="a token of this server", fix="see 'sealrig token list'"
            )
        if row.revoked_at is None:
            row.revoked_at = control.now()
            ref = session.scalars(select(TenantRow.ref).where(TenantRow.name == row.tenant)).one()
            control.journal.record(session, "token.revoked", actor=actor, tenant_ref=ref, resource=row.id, at=row.revoked_at)
    control.acknowledge()
    return token_info(row)


def ensure_tenant(control: Control, session: Session, name: str, *, actor: str) -> TenantRow:
    """Return the tenant, made with the server's default policy where it is new; that it holds from now on is in the audit log."""
    row = session.get(TenantRow, name)
    if row is not None and row.erased_at is not None:
        raise StateError(
            "this tenant was erased", rule="tenant-erased", seen=name, wanted="a tenant that was not", fix="name another tenant"
        )
    if row is not None:
        return row
    policy, at = control.settings.policy, control.now()
    keep_policy(session, policy, at)
    row = TenantRow(
        name=name, ref=f"tenant-{secrets.token_hex(16)}", policy=policy.digest, policy_pinned=False,
        quota=control.settings.limits.tenant_quota_bytes, created_at=at, erased_at=None,
    )  # fmt: skip
    session.add(row)
    session.flush()
    record_change(control.journal, session, row, None, policy, actor=actor, at=at)
    return row


def token_info(row: TokenRow) -> TokenInfo:
    """Return a token as it may be shown."""
    return TokenInfo(
        id=row.id,
        role=cast("Role", row.role),
        tenant=row.tenant,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _no_token() -> AuthenticationError:
    return AuthenticationError("this needs a valid token", rule="token", seen="none, or one that is unknown, revoked or expired",
                               wanted="a valid token", fix="ask the operator for a new one ('sealrig token new')")  # fmt: skip
