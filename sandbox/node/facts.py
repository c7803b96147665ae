"""What policies are told of this node, as it is now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.node.evidence import gpu_facts
from sandbox.node.qualification import grades

if TYPE_CHECKING:
    from policies.model import NodeFacts
    from sandbox.node.context import Node


def facts_now(node: Node, leased: tuple[str, ...]) -> NodeFacts:
    """Return the node's facts with the posture of this moment, and its GPUs as the control plane shows them to policies."""
    found = grades(node.folder, node.key.public)
    rows = ({**gpu.model_dump(), "grade": found.get(gpu.uuid, "unknown")} for gpu in gpu_facts(node.gpus.inventory, leased))
    return node.facts.model_copy(update={"posture": {fact.id: fact.result for fact in node.posture()}, "gpus": tuple(rows)})
