"""Which of a node's GPUs are free, as the node told with its poll and as the leases placed since then will take them.

A poll is held open for long, so that its word may be older than what the server knows: a lease that has ended since holds nothing any
more, and one that was placed since takes the smallest GPUs that fit, as the node's own ``GpuPool`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from sandbox.control.database.models import LeaseRow
from sandbox.lifecycle import TERMINAL
from sandbox.wire import GpuOffer

Free = tuple[int, ...]
"""Bytes that a job can use of each free GPU, the smallest first."""


def free_gpus(session: Session, offers: Sequence[GpuOffer], on_node: Iterable[LeaseRow]) -> Free:
    """Return the free GPUs of a node that has these leases. One that is held for a lease which the server does not know is not free."""
    named = {lease for offer in offers for lease in offer.leases}
    ended = select(LeaseRow.id).where(LeaseRow.id.in_(named), LeaseRow.state.in_([state.value for state in TERMINAL]))
    over = set(session.scalars(ended))
    free = tuple(sorted(offer.memory for offer in offers if over.issuperset(offer.leases)))
    for lease in on_node:
        if lease.id not in named:
            free = without(free, lease)
    return free


def fits(free: Free, lease: LeaseRow) -> bool:
    """Tell whether a lease finds the GPUs that it wants."""
    return sum(memory >= lease.gpu_memory for memory in free) >= lease.gpus


def without(free: Free, lease: LeaseRow) -> Free:
    """Return what a lease leaves: it takes the smallest that fit."""
    rest = list(free)
    for memory in [memory for memory in free if memory >= lease.gpu_memory][: lease.gpus]:
        rest.remove(memory)
    return tuple(rest)
