"""A change of a tenant's policy: what was before, what holds from then on, and the difference, as the audit log's entry names it.

The entry ``policy.applied`` says who and when; its evidence is the digest of this document. A random salt is in it, because policies are
few and public: without one, whoever sees the log could guess which policy a tenant has.
The texts themselves are kept once each, by digest. With the three of them anybody can check a change without trusting who keeps them.
"""

from __future__ import annotations

import difflib
import secrets
from typing import Literal

from attestation.canonical import sha256_digest
from attestation.document import Document, Name, Nonce, Sha256
from attestation.log.leaf import Leaf
from attestation.steps import Steps

POLICY_CHANGE_MEDIA = "application/vnd.sealrig.policy-change+json"
POLICY_APPLIED = "policy.applied"
NOTHING = "/dev/null"
MAX_COMPARED_LINES = 2000
"""Above this the difference takes every line out and puts every line in: the worst texts take 1.4 s at this many, and
five times that at twice as many."""


class PolicyChange(Document):
    """One change. ``before`` is None for the first policy of a tenant; ``diff`` is in unified format, from digest to digest.

    ``salt`` is 32 random bytes in hex.
    """

    v: Literal[1] = 1
    salt: Nonce
    tenant_ref: Name
    before: Sha256 | None
    after: Sha256
    diff: str


def describe_change(tenant_ref: str, before: bytes | None, after: bytes) -> PolicyChange:
    """Return the document of a change between two policies, given in their exact bytes."""
    old = None if before is None else sha256_digest(before)
    diff = unified_diff(before or b"", after, old or NOTHING, sha256_digest(after))
    return PolicyChange(salt=secrets.token_hex(32), tenant_ref=tenant_ref, before=old, after=sha256_digest(after), diff=diff)


def unified_diff(before: bytes, after: bytes, before_name: str, after_name: str) -> str:
    """Return the difference of two texts in unified format, empty where there is none."""
    old, new = (raw.decode("utf-8", "replace").splitlines() for raw in (before, after))
    if max(len(old), len(new)) > MAX_COMPARED_LINES and old != new:
        lines = [f"--- {before_name}", f"+++ {after_name}", *(f"-{line}" for line in old), *(f"+{line}" for line in new)]
    else:
        lines = list(difflib.unified_diff(old, new, before_name, after_name, lineterm=""))
    return "\n".join(lines)


def verify_change(document: bytes, leaf: Leaf, before: bytes | None, after: bytes) -> PolicyChange:
    """Return the change once entry, document and texts belong together.

    1. the entry is a change of policy, and the document is the one that it names as evidence
    2. the document is of the tenant that the entry names
    3. the texts are those that the document names
    4. the difference is theirs

    That the entry stands in the log is for the caller to prove. Raises ``VerificationError``, ``FormatError`` or ``LimitError``.
    """
    steps = Steps("the change of policy")
    steps.need("entry", ok=leaf.type == POLICY_APPLIED, seen=leaf.type, wanted=POLICY_APPLIED)  # 1
    evidence = leaf.evidence.digest if leaf.evidence is not None else "none"
    steps.need("evidence", ok=sha256_digest(document) == evidence, seen=sha256_digest(document), wanted=evidence)
    change = PolicyChange.from_payload(document)
    steps.need("tenant", ok=change.tenant_ref == leaf.tenant_ref, seen=change.tenant_ref, wanted=leaf.tenant_ref)  # 2
    old = None if before is None else sha256_digest(before)
    steps.need("before", ok=old == change.before, seen=old, wanted=change.before)  # 3
    steps.need("after", ok=sha256_digest(after) == change.after, seen=sha256_digest(after), wanted=change.after)
    whole = describe_change(change.tenant_ref, before, after).diff
    steps.need("diff", ok=whole == change.diff, seen=f"{len(change.diff)} characters", wanted="the difference of the two texts")  # 4
    return change
