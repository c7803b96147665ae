"""The states of a lease and the only ways between them. Pure: no clock, no I/O.

::

    submitted → admitted → placed → attested → unlocked → running → collecting → wiping → closed
                                                                                       ↘ quarantined
    submitted, admitted            → denied | cancelled | expired          (no node was touched yet)
    placed, attested               → wiping → denied | cancelled | expired (a node was touched: wipe first)
    unlocked, running, collecting  → wiping → closed                       (the outcome says how it ended)

Once a key may have reached a node, the only way out is through ``wiping``.
"""

from __future__ import annotations

from enum import StrEnum

from sandbox.errors import StateError


class LeaseState(StrEnum):
    """Where a lease stands. The values are part of the HTTP contract."""

    SUBMITTED = "submitted"
    ADMITTED = "admitted"
    PLACED = "placed"
    ATTESTED = "attested"
    UNLOCKED = "unlocked"
    RUNNING = "running"
    COLLECTING = "collecting"
    WIPING = "wiping"
    CLOSED = "closed"
    QUARANTINED = "quarantined"
    DENIED = "denied"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Outcome(StrEnum):
    """How the job inside a lease ended, told to the customer as what it is."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the job's own exit code was not 0
    TIME_LIMIT = "time-limit"
    MEMORY_LIMIT = "memory-limit"
    DISK_LIMIT = "disk-limit"
    OUTPUT_LIMIT = "output-limit"
    CANCELLED = "cancelled"  # by the customer
    REVOKED = "revoked"  # the customer's release agent took the key back
    NODE_FAILURE = "node-failure"  # the node stopped in mid-lease or could not start the job
    EXPIRED = "expired"  # nobody released a key, or no node took it, in time
    DENIED = "denied"  # policy, or the release agent, said no


S = LeaseState

TRANSITIONS: dict[LeaseState, frozenset[LeaseState]] = {
    S.SUBMITTED: frozenset({S.ADMITTED, S.DENIED, S.CANCELLED, S.EXPIRED}),
    S.ADMITTED: frozenset({S.PLACED, S.DENIED, S.CANCELLED, S.EXPIRED}),
    S.PLACED: frozenset({S.ATTESTED, S.WIPING}),
    S.ATTESTED: frozenset({S.UNLOCKED, S.WIPING}),
    S.UNLOCKED: frozenset({S.RUNNING, S.WIPING}),
    S.RUNNING: frozenset({S.COLLECTING, S.WIPING}),
    S.COLLECTING: frozenset({S.WIPING}),
    S.WIPING: frozenset({S.CLOSED, S.QUARANTINED, S.DENIED, S.CANCELLED, S.EXPIRED}),
    S.CLOSED: frozenset(),
    S.QUARANTINED: frozenset(),
    S.DENIED: frozenset(),
    S.CANCELLED: frozenset(),
    S.EXPIRED: frozenset(),
}

TERMINAL = frozenset(state for state, onward in TRANSITIONS.items() if not onward)
BEFORE_NODE = frozenset({S.SUBMITTED, S.ADMITTED})
"""States in which no node was touched yet, so that an end needs no wipe."""
KEY_MAY_BE_OUT = frozenset({S.UNLOCKED, S.RUNNING, S.COLLECTING})
ON_NODE = frozenset({S.PLACED, S.ATTESTED, S.UNLOCKED, S.RUNNING, S.COLLECTING, S.WIPING})
"""States in which a node holds, or may hold, something of the lease."""


def check_transition(lease: str, seen: LeaseState, wanted: LeaseState) -> None:
    """Raise ``StateError`` unless a lease may go from ``seen`` to ``wanted``."""
    if wanted not in TRANSITIONS[seen]:
        onward = ", ".join(sorted(TRANSITIONS[seen])) or "nothing: it has ended"
        raise StateError(
            f"lease {lease} cannot go from {seen} to {wanted}",
            rule="lease-transition",
            seen=str(seen),
            wanted=f"a state from which {wanted} follows",
            fix=f"from {seen} it can go to: {onward}",
        )


def end_state(seen: LeaseState, outcome: Outcome, *, proven: bool) -> LeaseState:
    """Return the terminal state that ``wiping`` ends in.

    ``seen`` is the last state before wiping; ``proven`` says whether every step of the wipe was proven.
    """
    if not proven:
        return S.QUARANTINED
    if seen in (S.PLACED, S.ATTESTED):
        early = {Outcome.CANCELLED: S.CANCELLED, Outcome.EXPIRED: S.EXPIRED, Outcome.DENIED: S.DENIED}
        return early.get(outcome, S.CLOSED)
    return S.CLOSED
