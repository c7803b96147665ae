"""Nodes: registration, work, quarantine. A node speaks only for itself: its token is bound to the first node id that used it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from attestation.canonical import canonical_json, sha256_digest
from attestation.log.leaf import DocumentRef
from attestation.signing import Envelope, VerifyKey, b64encode
from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import LeaseRow, NodeRow, TokenRow
from sandbox.control.fitness import show_qualification
from sandbox.control.placement import place
from sandbox.control.transitions import document
from sandbox.errors import AccessError, NotFoundError, StateError
from sandbox.lifecycle import ON_NODE, LeaseState, Outcome
from sandbox.wire import Assignment, Capacity, NodeInfo, NodeRegistration, PollAnswer, PollRequest

CHANGED = "nodes"
"""The bell's topic of all nodes' states."""
_HELD = [state.value for state in ON_NODE]
SEEN_EVERY_SECONDS = 5
"""How often ``last_seen`` is written, so that idle polling costs no disk."""


def register(control: Control, caller: Caller, node_id: str, registration: NodeRegistration) -> None:
    """Take what a node says of itself. Its key is fixed at the first registration.

    Raises ``AccessError`` when the token belongs to another node or another token holds this node, ``StateError`` for another key.
    """
    key = VerifyKey.from_text(registration.public_key).text
    at = control.now()
    with control.database.write() as session:
        _bind_token(session, caller, node_id, at)
        node = session.get(NodeRow, node_id, with_for_update=True)
        said = {
            "version": registration.version,
            "capacity": registration.capacity.model_dump(mode="json"),
            "inventory": registration.inventory,
        }
        if node is None:
            session.add(NodeRow(id=node_id, public_key=key, state="ready", detail="", stale=False, registered_at=at, last_seen=at, **said))
            control.journal.record(session, "node.registered", actor=caller.token, tenant_ref=caller.tenant_ref, resource=node_id, at=at)
        elif node.public_key != key:
            raise StateError(
                "this node is registered with another key",
                rule="node-key",
                seen=VerifyKey.from_text(key).key_id,
                wanted=VerifyKey.from_text(node.public_key).key_id,
                fix="a node with a new key is a new node: 'sealrig node init'",
            )
        else:
            session.execute(update(NodeRow).where(NodeRow.id == node_id).values(last_seen=at, stale=False, **said))
    control.acknowledge("queue", f"node:{node_id}", CHANGED)


def _bind_token(session: Session, caller: Caller, node_id: str, at: datetime) -> None:
    row = session.get_one(TokenRow, caller.token, with_for_update=True)
    live = (TokenRow.revoked_at.is_(None), or_(TokenRow.expires_at.is_(None), TokenRow.expires_at > at))
    other = session.scalars(select(TokenRow.id).where(TokenRow.node == node_id, TokenRow.id != row.id, *live)).first()
    if (row.node is not None and row.node != node_id) or other is not None:
        raise AccessError(
            "this token is not this node's",
            rule="node-token",
            seen=row.node or "another token holds this node",
            wanted=node_id,
            fix="give each node its own token; revoke the old one first",
        )
    row.node = node_id


def own_node(session: Session, caller: Caller, node_id: str) -> NodeRow:
    """Return the node that the caller is. Raises ``NotFoundError`` for every other."""
    node = session.get(NodeRow, node_id) if caller.node == node_id else None
    if node is None:
        raise no_node(node_id)
    return node


def no_node(node_id: str) -> NotFoundError:
    """Return the answer for a node that does not exist, or not for this caller."""
    return NotFoundError("no such node", rule="node", seen=node_id[:80], wanted="a registered node", fix="see 'sealrig node list'")


def take_work(control: Control, caller: Caller, node_id: str, request: PollRequest) -> PollAnswer:
    """Place what fits on this node, if it accepts work, and return all that it has to do with."""
    at = control.now()
    with control.database.read() as session:
        node = own_node(session, caller, node_id)
        seen, stale = node.last_seen, node.stale
    if stale or (at - seen).total_seconds() >= SEEN_EVERY_SECONDS:
        with control.database.write() as session:
            session.execute(update(NodeRow).where(NodeRow.id == node_id).values(last_seen=at, stale=False))
    if stale:
        control.bell.ring(CHANGED)
    placed = place(control, node_id, request.gpus) if request.accepting else []
    if placed:
        control.acknowledge("waiting", *placed)
    with control.database.read() as session:
        node = own_node(session, caller, node_id)
        rows = session.scalars(select(LeaseRow).where(LeaseRow.node == node_id, LeaseRow.state.in_(_HELD)).order_by(LeaseRow.created_at))
        assignments = tuple(_assignment(session, row) for row in rows)
        return PollAnswer(assignments=assignments, node_state=cast("Literal['ready', 'quarantined']", node.state))


def _assignment(session: Session, lease: LeaseRow) -> Assignment:
    job, policy, grant = (document(session, lease.id, kind) for kind in ("job", "policy", "grant"))
    if job is None or policy is None:
        raise StateError(
            f"lease {lease.id} is not complete",
            rule="lease-documents",
            seen="missing",
            wanted="job and policy",
            fix="report this to the operator",
        )
    return Assignment(
        lease=lease.id, state=LeaseState(lease.state), job=Envelope.from_bytes(job).to_json(), policy=b64encode(policy), nonce=lease.nonce,
        grant=Envelope.from_bytes(grant).to_json() if grant else None, end=Outcome(lease.ending) if lease.ending else None,
    )  # fmt: skip


def list_nodes(control: Control, caller: Caller) -> list[NodeInfo]:
    """Return all nodes; of their leases only those that the caller may see."""
    with control.database.read() as session:
        return [_info(session, caller, row) for row in session.scalars(select(NodeRow).order_by(NodeRow.registered_at, NodeRow.id))]


def mark(found: Sequence[NodeInfo]) -> str:
    """Return a name of where these nodes stand: their states and why, not when they were seen or what they have."""
    return sha256_digest(canonical_json([[node.id, node.state, node.detail] for node in found]))


def show_node(control: Control, caller: Caller, node_id: str) -> NodeInfo:
    """Return one node. Raises ``NotFoundError``."""
    with control.database.read() as session:
        row = session.get(NodeRow, node_id)
        if row is None or (caller.role == "node" and caller.node != node_id):
            raise no_node(node_id)
        return _info(session, caller, row)


def _info(session: Session, caller: Caller, row: NodeRow) -> NodeInfo:
    mine = select(LeaseRow.id).where(LeaseRow.node == row.id, LeaseRow.state.in_(_HELD)).order_by(LeaseRow.created_at)
    if not caller.sees_all and caller.role != "node":
        mine = mine.where(LeaseRow.tenant == caller.tenant)
    stale = "not heard of for a while" if row.stale else ""
    return NodeInfo(
        id=row.id,
        public_key=row.public_key,
        version=row.version,
        capacity=Capacity.model_validate(row.capacity),
        inventory=row.inventory,
        state=cast("Literal['ready', 'quarantined']", row.state),
        detail="; ".join(filter(None, (row.detail, stale))),
        last_seen=row.last_seen,
        leases=tuple(session.scalars(mine)),
        qualification=show_qualification(session, row),
    )


def quarantine(control: Control, caller: Caller, node_id: str) -> None:
    """Give a node no further lease. Its present ones go on."""
    _change(control, caller, node_id, "quarantined", "by the operator")


def restore(control: Control, caller: Caller, node_id: str) -> None:
    """Lift a quarantine: the operator says that the cause was found and mended."""
    _change(control, caller, node_id, "ready", "")


def _change(control: Control, caller: Caller, node_id: str, state: str, detail: str) -> None:
    with control.database.write() as session:
        row = session.get(NodeRow, node_id, with_for_update=True)
        if row is None:
            raise no_node(node_id)
        set_node_state(control, session, row, state, detail, actor=caller.token)
    control.acknowledge("queue", f"node:{node_id}", CHANGED)


def set_node_state(
    control: Control, session: Session, node: NodeRow, state: str, detail: str, *, actor: str, evidence: DocumentRef | None = None
) -> None:
    """Change a node's state, with its audit event; a node that is in that state already stays as it is."""
    if node.state == state:
        return
    node.state, node.detail = state, detail
    kind = "node.quarantined" if state == "quarantined" else "node.restored"
    control.journal.record(session, kind, actor=actor, tenant_ref=None, resource=node.id, at=control.now(), evidence=evidence)
