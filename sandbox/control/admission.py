"""What the policy says to a job, with every reason. The policy decides; this only asks."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from attestation.appraisal import Level
from attestation.canonical import parse_json
from attestation.evidence import Evidence
from attestation.signing import Envelope
from policies.engine import evaluate
from policies.loader import load_policy
from policies.model import NodeFacts
from sandbox.admission import launch_request
from sandbox.control.database.models import LeaseRow, NodeRow
from sandbox.control.fitness import UNKNOWN, grades
from sandbox.control.transitions import document
from sandbox.errors import StateError
from sandbox.job import JobStatement, parse_statement
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


def node_facts(node: NodeRow, evidence: Evidence, level: Level, grades: Mapping[str, str]) -> NodeFacts:
    """Return what policies are told of a node: its level as graded by the server, the rest as the node says.

    ``grades`` has what its GPUs are fit for, by uuid.
    """
    scratch = node.inventory.get("scratch", ())
    engine = node.inventory.get("engine", {})
    return NodeFacts(
        node=node.id,
        level=int(level),
        posture={fact.id: fact.result for fact in evidence.posture},
        gpus=tuple({**gpu.model_dump(), "grade": grades.get(gpu.uuid, UNKNOWN)} for gpu in evidence.gpus),
        isolation=tuple(node.capacity.get("isolation", ("container",))),
        scratch=tuple(str(kind) for kind in scratch) if isinstance(scratch, list) else (),
        engine={str(key): str(value) for key, value in engine.items()} if isinstance(engine, dict) else {},
    )


def admit_again(session: Session, lease: LeaseRow, evidence: Evidence, level: Level) -> Admission:
    """Ask the lease's policy once more, with the facts of the node that it was placed on. Raises ``StateError``."""
    policy, job = document(session, lease.id, "policy"), document(session, lease.id, "job")
    node = session.get(NodeRow, lease.node)
    if policy is None or job is None or node is None:
        raise StateError(
            "the lease is not complete",
            rule="lease-documents",
            seen="a document is missing",
            wanted="job, policy and node",
            fix="report this to the operator",
        )
    payload = Envelope.from_bytes(job).payload
    parse_json(payload)
    return admit(policy, parse_statement(payload), lease.tenant, node_facts(node, evidence, level, grades(session, node)))
