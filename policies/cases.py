"""Cases that an operator writes to prove a policy before it goes live: a job and a node, and what the policy must answer. Pure.

::

    apiVersion: sealrig/v1
    kind: PolicyCases
    policy: mine.yaml                 # beside this file; or profile:strict
    cases:
      - name: a foreign image is denied
        tenant: acme
        job: {image: "sha256:…"}      # the spec of a job; what is left out has the job format's defaults
        node: {level: 1, posture: {swap-off: pass}}     # left out: the answer is the one at submit
        expect: denied
        reasons: [image-allowed]      # exactly the rules that must deny
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from policies.engine import evaluate, rule_names
from policies.errors import PolicyError
from policies.loader import LoadedPolicy, validate
from policies.model import Decision, LaunchRequest, NodeFacts
from policies.strictyaml import load_yaml, nearest

CASES_MAX_BYTES = 256 * 1024
MAX_CASES = 500
ToRequest = Callable[[Mapping[str, Any], str], LaunchRequest]
"""Turns the spec of a job and a tenant into the request that policies see; given by the caller, who knows the job format."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Case(_Model):
    """One question and its right answer."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    tenant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = "tenant"
    job: dict[str, Any]
    node: dict[str, Any] | None = None
    expect: Literal["allowed", "denied"]
    reasons: Annotated[tuple[str, ...], Field(max_length=128)] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.expect == "denied") != bool(self.reasons):
            msg = "reasons: a case that expects 'denied' names the rules that must deny; one that expects 'allowed' names none"
            raise ValueError(msg)
        return self


class CaseFile(_Model):
    """A file of cases for one policy."""

    apiVersion: Literal["sealrig/v1"]  # noqa: N815  (the key in the file)
    kind: Literal["PolicyCases"]
    policy: Annotated[str, Field(min_length=1, max_length=255)]
    cases: Annotated[tuple[Case, ...], Field(min_length=1, max_length=MAX_CASES)]


@dataclass(frozen=True)
class CaseResult:
    """How one case went. ``problem`` says what differs; it is empty where nothing does."""

    name: str
    expect: str
    verdict: str
    reasons: tuple[str, ...]
    ok: bool
    problem: str


@dataclass(frozen=True)
class Coverage:
    """Whether the cases saw a rule both hold and deny."""

    rule: str
    held: bool
    denied: bool


def load_cases(raw: bytes) -> CaseFile:
    """Load a file of cases. Raises ``PolicyError`` as ``load_policy`` does."""
    return validate(CaseFile, load_yaml(raw, max_bytes=CASES_MAX_BYTES))


def run_cases(policy: LoadedPolicy, cases: Sequence[Case], to_request: ToRequest) -> tuple[list[CaseResult], list[Coverage]]:
    """Ask the policy every case; return the results and, for every rule, whether the cases saw it hold and deny.

    Raises ``PolicyError`` for a case that names an unknown rule or holds a job or node that is none.
    """
    known = rule_names(policy)
    results: list[CaseResult] = []
    held: set[str] = set()
    denied: set[str] = set()
    for case in cases:
        for rule in case.reasons:
            if rule not in known:
                raise PolicyError(f"case {case.name!r}: there is no rule {rule!r}", rule="policy-case", seen=rule,
                                  wanted="a rule of the policy", fix=nearest(rule, known))  # fmt: skip
        decision = evaluate(policy, to_request(case.job, case.tenant), _node(case))
        failing = {reason.rule for reason in decision.reasons}
        held |= set(decision.checked) - failing
        denied |= failing
        results.append(_result(case, decision))
    return results, [Coverage(rule, rule in held, rule in denied) for rule in known]


def _node(case: Case) -> NodeFacts | None:
    return None if case.node is None else validate(NodeFacts, {"node": "node-under-test"} | case.node)


def _result(case: Case, decision: Decision) -> CaseResult:
    verdict = "allowed" if decision.allowed else "denied"
    seen = sorted({reason.rule for reason in decision.reasons})
    missing, extra = sorted(set(case.reasons) - set(seen)), sorted(set(seen) - set(case.reasons))
    parts = [f"expected {case.expect}, got {verdict}"] if verdict != case.expect else []
    parts += [f"did not deny: {', '.join(missing)}"] if missing else []
    parts += [f"denied too: {', '.join(extra)}"] if extra else []
    return CaseResult(case.name, case.expect, verdict, tuple(seen), not parts, "; ".join(parts))
