"""From policy, request and node facts to a decision with every reason. Pure: no I/O, no clock.

Every rule is asked, so that all reasons come at once. A rule that fails to evaluate denies. Rules that need node facts are
deferred while there are none; the decision that counts for releasing keys is the one made with facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from policies.errors import PolicyError
from policies.expression import Expression
from policies.loader import LoadedPolicy
from policies.model import LEVELS, Decision, LaunchRequest, NodeFacts, Reason, Rule
from policies.rules import NODE_RULES, REQUEST_RULES

WRITTEN_PREFIX = "rules."
"""Stands before the names of the rules that operators write, so that they cannot be taken for built-in ones."""
_Question = Callable[[], Iterable[Reason]]


def evaluate(policy: LoadedPolicy, request: LaunchRequest, node: NodeFacts | None) -> Decision:
    """Decide. Never raises: an error is a reason to deny. Without ``node`` the rules about nodes stand in ``deferred``."""
    reasons: list[Reason] = []
    deferred: list[str] = []
    checked: list[str] = []
    for name, rule in _rules(policy, request, node):
        if rule is None:
            deferred.append(name)
        else:
            checked.append(name)
            reasons += _ask(name, rule)
    return Decision(allowed=not reasons, reasons=tuple(reasons), deferred=tuple(deferred), checked=tuple(checked))


def rule_names(policy: LoadedPolicy) -> tuple[str, ...]:
    """Return the name of every rule that a decision under this policy asks, in order."""
    return (*REQUEST_RULES, *NODE_RULES, *(f"{WRITTEN_PREFIX}{rule.name}" for rule in policy.policy.spec.rules))


def _rules(policy: LoadedPolicy, request: LaunchRequest, node: NodeFacts | None) -> Iterator[tuple[str, _Question | None]]:
    """Yield each rule's name and the question to ask; None where the answer needs node facts that are not there."""
    spec = policy.policy.spec
    for name, rule in REQUEST_RULES.items():
        yield name, partial(rule, spec, request)
    for name, node_rule in NODE_RULES.items():
        yield name, None if node is None else partial(node_rule, spec, request, node)
    for written in spec.rules:
        expression = policy.expressions[written.name]
        question = partial(_written, written, expression, _variables(request, node))
        yield f"{WRITTEN_PREFIX}{written.name}", None if node is None and expression.needs_node else question


def _written(rule: Rule, expression: Expression, variables: dict[str, object]) -> list[Reason]:
    if expression.holds(variables):
        return []
    fix = rule.fix or "change the job so that the rule holds, or ask the operator"
    return [Reason(f"{WRITTEN_PREFIX}{rule.name}", "the rule is not met", f"{rule.message} ({rule.expression})"[:700], fix)]


def _ask(name: str, question: _Question) -> list[Reason]:
    try:
        return list(question())
    except PolicyError as error:
        return [Reason(name, error.message, str(error.details.get("wanted", "")), str(error.details.get("fix", "")))]
    except Exception as error:  # noqa: BLE001  (default deny: whatever went wrong, the answer is no)
        seen = f"the rule failed: {type(error).__name__}"
        return [Reason(name, seen, "a rule that evaluates", "report this policy and job to the operator")]


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
