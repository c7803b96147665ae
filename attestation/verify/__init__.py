"""Decide on a node's evidence, offline: numbered steps, each with what was seen and what was wanted.

Order of ``verify_evidence`` (the same names stand in the result):

1. ``signature``  one of the trusted nodes' keys signed these exact bytes; only then are they parsed
2. ``format``     they are one evidence document in its one spelling
3. ``node``       the key is the one listed for the node that the evidence names, and the one it names itself
4. ``lease``, ``nonce``, ``job``, ``image``, ``policy``, ``plan``  it answers this very question
5. ``lease-key``, ``runner``, ``freshness``, ``posture``, ``gpu-count``  what it says of the node is acceptable
6. ``interlock-…``  the leases before this one were wiped
7. hardware evidence, where there is any: each carries ``Evidence.binding()``
8. ``level``      what all this amounts to is at least what the customer wants

Verification raises with all steps; it never returns a failed result.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from attestation.appraisal import ISOLATED_RUNTIME, RECOGNIZED, Appraisal, Submod, appraise, level_of
from attestation.canonical import sha256_digest
from attestation.document import time_text
from attestation.errors import AttestationError
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.signing import Envelope, b64decode
from attestation.steps import Steps
from attestation.trust import Trust
from attestation.verify.cache import NOTHING, Cached
from attestation.verify.interlock import NodeHistory, check_interlock
from attestation.verify.tee import check_tee

__all__ = ["Expected", "NodeHistory", "verify_evidence"]

CLOCK_SKEW = timedelta(seconds=60)
"""How far a node's clock may run ahead of the verifier's."""
MIN_LEASE_KEY_BYTES = 32


@dataclass(frozen=True)
class Expected:
    """What the evidence must answer to. ``plan`` is the exact bytes of the launch plan that was shown to the customer.

    ``history`` is what the audit log says of the node (``attestation.history``); None where it was not read, which the trust
    file accepts with ``interlock: claimed`` only.
    """

    lease: str
    nonce: str
    job_digest: str
    policy_digest: str
    image: str
    plan: bytes
    history: NodeHistory | None


def verify_evidence(envelope: Envelope, *, trust: Trust, expected: Expected, at: datetime, cached: Cached = NOTHING) -> Appraisal:
    """Return the appraisal of a node's signed evidence. Raises ``VerificationError`` with all steps.

    ``cached`` is collateral of one's own (``attestation.verify.cache``), beside what came with the evidence.
    """
    steps = Steps("the evidence")
    evidence = _authenticate(envelope, trust, steps)
    _check_answers(evidence, expected, steps)
    _check_node(evidence, trust, at, steps)
    check_interlock(evidence, expected.history, required=trust.spec.interlock == "log", steps=steps)
    submods = check_tee(evidence, _software(evidence), trust, at, steps, cached=cached)
    level = level_of(submods)
    steps.check(
        "level",
        ok=level >= trust.level,
        seen=level.label,
        wanted=f"{trust.spec.level} or higher",
        fix="lower 'level' in the trust file, or choose a node with more evidence",
    )
    steps.finish()
    return appraise(submods, nonce=bytes.fromhex(evidence.nonce), policy_id=trust.digest, steps=steps.all, at=at)


def _authenticate(envelope: Envelope, trust: Trust, steps: Steps) -> Evidence:
    """Take steps 1 to 3. Each needs the one before."""
    try:
        payload = envelope.verify(EVIDENCE_PAYLOAD_TYPE, trust.node_keys)
    except AttestationError as error:
        steps.fail("signature", error)
    steps.check("signature", ok=True, seen="signed by a listed node", wanted="a signature by a listed node")
    try:
        evidence = Evidence.from_payload(payload)
    except AttestationError as error:
        steps.fail("format", error)
    steps.check("format", ok=True, seen=f"evidence v{evidence.v}", wanted="evidence v1")
    listed = trust.node_key(evidence.node)
    try:
        envelope.verify(EVIDENCE_PAYLOAD_TYPE, [] if listed is None else [listed])
        same = listed is not None and listed.text == evidence.node_key
    except AttestationError:
        same = False
    steps.need(
        "node",
        ok=same,
        seen=f"{evidence.node} with {evidence.node_key}",
        wanted=f"{evidence.node} with the key listed for it",
        fix="add the node and its key to 'nodes' in the trust file, if you accept it",
    )
    return evidence


def _check_answers(evidence: Evidence, expected: Expected, steps: Steps) -> None:
    """Step 4: the evidence is for this lease, this question, and what the customer signed."""
    pairs = [
        ("lease", evidence.lease, expected.lease),
        ("nonce", evidence.nonce, expected.nonce),
        ("job", evidence.job_digest, expected.job_digest),
        ("image", evidence.image, expected.image),
        ("policy", evidence.policy_digest, expected.policy_digest),
        ("plan", evidence.plan_digest, sha256_digest(expected.plan)),
    ]
    for name, seen, wanted in pairs:
        steps.check(name, ok=seen == wanted, seen=seen, wanted=wanted, fix=f"the node must make evidence for the right {name}")


def _check_node(evidence: Evidence, trust: Trust, at: datetime, steps: Steps) -> None:
    """Step 5: what the node says of itself."""
    spec = trust.spec
    key = b64decode(evidence.lease_public_key)
    steps.check(
        "lease-key",
        ok=len(key) >= MIN_LEASE_KEY_BYTES,
        seen=f"{len(key)} bytes, {sha256_digest(key)}",
        wanted=f"≥ {MIN_LEASE_KEY_BYTES} bytes",
        fix="have the node make a lease key of its own for this lease",
    )
    runners = spec.accepted_runners
    steps.check(
        "runner",
        ok=runners is None or evidence.runner_digest in runners,
        seen=f"{evidence.runner_version} {evidence.runner_digest}",
        wanted="any (the trust file lists none)" if runners is None else f"one of {len(runners)} listed runners",
        fix="accept its signed release ('sealrig trust runners add'), or add its digest to 'runners' in the trust file",
    )
    fresh = at - spec.freshness <= evidence.made_at <= at + CLOCK_SKEW
    steps.check(
        "freshness",
        ok=fresh,
        seen=time_text(evidence.made_at),
        wanted=f"{time_text(at - spec.freshness)} to {time_text(at + CLOCK_SKEW)}",
        fix="ask for new evidence; check both clocks",
    )
    results = {fact.id: fact.result for fact in evidence.posture}
    missing = [f"{name}: {results.get(name, 'not reported')}" for name in spec.posture if results.get(name) != "pass"]
    passed = sum(result == "pass" for result in results.values())
    steps.check(
        "posture",
        ok=not missing and len(results) == len(evidence.posture),
        seen="; ".join(missing[:8]) or f"{passed} of {len(results)} pass",
        wanted=f"pass: {', '.join(spec.posture)}" if spec.posture else "a report, each check once",
        fix="correct the node's settings ('sealrig node doctor' says how)",
    )
    counts, gpus = evidence.device_counts, {gpu.uuid for gpu in evidence.gpus}
    cards = {gpu.parent or gpu.uuid for gpu in evidence.gpus}
    same = counts.pci == counts.driver == len(cards) and len(gpus) == len(evidence.gpus)
    steps.check(
        "gpu-count",
        ok=same,
        seen=f"evidence {len(cards)}, PCI {counts.pci}, driver {counts.driver}",
        wanted="the same number",
        fix="let the driver show every GPU that is on the bus, or take the others out",
    )


def _software(evidence: Evidence) -> Submod:
    """Return the node's submod without hardware: its identity is known, its memory is open to its own root, the rest is its word."""
    claims = {"instance-identity": RECOGNIZED, "runtime-opaque": ISOLATED_RUNTIME}
    failed = [fact.id for fact in evidence.posture if fact.result != "pass"]
    facts = {
        "node": evidence.node,
        "runner": evidence.runner_digest,
        "runner_version": evidence.runner_version,
        "posture_not_passed": failed,
    }
    return Submod(claims, facts)
