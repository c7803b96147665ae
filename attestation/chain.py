"""What ties the documents of a lease to each other and to the entries of the audit log.

``check_documents``: every document names the same lease and the digests of those before it.
``check_story``: the log's entries tell one possible life of a lease, in order, and each names the document that justified it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from attestation.canonical import sha256_digest
from attestation.documents import LeaseDocuments
from attestation.log.leaf import Leaf
from attestation.signing import b64decode
from attestation.steps import Steps

ONWARD: dict[str, frozenset[str]] = {
    "": frozenset({"submitted"}),
    "submitted": frozenset({"admitted", "denied", "cancelled", "expired"}),
    "admitted": frozenset({"placed", "denied", "cancelled", "expired"}),
    "placed": frozenset({"attested", "wiping"}),
    "attested": frozenset({"unlocked", "wiping"}),
    "unlocked": frozenset({"running", "wiping"}),
    "running": frozenset({"collecting", "wiping"}),
    "collecting": frozenset({"wiping"}),
    "wiping": frozenset({"closed", "quarantined", "denied", "cancelled", "expired"}),
}
"""The states that may follow each state; one that is no key here is an end."""

INCIDENT_TYPE = "lease.incident"
"""The type of an entry that tells of an incident; it moves a lease to no other state."""

POLICY_FIELD = "policy"
"""The field of the commitment that stands for a policy's digest in an entry: who knows policies could guess the digest itself."""

JUSTIFIED_BY = {"submitted": "job", "admitted": "policy", "placed": "job", "attested": "evidence", "unlocked": "grant"}
"""The document whose digest the entry of a state must carry, or commit to."""


def check_documents(found: LeaseDocuments, lease: str, steps: Steps) -> None:
    """Record a step for each tie between documents."""
    _check_leases(found, lease, steps)
    digests = found.digests
    if found.job is not None and "policy" in digests:
        steps.check(
            "policy-digest", ok=digests["policy"] == found.job.policy_digest, seen=digests["policy"], wanted=found.job.policy_digest
        )
    if found.evidence is not None:
        _check_evidence(found, steps)
    if found.grant is not None:
        _check_grant(found, steps)
    # A node may have made evidence that never reached the server: the lease was cancelled, or the node was killed, in between. Its
    # certificate then lists documents that no receipt can hold. That the log shows no ``attested`` either is checked in ``documents``.
    unreported = frozenset({"evidence", "plan"}) if not {"evidence", "plan"} & digests.keys() else frozenset()
    if found.run is not None and not unreported:
        seen, wanted = f"{found.run.plan_digest} {found.run.image}", f"{digests.get('plan')} {found.job.image if found.job else None}"
        steps.check("run-plan", ok=seen == wanted, seen=seen, wanted=wanted)
    if found.certificate is not None:
        listed = found.certificate.documents
        wanted_set = {kind: digest for kind, digest in digests.items() if kind != "certificate"}
        different = sorted(
            kind for kind in set(listed) | set(wanted_set) if listed.get(kind) != wanted_set.get(kind) and kind not in unreported
        )
        steps.check(
            "certificate-documents",
            ok=not different,
            seen=f"different: {', '.join(different)}" if different else f"{len(listed)} documents",
            wanted="the documents of this receipt, all of them and no other"
            + (", or evidence that was never reported" if unreported else ""),
        )
    if found.certificate is not None and found.wipe is not None:
        wanted_result = "sanitized" if found.wipe.proven else "not-proven"
        same = found.certificate.predicate.result == wanted_result and len(found.certificate.predicate.steps) == len(found.wipe.steps)
        steps.check("certificate-result", ok=same, seen=found.certificate.predicate.result, wanted=wanted_result)


def _check_leases(found: LeaseDocuments, lease: str, steps: Steps) -> None:
    named = {
        "job": found.job and found.job.lease,
        "evidence": found.evidence and found.evidence.lease,
        "grant": found.grant and found.grant.lease,
        "run": found.run and found.run.lease,
        "wipe": found.wipe and found.wipe.lease,
        "certificate": found.certificate and found.certificate.predicate.lease,
    }
    for kind, seen in named.items():
        if seen is not None:
            steps.check(f"{kind}-lease", ok=seen == lease, seen=seen, wanted=lease)
    parts = (found.evidence, found.run, found.wipe, found.certificate.predicate if found.certificate is not None else None)
    nodes = {part.node for part in parts if part is not None}
    if nodes:
        steps.check("one-node", ok=len(nodes) == 1, seen=", ".join(sorted(nodes)), wanted="one node in all documents")


def _check_evidence(found: LeaseDocuments, steps: Steps) -> None:
    evidence, digests = found.evidence, found.digests
    if evidence is None:
        return
    ties = [
        ("evidence-job", evidence.job_digest, digests.get("job")),
        ("evidence-policy", evidence.policy_digest, digests.get("policy")),
        ("evidence-plan", evidence.plan_digest, digests.get("plan")),
        ("evidence-image", evidence.image, found.job.image if found.job is not None else None),
    ]
    for step, seen, wanted in ties:
        steps.check(
            step, ok=seen == wanted, seen=seen, wanted=wanted if wanted is not None else "a document that is not here or not proven"
        )


