"""Who may say how far a node's evidence reaches: the operator's own trust file, and nobody else.

A node cannot assert its level, and neither can a customer: policies see the level that the operator's trust file gives to the verified
evidence, ``software`` where there is no such file or the evidence does not verify under it. What the customer accepts is another question,
answered by the customer's own trust file when keys are released.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from attestation.appraisal import Level
from attestation.errors import AttestationError, VerificationError
from attestation.signing import Envelope
from attestation.trust import Trust
from attestation.verify import Expected, verify_evidence
from sandbox.wire import Denial

MAX_REASONS = 8


@dataclass(frozen=True)
class Grade:
    """The level that policies see, and why it is no higher where the evidence did not verify."""

    level: Level
    reasons: tuple[Denial, ...] = ()


def grade(trust: Trust | None, envelope: Envelope, expected: Expected, *, at: datetime) -> Grade:
    """Return how far the evidence reaches under the operator's trust file. Never raises for evidence that does not verify."""
    if trust is None:
        return Grade(Level.SOFTWARE)
    # The level is asked for, not demanded; what became of earlier leases is settled by quarantine here and by each customer's agent.
    asked = trust.model_copy(update={"spec": trust.spec.model_copy(update={"level": Level.SOFTWARE.label, "interlock": "claimed"})})
    try:
        return Grade(verify_evidence(envelope, trust=asked, expected=expected, at=at).level)
    except VerificationError as error:
        failed = [step for step in error.steps if not step.ok][:MAX_REASONS]
        fix = str(error.details.get("fix", ""))
        return Grade(
            Level.SOFTWARE,
            tuple(
                Denial(rule=f"evidence-{step.step}"[:100], seen=step.seen[:500], wanted=step.wanted[:500], fix=(step.fix or fix)[:500])
                for step in failed
            ),
        )
    except AttestationError as error:
        return Grade(Level.SOFTWARE, (Denial(rule="evidence", seen=error.message[:500], wanted="evidence that verifies", fix=""),))
