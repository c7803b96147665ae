"""What the policy says to a job, with every reason. The policy decides; this only asks."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from policies.engine import evaluate
from policies.loader import load_policy
from policies.model import NodeFacts
from sandbox.admission import launch_request
from sandbox.job import JobStatement
from sandbox.wire import Denial

_loaded = functools.lru_cache(maxsize=64)(load_policy)
"""Policies by their exact bytes: compiling their rules takes longer than asking them."""


@dataclass(frozen=True)
class Admission:
    """The policy's answer."""

    allowed: bool
    reasons: tuple[Denial, ...]


def admit(policy: bytes, statement: JobStatement, tenant: str, node: NodeFacts | None) -> Admission:
    """Ask a policy (exact bytes) about a job of ``tenant``; with ``node`` also the rules that need facts of the node."""
    decision = evaluate(_loaded(policy), launch_request(statement, tenant), node)
    reasons = tuple(Denial(rule=each.rule, seen=each.seen, wanted=each.wanted, fix=each.fix) for each in decision.reasons)
    return Admission(decision.allowed, reasons)
