"""Customers' public identities: which keys may sign jobs and grants for a tenant. There is no private key here, ever."""

from __future__ import annotations

from sqlalchemy import func, select

from attestation.canonical import sha256_digest
from attestation.shape import shape
from attestation.signing import VerifyKey
from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import IdentityRow
from sandbox.errors import JobError, LimitError
from sandbox.model import new_id
from sandbox.sealing.public import IdentityPublic


def enrol(control: Control, caller: Caller, text: str) -> bool:
    """Enrol an identity for the caller's tenant; say whether it is new. Raises ``InputError`` for text that is no identity."""
    identity = IdentityPublic.parse(text)
    digest = sha256_digest(identity.text.encode())
    most = control.settings.limits.identities_per_tenant
    with control.database.write() as session:
        mine = select(IdentityRow).where(IdentityRow.tenant == caller.tenant)
        new = session.scalars(mine.where(IdentityRow.digest == digest)).one_or_none() is None
        if new:
            if (session.scalar(select(func.count()).select_from(mine.subquery())) or 0) >= most:
                raise LimitError(
                    "too many identities",
                    rule="identities-per-tenant",
                    seen=f"{most} identities",
                    wanted=f"at most {most}",
                    fix="ask the operator",
                )
            at = control.now()
            session.add(
                IdentityRow(tenant=caller.tenant, digest=digest, text=identity.text, verify_key=identity.verify_key.text, created_at=at)
            )
            # Whoever has somebody's public identity could look for its digest, so the entry names a random id.
            control.journal.record(
                session, "identity.enrolled", actor=caller.token, tenant_ref=caller.tenant_ref, resource=new_id("identity"), at=at,
                private={"identity": digest},
            )  # fmt: skip
    control.acknowledge()
    return new


def identities(control: Control, caller: Caller) -> list[str]:
    """Return the identities of the caller's tenant, or all for operators and auditors, oldest first."""
    with control.database.read() as session:
        query = select(IdentityRow.text).order_by(IdentityRow.id)
        return list(session.scalars(query if caller.sees_all else query.where(IdentityRow.tenant == caller.tenant)))


def customer_key(control: Control, tenant: str, identity: object) -> VerifyKey:
    """Return the key of an identity enrolled for ``tenant``. Raises ``JobError`` for any other."""
    found = None
    if isinstance(identity, str):
        with control.database.read() as session:
            digest = sha256_digest(identity.encode())
            found = session.scalars(
                select(IdentityRow.verify_key).where(IdentityRow.tenant == tenant, IdentityRow.digest == digest)
            ).one_or_none()
    if found is None:
        raise JobError(
            "the identity that signed this is not enrolled for your tenant",
            rule="job-identity",
            seen=shape(identity),
            wanted="an identity that this tenant has enrolled",
            fix="submit with the enrolled key, or enrol this one",
        )
    return VerifyKey.from_text(found)
