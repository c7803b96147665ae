"""The node's posture, as evidence and policies want it: every check of the doctor, made now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attestation.evidence import PostureFact
from sandbox.node.doctor import run_checks
from sandbox.node.doctor.engine import CHECKS as ENGINE_CHECKS

if TYPE_CHECKING:
    from sandbox.node.engine import EngineFacts


def posture_facts(engine: EngineFacts | None = None) -> tuple[PostureFact, ...]:
    """Return every posture check of this machine; the engine's own only where its facts are given. Takes about 50 ms."""
    checks = run_checks(facts=engine)
    return tuple(
        PostureFact(id=check.id, seen=check.seen, wanted=check.wanted, result=check.result)
        for check in checks
        if engine is not None or check.id not in ENGINE_CHECKS
    )
