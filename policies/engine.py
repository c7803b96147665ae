"""From policy, request and node facts to a decision with every reason. Pure: no I/O, no clock.

Every rule is asked, so that all reasons come at once. A rule that fails to evaluate denies. Rules that need node facts are
deferred while there are none; the decision that counts for releasing keys is the one made with facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from policies.errors import PolicyError
from policies.loader import LoadedPolicy
from policies.model import LEVELS, Decision, LaunchRequest, NodeFacts, Reason
from policies.rules import NODE_RULES, REQUEST_RULES


def evaluate(policy: LoadedPolicy, request: LaunchRequest, node: NodeFacts | None) -> Decision:
    """Decide. Never raises: an error is a reason to deny. Without ``node`` the rules about nodes stand in ``deferred``."""
    reasons: list[Reason] = []
    deferred: list[str] = []
    checked: list[str] = []
    spec = policy.policy.spec
    for name, rule in REQUEST_RULES.items():
        checked.append(name)
        reasons += _ask(name, lambda rule=rule: rule(spec, request))
    for name, node_rule in NODE_RULES.items():
        if node is None:
            deferred.append(name)
        else:
            checked.append(name)
            reasons += _ask(name, lambda rule=node_rule, node=node: rule(spec, request, node))
    for written in spec.rules:
        name = f"rules.{written.name}"
        expression = policy.expressions[written.name]
        if node is None and expression.needs_node:
            deferred.append(name)
            continue
        checked.append(name)
        reasons += _ask(
            name,
            lambda expression=expression, written=written, name=name: (
                []
                if expression.holds(_variables(request, node))
                else [Reason(name, "the rule is not met", f"{written.message} ({written.expression})"[:700],
                             written.fix or "change the job so that the rule holds, or ask the operator")]  # fmt: skip
            ),
        )
    return Decision(allowed=not reasons, reasons=tuple(reasons), deferred=tuple(deferred), checked=tuple(checked))


def _ask(name: str, rule: Callable[[], Iterable[Reason]]) -> list[Reason]:
    try:
        return list(rule())
    except PolicyError as error:
        return [Reason(name, error.message, str(error.details.get("wanted", "")), str(error.details.get("fix", "")))]
    except Exception as error:  # noqa: BLE001  (default deny: whatever went wrong, the answer is no)
        return [Reason(name, f"the rule failed: {type(error).__name__}", "a rule that evaluates", "report this policy and job to the operator")]


def _variables(request: LaunchRequest, node: NodeFacts | None) -> dict[str, object]:
    """Return what CEL sees; the keys are those of ``policies.expression.SHAPE``."""
    repository, _, digest = request.image.rpartition("@")
    variables: dict[str, object] = {
        "job": {
            "tenant": request.tenant,
            "name": request.name,
            "image": {"reference": request.image, "repository": repository, "digest": digest},
            "command": list(request.command),
            "env": dict(request.env),
            "inputs": [{"bundle": bundle, "access": access} for bundle, access in request.inputs],
            "output": {"maxSize": request.output_max_size},
            "resources": {
                "gpus": request.gpus,
                "gpuMemory": request.gpu_memory,
                "cpus": request.cpus,
                "memory": request.memory,
                "scratch": request.scratch,
                "shm": request.shm,
                "pids": request.pids,
            },
            "lease": {"seconds": request.lease_seconds},
            "egress": list(request.egress),
            "isolation": request.isolation,
            "attestation": {"minimum": LEVELS.index(request.attestation_minimum)},
        }
    }
    if node is not None:
        variables["node"] = {
            "id": node.node,
            "attestation": {"level": node.level},
            "posture": dict(node.posture),
            "gpus": [dict(gpu) for gpu in node.gpus],
            "isolation": list(node.isolation),
            "scratch": list(node.scratch),
            "engine": dict(node.engine),
        }
    return variables
