"""What the audit log says of one node: which of its leases ended in a proven wipe. Feeds the interlock of ``verify_evidence``.

A lease's end is logged with the node as its actor once the node was touched (``lease.closed``, ``cancelled``, ``denied``, ``expired``
after a proven wipe, ``lease.quarantined`` without one). A ``node.restored`` by the node itself that carries a document, the certificate
of the wipe that was made good, settles one such end, the oldest; an operator's word alone settles none.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from attestation.errors import LogError
from attestation.log.leaf import Leaf
from attestation.log.note import NoteVerifier, open_checkpoint
from attestation.log.reader import LogReader
from attestation.merkle import leaf_hash, root
from attestation.trust import Trust
from attestation.verify import NodeHistory

PROVEN_ENDS = frozenset({"lease.closed", "lease.cancelled", "lease.denied", "lease.expired"})
UNPROVEN_END = "lease.quarantined"
RESTORED = "node.restored"


def node_history(leaves: Iterable[tuple[int, Leaf]], node: str, size: int) -> NodeHistory:
    """Return the history of ``node`` from all leaves of a proven tree of ``size`` entries, in order."""
    wipes: dict[int, datetime] = {}
    unproven: list[int] = []
    for index, leaf in leaves:
        if leaf.actor_ref == node and leaf.type in PROVEN_ENDS:
            wipes[index] = leaf.occurred_at
        elif leaf.actor_ref == node and leaf.type == UNPROVEN_END:
            unproven.append(index)
        elif leaf.actor_ref == leaf.resource_ref == node and leaf.type == RESTORED and leaf.evidence is not None:
            del unproven[:1]
            wipes[index] = leaf.occurred_at
    return NodeHistory(node, size, wipes, tuple(unproven))


def read_history(reader: LogReader, trust: Trust, node: str) -> NodeHistory:
    """Read the whole log, prove that it is the one that the trusted key signed, and return the history of ``node``.

    Raises ``LogError`` (fetching, signature, origin) also where the entries do not give the signed root.
    """
    log = trust.spec.log
    checkpoint, _ = open_checkpoint(reader.checkpoint(), [NoteVerifier.from_text(log.key)], origin=log.origin)
    hashes: list[bytes] = []

    def leaves() -> Iterable[tuple[int, Leaf]]:
        for index, raw in reader.entries(0, checkpoint.size, size=checkpoint.size):
            hashes.append(leaf_hash(raw))
            if node.encode() in raw:
                yield index, Leaf.from_bytes(raw)

    history = node_history(leaves(), node, checkpoint.size)
    if len(hashes) != checkpoint.size or root(hashes) != checkpoint.root:
        raise LogError(
            "the log's entries do not give the signed root",
            rule="log-root",
            seen=f"{len(hashes)} entries",
            wanted=checkpoint.root.hex(),
            fix="read the log again; if it stays so, the log is not to be trusted",
        )
    return history
