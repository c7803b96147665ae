"""Placement without a scheduler: a node that polls and has room gets the oldest admitted leases that fit it.

The room is what the node said it can give, less what its leases asked for. A lease counts until its wipe is proven, so that nothing is
given out twice; a quarantined node gets nothing. GPUs differ in size, so that the node tells with each poll which of them are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from sandbox.control.core import Control
from sandbox.control.database.models import LeaseRow, NodeRow
from sandbox.control.placement.gpus import Free, fits, free_gpus, without
from sandbox.control.transitions import advance, document_ref
from sandbox.lifecycle import ON_NODE, LeaseState
from sandbox.wire import Capacity, GpuOffer

LOOK_AHEAD = 64
"""How many waiting leases are looked at; ones that do not fit this node do not hold up smaller ones behind them."""


@dataclass(frozen=True)
class _Room:
    """What is free. Sizes in bytes; ``cards`` is None where the node does not tell of single GPUs."""

    slots: int
    cpus: float
    memory: int
    scratch: int
    gpus: int
    cards: Free | None = None

    def less(self, lease: LeaseRow) -> Self:
        return type(self)(
            self.slots - 1,
            self.cpus - lease.cpus,
            self.memory - lease.memory,
            self.scratch - lease.scratch,
            self.gpus - lease.gpus,
            None if self.cards is None else without(self.cards, lease),
        )

    def holds(self, lease: LeaseRow) -> bool:
        rest = self.less(lease)
        enough = min(rest.slots, rest.cpus, rest.memory, rest.scratch, rest.gpus) >= 0
        return enough and (self.cards is None or fits(self.cards, lease))


def place(control: Control, node_id: str, offers: Sequence[GpuOffer] | None) -> list[str]:
    """Place what fits on a node; return the leases' ids. Two servers or polls at once place nothing twice: compare-and-swap.

    ``offers`` are the node's GPUs as it told of them; where it did not, a lease that fits by their number may find them too small.
    """
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
        on_node = select(LeaseRow).where(LeaseRow.node == node_id, LeaseRow.state.in_([state.value for state in ON_NODE]))
        held = list(session.scalars(on_node.order_by(LeaseRow.created_at, LeaseRow.id)))
        for lease in held:
            room = room.less(lease)
        room = replace(room, cards=None if offers is None else free_gpus(session, offers, held))
        for lease in _waiting(session):
            if room.holds(lease) and lease.isolation in capacity.isolation:
                deadline = control.now() + timedelta(seconds=control.settings.limits.release_seconds)
                job = document_ref(session, lease.id, "job")
                advance(control, session, lease, LeaseState.PLACED, actor=node_id, evidence=job, node=node_id, deadline=deadline)
                placed.append(lease.id)
                room = room.less(lease)
    return placed


def _waiting(session: Session) -> list[LeaseRow]:
    query = select(LeaseRow).where(LeaseRow.state == LeaseState.ADMITTED.value).order_by(LeaseRow.created_at, LeaseRow.id)
    return list(session.scalars(query.limit(LOOK_AHEAD)))
