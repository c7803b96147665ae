"""Placement without a scheduler: a node that polls and has room gets the oldest admitted leases that fit it.

The room is what the node said it can give, less what its leases asked for. A lease counts until its wipe is proven, so that nothing is
given out twice; a quarantined node gets nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from sandbox.control.core import Control
from sandbox.control.database.models import LeaseRow, NodeRow
from sandbox.control.transitions import advance, document_ref
from sandbox.lifecycle import ON_NODE, LeaseState
from sandbox.wire import Capacity

LOOK_AHEAD = 64
"""How many waiting leases are looked at; ones that do not fit this node do not hold up smaller ones behind them."""


@dataclass(frozen=True)
class _Room:
    """What is free. Sizes in bytes."""

    slots: int
    cpus: float
    memory: int
    scratch: int
    gpus: int

    def less(self, lease: LeaseRow) -> Self:
        return type(self)(
            self.slots - 1, self.cpus - lease.cpus, self.memory - lease.memory, self.scratch - lease.scratch, self.gpus - lease.gpus
        )

    @property
    def holds(self) -> bool:
        return min(self.slots, self.cpus, self.memory, self.scratch, self.gpus) >= 0


def place(control: Control, node_id: str) -> list[str]:
    """Place what fits on a node; return the leases' ids. Two servers or polls at once place nothing twice: compare-and-swap."""
    with control.database.read() as session:
        if not _waiting(session):
            return []
    placed = []
    with control.database.write() as session:
        node = session.get_one(NodeRow, node_id, with_for_update=True)
        if node.state != "ready":
            return []
        capacity = Capacity.model_validate(node.capacity)
        room = _Room(capacity.slots, capacity.cpus, capacity.memory, capacity.scratch, len(capacity.gpus))
        for held in session.scalars(
            select(LeaseRow).where(LeaseRow.node == node_id, LeaseRow.state.in_([state.value for state in ON_NODE]))
        ):
            room = room.less(held)
        for lease in _waiting(session):
            rest = room.less(lease)
            if rest.holds and lease.isolation in capacity.isolation:
                deadline = control.now() + timedelta(seconds=control.settings.limits.release_seconds)
                job = document_ref(session, lease.id, "job")
                advance(control, session, lease, LeaseState.PLACED, actor=node_id, evidence=job, node=node_id, deadline=deadline)
                placed.append(lease.id)
                room = rest
    return placed


def _waiting(session: Session) -> list[LeaseRow]:
    query = select(LeaseRow).where(LeaseRow.state == LeaseState.ADMITTED.value).order_by(LeaseRow.created_at, LeaseRow.id)
    return list(session.scalars(query.limit(LOOK_AHEAD)))
