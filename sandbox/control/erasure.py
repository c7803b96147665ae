"""What the audit log only commits to: read by those who may, and erased for good when a subject asks for it.

An erasure goes in this order, so that a crash anywhere is finished by the next start:

1. one transaction: everything that names the tenant or describes its leases goes from the database, and the erasure's own entry is there
2. the key of its commitments is destroyed, so that copies and backups of the sealed values open no more
3. bundles and half uploads that nobody owns any more go; the database's own left-overs (SQLite's journal) are cut
4. the entry is in the log, and the erasure is acknowledged
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from attestation.log.commitments import Opening
from attestation.log.errors import LogStoreError
from attestation.log.leaf import Leaf
from sandbox.control.access import Caller
from sandbox.control.bundles import collect_garbage
from sandbox.control.core import Control
from sandbox.control.database.models import (
    BundleOwnerRow,
    CommittedRow,
    DocumentRow,
    EventRow,
    IdentityRow,
    LeaseInputRow,
    LeaseRow,
    LogChunkRow,
    PolicyChangeRow,
    PolicyRow,
    ReportRow,
    TenantRow,
    TokenRow,
    TransitionRow,
    UploadRow,
)
from sandbox.control.policy_changes import keep_policy
from sandbox.control.uploads import drop
from sandbox.errors import NotFoundError, StateError
from sandbox.lifecycle import TERMINAL

ERASED = "erased"


@dataclass(frozen=True)
class Committed:
    """A field that an entry commits to, and what opens it; ``opening`` of None: it was erased."""

    field: str
    mac: str
    opening: Opening | None


def committed(control: Control, session: Session, leaf: Leaf) -> list[Committed]:
    """Return what a leaf commits to, each opening proven. The caller sees to who may read it. Raises ``LogStoreError``."""
    rows = {row.field: row for row in session.scalars(select(CommittedRow).where(CommittedRow.leaf_id == leaf.id))}
    found = []
    for each in leaf.commitments:
        row = rows.get(each.field)
        opening = control.keys.open(leaf.id, row.subject, row.field, row.sealed) if row is not None else None
        if opening is not None:
            opening.verify(each)
        found.append(Committed(each.field, each.mac, opening))
    return found


def openings_of(control: Control, session: Session, leaf: Leaf, field: str) -> list[Opening]:
    """Return what opens one field of a leaf: one opening, or none where it was erased."""
    return [each.opening for each in committed(control, session, leaf) if each.field == field and each.opening is not None]


@dataclass(frozen=True)
class Erasure:
    """What was erased. ``values``: how many committed values can never be opened again; ``index``: the entry that says so."""

    subject: str
    values: int
    leases: int
    index: int


def erase(control: Control, caller: Caller, subject: str) -> Erasure:
    """Erase a tenant by its random id. Raises ``NotFoundError``, and ``StateError`` while it has leases that have not ended."""
    at = control.now()
    with control.database.write() as session:
        tenant = _erasable(session, caller, subject)
        values = session.scalar(select(func.count()).select_from(CommittedRow).where(CommittedRow.subject == subject)) or 0
        uploads = list(session.scalars(select(UploadRow.id).where(UploadRow.tenant == tenant.name)))
        leases = list(session.scalars(select(LeaseRow.id).where(LeaseRow.tenant == tenant.name)))
        _forget(control, session, tenant)
        event = control.journal.record(session, "subject.erased", actor=caller.token, tenant_ref=subject, resource=subject, at=at)
    _finish(control, subject)
    for upload in uploads:
        drop(control, upload)
    collect_garbage(control)
    control.database.scrub()
    control.acknowledge(*leases)
    with control.database.read() as session:
        index = session.get_one(EventRow, event).log_index
    return Erasure(subject, values, len(leases), -1 if index is None else index)


def finish_erasures(control: Control) -> None:
    """Destroy the keys that a crash left of erased subjects."""
    with control.database.read() as session:
        erased = set(session.scalars(select(TenantRow.ref).where(TenantRow.erased_at.is_not(None))))
    for subject in erased.intersection(control.keys.subjects()):
        _finish(control, subject)
        control.database.scrub()


def _finish(control: Control, subject: str) -> None:
    try:
        control.keys.erase(subject)
    except OSError as error:
        raise LogStoreError(
            "the key of the erased subject is still there", rule="erase-key", seen=str(error), wanted="a key file that is gone",
            fix="mend the disk and start the server again: it finishes the erasure",
        ) from error  # fmt: skip


def _erasable(session: Session, caller: Caller, subject: str) -> TenantRow:
    tenant = session.scalars(select(TenantRow).where(TenantRow.ref == subject).with_for_update()).one_or_none()
    if tenant is None:
        raise NotFoundError(
            "there is no such subject", rule="erase-subject", seen=subject[:80], wanted="a tenant's random id, as it stands in the log",
            fix="see 'sealrig audit list --type token.issued' and 'sealrig audit show ENTRY --open'",
        )  # fmt: skip
    if tenant.erased_at is not None:
        raise StateError("this subject was erased already", rule="erase-twice", seen=subject, wanted="a subject that is still there")
    if tenant.name == caller.tenant:
        raise StateError(
            "this is your own tenant",
            rule="erase-self",
            seen=subject,
            wanted="another tenant",
            fix="use an operator's token of another tenant",
        )
    live = session.scalars(
        select(LeaseRow.id).where(LeaseRow.tenant == tenant.name, LeaseRow.state.not_in([state.value for state in TERMINAL]))
    ).first()
    if live is not None:
        raise StateError(
            "this subject has a lease that has not ended", rule="erase-lease", seen=live, wanted="ended leases only",
            fix=f"wait for it, or cancel it: 'sealrig lease cancel {live}'",
        )  # fmt: skip
    return tenant


def _forget(control: Control, session: Session, tenant: TenantRow) -> None:
    """Take everything of a tenant out of the database but what the public log says anyway: random ids, states, times."""
    name, erased, ref = tenant.name, f"{ERASED}-{tenant.ref.rpartition('-')[2]}", tenant.ref
    default, at = control.settings.policy, control.now()
    keep_policy(session, default, at)
    policies = {tenant.policy}
    for column in (LeaseRow.policy_digest, PolicyChangeRow.before, PolicyChangeRow.after):
        policies.update(filter(None, session.scalars(select(column).where(column.class_.tenant == name).distinct())))
    session.execute(delete(PolicyChangeRow).where(PolicyChangeRow.tenant == name))
    mine = select(LeaseRow.id).where(LeaseRow.tenant == name)
    for column in (DocumentRow.lease, ReportRow.lease, LogChunkRow.lease, LeaseInputRow.lease):
        session.execute(delete(column.class_).where(column.in_(mine)))
    session.execute(update(TransitionRow).where(TransitionRow.lease.in_(mine)).values(detail=""))
    session.execute(update(UploadRow).where(UploadRow.tenant == name).values(stated=None))
    session.execute(delete(CommittedRow).where(CommittedRow.subject == ref))
    session.execute(delete(IdentityRow).where(IdentityRow.tenant == name))
    session.execute(delete(BundleOwnerRow).where(BundleOwnerRow.tenant == name))
    # The name is the key that other rows refer to: a row under the new name takes them over, then the old one goes.
    tenant.ref = f"{ref}-old"
    session.flush()
    stays = {"policy": default.digest, "policy_pinned": False, "quota": 0, "created_at": tenant.created_at}
    session.add(TenantRow(name=erased, ref=ref, erased_at=at, **stays))
    session.flush()
    session.execute(update(TokenRow).where(TokenRow.tenant == name, TokenRow.revoked_at.is_(None)).values(revoked_at=at))
    session.execute(
        update(LeaseRow)
        .where(LeaseRow.tenant == name)
        .values(name=ERASED, detail="", denials=[], image=ERASED, customer_key="", policy_digest=default.digest, result=None)
    )
    _hand_over(session, (TokenRow.tenant, LeaseRow.tenant, UploadRow.tenant), name, erased)
    session.expunge(tenant)
    session.execute(delete(TenantRow).where(TenantRow.name == name))
    held = select(PolicyChangeRow.before).where(PolicyChangeRow.before.is_not(None))
    in_use = select(TenantRow.policy).union(select(LeaseRow.policy_digest), select(PolicyChangeRow.after), held)
    session.execute(delete(PolicyRow).where(PolicyRow.digest.in_(policies), PolicyRow.digest.not_in(in_use)))


def _hand_over(session: Session, columns: Sequence[InstrumentedAttribute[str]], old: str, new: str) -> None:
    for column in columns:
        session.execute(update(column.class_).where(column == old).values({column.key: new}).execution_options(synchronize_session=False))