def _check_grant(found: LeaseDocuments, steps: Steps) -> None:
    grant = found.grant
    if grant is None:
        return
    wanted = found.digests.get("evidence")
    steps.check("grant-evidence", ok=grant.evidence_digest == wanted, seen=grant.evidence_digest, wanted=wanted)
    key = sha256_digest(b64decode(found.evidence.lease_public_key)) if found.evidence is not None else None
    steps.check("grant-lease-key", ok=grant.lease_public_key_digest == key, seen=grant.lease_public_key_digest, wanted=key)
    ordered = grant.issued_at < grant.expires_at
    steps.check("grant-time", ok=ordered, seen=f"{grant.issued_at} to {grant.expires_at}", wanted="issued before it expires")


@dataclass(frozen=True)
class ProvenEntry:
    """An entry that is proven to stand in the log, and the values that it is proven to have committed to, by field."""

    index: int
    leaf: Leaf
    opened: Mapping[str, str]

    def names(self, kind: str) -> str:
        """Return the digest that the entry gives for a document of this kind: committed to for a policy, in the open otherwise."""
        if kind == "policy":
            return self.opened.get(POLICY_FIELD, "no opened commitment")
        return self.leaf.evidence.digest if self.leaf.evidence is not None else "no document"


def check_story(entries: Sequence[ProvenEntry], found: LeaseDocuments, lease: str, steps: Steps) -> None:
    """Record the steps that compare the log's entries with the documents."""
    indexes = [entry.index for entry in entries]
    rising = all(before < after for before, after in pairwise(indexes))
    steps.check("log-order", ok=rising and bool(indexes), seen=", ".join(map(str, indexes)), wanted="entries in the order of the log")
    foreign = sorted({entry.leaf.resource_ref for entry in entries} - {lease})
    steps.check("log-lease", ok=not foreign, seen=", ".join(foreign) or lease, wanted=lease)
    incidents = sum(entry.leaf.type == INCIDENT_TYPE for entry in entries)
    entries = [entry for entry in entries if entry.leaf.type != INCIDENT_TYPE]
    states = [entry.leaf.type.removeprefix("lease.") for entry in entries]
    wrong = [
        f"{before or 'the start'} → {after}" for before, after in pairwise(["", *states]) if after not in ONWARD.get(before, frozenset())
    ]
    last = states[-1] if states else ""
    ended = bool(states) and last not in ONWARD
    steps.check(
        "log-states",
        ok=not wrong and ended,
        seen="; ".join(wrong) or " → ".join(states) or "none",
        wanted="one path from submitted to an end",
    )
    digests = found.digests
    for state, kind in _justifications(states, found):
        seen = entries[states.index(state)].names(kind)
        steps.check(f"log-{state}", ok=seen == digests.get(kind), seen=seen, wanted=f"{kind} {digests.get(kind, 'that is not here')}")
    _check_presence(states, found, steps)
    counted = found.run.incidents if found.run is not None else 0
    steps.check("log-incidents", ok=incidents >= counted, seen=f"{incidents} incidents", wanted=f"≥ {counted}, as the run record counts")


def _justifications(states: Sequence[str], found: LeaseDocuments) -> list[tuple[str, str]]:
    """Return which document each state's entry must name."""
    ties = [(state, kind) for state, kind in JUSTIFIED_BY.items() if state in states]
    if "wiping" in states:
        if "run" in found.digests:
            ties.append(("wiping", "run"))
        ties.append((states[-1], "certificate"))
    elif states and states[-1] == "denied":
        ties.append(("denied", "policy"))
    return ties


def _check_presence(states: Sequence[str], found: LeaseDocuments, steps: Steps) -> None:
    """Documents and entries imply each other, so that neither can be left out."""
    wanted = {"job", "policy"}
    for state, kinds in (("attested", {"evidence", "plan"}), ("unlocked", {"grant"}), ("wiping", {"wipe", "certificate"})):
        if state in states:
            wanted |= kinds
    optional = {"run"} if "wiping" in states else set()
    present = set(found.digests)
    missing, surplus = sorted(wanted - present), sorted(present - wanted - optional)
    steps.check(
        "documents",
        ok=not missing and not surplus,
        seen=f"missing: {', '.join(missing) or 'none'}; surplus: {', '.join(surplus) or 'none'}",
        wanted=", ".join(sorted(wanted)),
    )
    run = found.run
    if run is not None:
        # A node that crashed in mid-run may say less than the log (no start, no result), never more.
        told = [state for state, fact in (("running", run.started_at), ("collecting", run.result)) if fact is not None]
        steps.check(
            "log-run", ok=set(told) <= set(states), seen=" → ".join(states), wanted=", ".join(told) or "no more than the run record tells"
        )
    if found.wipe is not None and states:
        steps.check(
            "log-end",
            ok=(states[-1] == "quarantined") is not found.wipe.proven,
            seen=states[-1],
            wanted="an end without quarantine" if found.wipe.proven else "quarantined",
        )
