"""Whether a node's launch plan is the job that the customer signed, and no more than that. Pure.

The plan's digest is bound into the evidence, so what is checked here is what the node has committed itself to launch. A field that
is missing fails: unknown is never pass.
"""

from __future__ import annotations

import json
from typing import Any

from attestation.canonical import parse_json
from attestation.errors import AttestationError
from attestation.steps import Steps
from sandbox.job import Egress, JobStatement

_FIX = "do not use this node until its operator explains the plan ('sealrig lease show' names the node)"
_ALWAYS: tuple[tuple[str, object], ...] = (
    ("read_only", True),
    ("no_new_privileges", True),
    ("cap_drop", ["ALL"]),
    ("log_driver", "none"),
    ("ipc", "private"),
    ("pid", ""),
    ("core", 0),
)
"""What every plan says, whatever the job is."""


def check_plan(raw: bytes, statement: JobStatement, steps: Steps) -> None:
    """Record one step for each thing in the plan that the job decides, and for what every plan must say."""
    try:
        tree = parse_json(raw)
    except AttestationError as error:
        steps.note("plan-format", error)
        return
    plan = tree.get("plan") if isinstance(tree, dict) and tree.get("v") == 1 else None
    if not isinstance(plan, dict):
        steps.check("plan-format", ok=False, seen="another document", wanted="a launch plan v1", fix=_FIX)
        return
    spec = statement.job.spec
    egress = sorted(spec.network.egress) if isinstance(spec.network, Egress) else []
    _same(steps, "plan-lease", plan.get("lease"), statement.lease)
    _same(steps, "plan-image", plan.get("image_reference"), spec.image)
    _same(steps, "plan-command", plan.get("command"), list(spec.command))
    _same(steps, "plan-env", *_environment(plan.get("env"), spec.env))
    _same(steps, "plan-network", (plan.get("network"), sorted(_texts(plan.get("egress")))), ("egress" if egress else "none", egress))
    _same(steps, "plan-isolation", plan.get("runtime"), "runsc" if spec.isolation == "gvisor" else "runc")
    _same(steps, "plan-time", plan.get("lease_seconds"), spec.lease.duration)
    _same(steps, "plan-paths", *_paths(plan.get("binds"), statement))
    _same(steps, "plan-hardening", {name: plan.get(name) for name, _ in _ALWAYS}, dict(_ALWAYS))


def _same(steps: Steps, name: str, seen: object, wanted: object) -> None:
    # Compared as JSON texts: in Python 1 equals True, in a plan it does not.
    steps.check(name, ok=_json(seen) == _json(wanted), seen=str(seen)[:500], wanted=str(wanted)[:500], fix=_FIX)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _environment(seen: object, wanted: dict[str, str]) -> tuple[object, object]:
    """Return the job's own variables as the plan has them, and as the job wants them; the image's stand beside them."""
    entries = dict(entry.partition("=")[::2] for entry in _texts(seen))
    return {name: entries.get(name) for name in sorted(wanted)}, dict(sorted(wanted.items()))


def _paths(seen: object, statement: JobStatement) -> tuple[object, object]:
    """Return (path, read-only) of every folder of the host inside the container, seen and wanted: no other folder may be there."""
    spec = statement.job.spec
    inputs: list[Any] = [[item.path, True] for item in spec.inputs]
    wanted = [*inputs, [spec.output.path, False], ["/tmp", False]]  # noqa: S108  (inside the container)
    binds = seen if isinstance(seen, list) else []
    found = [[str(bind.get("target")), bind.get("read_only")] for bind in binds if isinstance(bind, dict)]
    return sorted(found, key=_json), sorted(wanted, key=_json)


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
