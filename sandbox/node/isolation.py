"""Whether this node's runtimes can isolate a job as it asks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policies.model import NodeFacts
    from sandbox.job import JobSpec

_NVPROXY = re.compile(r"--?nvproxy(=(1|t|true))?", re.IGNORECASE)
"""As Go reads a flag of its command line: one dash or two, with or without a value."""


def lacking(spec: JobSpec, node: NodeFacts) -> str:
    """Return what the job's isolation lacks here; nothing where it lacks nothing.

    gVisor shows GPUs to a job only through its proxy of NVIDIA's driver. Without it the job would wait for a wipe, start, and find none.
    """
    if spec.isolation != "gvisor":
        return ""
    arguments = node.engine.get("runsc", "").split()
    if "gvisor" not in node.isolation:
        return "this node's Docker Engine has no runtime runsc"
    if spec.network != "none" and "--network=none" in arguments:
        return "this node's runtime runsc gives no network (--network=none)"
    if spec.resources.gpus and not any(map(_NVPROXY.fullmatch, arguments)):
        return "this node's runtime runsc shows no GPU to a job (it runs without --nvproxy)"
    return ""
