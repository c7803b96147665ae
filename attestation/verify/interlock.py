"""Wipe before next lease: no key moves to a node whose earlier leases did not all end in a proven wipe.

The node names, for itself and each leased GPU, the log entry that ended the last lease there; None says that there was none. With the
log's own history of the node at hand the word is checked:

1. no earlier lease of the node ended without a proof (``unproven`` is empty);
2. each named entry is a proven wipe by this very node;
3. ``node: None`` holds only if the log shows no wipe by the node older than the evidence.

A GPU's None needs no rule of its own: by rule 1 every lease that may have used it was wiped, or there was none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from attestation.evidence import Evidence
from attestation.steps import Steps

_FIX = "wait until the node shows a proven wipe, or have the operator restore it ('sealrig node restore')"


@dataclass(frozen=True)
class NodeHistory:
    """What the audit log says of one node, read from a verified checkpoint of ``size`` entries.

    ``wipes`` maps the index of each entry that ended a lease with a proven wipe to its time; ``unproven`` lists indexes of leases'
    ends without proof that no later proof has made good.
    """

    node: str
    size: int
    wipes: Mapping[int, datetime]
    unproven: tuple[int, ...]


def check_interlock(evidence: Evidence, history: NodeHistory | None, *, required: bool, steps: Steps) -> None:
    """Record the interlock's steps. ``required`` says that the node's word alone is not enough."""
    targets = ["node", *(gpu.uuid for gpu in evidence.gpus if gpu.leased)]
    named = evidence.previous_wipes
    steps.check(
        "interlock-named",
        ok=set(named) == set(targets),
        seen=", ".join(sorted(named)) or "none",
        wanted=", ".join(sorted(targets)),
        fix="each leased GPU and the node itself need a previous wipe or null",
    )
    if history is None:
        steps.check(
            "interlock-log",
            ok=not required,
            seen="the log was not read" if required else "the node's signed word",
            wanted="the log's history of the node" if required else "the node's signed word (interlock: claimed)",
            fix="read the node's history from the audit log, or set 'interlock: claimed' in the trust file",
        )
        return
    steps.check(
        "interlock-history",
        ok=history.node == evidence.node,
        seen=history.node,
        wanted=evidence.node,
        fix="read the log's history of this node",
    )
    steps.check(
        "interlock-unproven",
        ok=not history.unproven,
        seen=_indexes(history.unproven),
        wanted="no lease that ended without a proven wipe",
        fix=_FIX,
    )
    foreign = [index for index in named.values() if index is not None and index not in history.wipes]
    steps.check(
        "interlock-wipes",
        ok=not foreign,
        seen=f"not in the log of {history.size} entries: {_indexes(foreign)}" if foreign else _shown(named),
        wanted=f"entries of proven wipes by {evidence.node}",
        fix=_FIX,
    )
    older = [index for index, at in history.wipes.items() if at < evidence.made_at]
    first = named.get("node") is None
    steps.check(
        "interlock-first",
        ok=not (first and older),
        seen="first lease" if first else "an earlier wipe is named",
        wanted=f"the last wipe of the node (entry {max(older)})" if first and older else "an earlier wipe, or none in the log",
        fix=_FIX,
    )


def _indexes(indexes: tuple[int, ...] | list[int]) -> str:
    return ", ".join(str(index) for index in indexes[:8]) or "none"


def _shown(named: Mapping[str, int | None]) -> str:
    return ", ".join(f"{target}: {'none' if index is None else index}" for target, index in list(named.items())[:8])
