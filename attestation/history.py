"""What the audit log says of one node: which of its leases ended in a proven wipe. Feeds the interlock of ``verify_evidence``.

A lease's end is logged with the node as its actor once the node was touched (``lease.closed``, ``cancelled``, ``denied``, ``expired``
after a proven wipe, ``lease.quarantined`` without one). A ``node.restored`` by the node itself that carries a document, the certificate
of the wipe that was made good, settles one such end, the oldest; an operator's word alone settles none.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from attestation.document import time_text
from attestation.log.leaf import Leaf
from attestation.log.note import Note
from attestation.log.prefix import Fact, KeptPrefix
from attestation.log.reader import LogReader
from attestation.log.rules import LogRules
from attestation.trust import Trust
from attestation.verify import NodeHistory

PROVEN_ENDS = frozenset({"lease.closed", "lease.cancelled", "lease.denied", "lease.expired"})
UNPROVEN_END = "lease.quarantined"
RESTORED = "node.restored"
WIPED, UNPROVEN, MADE_GOOD = "wiped", "unproven", "made-good"
_NEEDLES = tuple(f'"{kind}"'.encode() for kind in (*sorted(PROVEN_ENDS), UNPROVEN_END, RESTORED))


class LogHistory:
    """The history of every node, from one log, proven. Keeps what it has read in ``path``, or in memory without one."""

    def __init__(self, trust: Trust, path: Path | None = None) -> None:
        """Read the log that ``trust`` names. Raises ``LogError`` where the kept part cannot be used."""
        self._rules = LogRules.from_trust(trust)
        self._kept = KeptPrefix(path, self._rules.keys, origin=trust.spec.log.origin)

    def close(self) -> None:
        """Close what was opened."""
        self._kept.close()

    def of(self, node: str, reader: LogReader) -> NodeHistory:
        """Read on to the published checkpoint, prove it, and return the history of ``node``. Raises ``LogError``."""
        head, note = self._kept.follow(reader, noted_end)
        self._rules.require_cosigned(Note.parse(note))
        return node_history(self._kept.facts(node), node, head.size)


def noted_end(index: int, raw: bytes) -> Fact | None:
    """Return what an entry says of a lease's end on a node, or None. The spelling of a leaf is fixed, so most are passed over unparsed."""
    if not any(needle in raw for needle in _NEEDLES):
        return None
    leaf = Leaf.from_bytes(raw)
    if leaf.type in PROVEN_ENDS:
        kind = WIPED
    elif leaf.type == UNPROVEN_END:
        kind = UNPROVEN
    elif leaf.type == RESTORED and leaf.actor_ref == leaf.resource_ref and leaf.evidence is not None:
        kind = MADE_GOOD
    else:
        return None
    return Fact(index, leaf.actor_ref, kind, time_text(leaf.occurred_at))


def node_history(facts: Iterable[Fact], node: str, size: int) -> NodeHistory:
    """Return the history of ``node`` from what was noted of it in a proven tree of ``size`` entries, in order."""
    wipes: dict[int, datetime] = {}
    unproven: list[int] = []
    for fact in facts:
        if fact.subject != node:
            continue
        if fact.kind == UNPROVEN:
            unproven.append(fact.position)
            continue
        if fact.kind == MADE_GOOD:
            del unproven[:1]
        wipes[fact.position] = datetime.fromisoformat(fact.at)
    return NodeHistory(node, size, wipes, tuple(unproven))
