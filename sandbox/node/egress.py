"""The job's way out, where its policy permits one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.errors import JobError

if TYPE_CHECKING:
    from sandbox.node.engine import Engine
    from sandbox.node.plan import LaunchPlan


def open_network(engine: Engine, plan: LaunchPlan) -> str:
    """Return the network mode of a job that may reach ``plan.egress``."""
    raise JobError(
        "this node gives no job a network",
        rule="egress",
        seen=", ".join(plan.egress),
        wanted="network: none",
        fix="bring all data in bundles",
    )
