"""The documents of one lease, opened: each signature proven with the key that must have made it, then parsed, then compared.

A customer's key is the one inside the signed job (or, where the trust file lists customers, one of those); a node's key is the one that
the trust file lists for it. Failures are recorded as steps and the document stays closed, so that nothing unproven is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from attestation.canonical import canonical_json, parse_json, sha256_digest
from attestation.certificate import Certificate, verify_certificate
from attestation.errors import AttestationError, FormatError, SignatureError
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.grant import GRANT_PAYLOAD_TYPE, Grant
from attestation.run import RUN_PAYLOAD_TYPE, RunRecord
from attestation.shape import shape
from attestation.signing import Envelope, VerifyKey, b64decode
from attestation.steps import Steps
from attestation.trust import Trust
from attestation.wipe import WIPE_PAYLOAD_TYPE, WipeReport

JOB_PAYLOAD_TYPE = "application/vnd.sealrig.job+json"
IDENTITY_PREFIX = "sealrig1:"
IDENTITY_KEM_BYTES = 1216
"""A public identity is an ML-KEM-768 key (1184 bytes), an X25519 key (32) and an Ed25519 key (32)."""

T = TypeVar("T")


@dataclass(frozen=True)
class JobView:
    """What a receipt needs of a signed job; the job itself belongs to the sandbox package."""

    lease: str
    policy_digest: str
    image: str
    customer: VerifyKey


@dataclass
class LeaseDocuments:
    """What could be opened; None means absent or not proven (a step says which)."""

    raw: Mapping[str, bytes]
    job: JobView | None = None
    evidence: Evidence | None = None
    grant: Grant | None = None
    run: RunRecord | None = None
    wipe: WipeReport | None = None
    certificate: Certificate | None = None
    digests: dict[str, str] = field(default_factory=dict)


def identity_key(text: object) -> VerifyKey:
    """Return the signature key inside a public identity (``sealrig1:BASE64``). Raises ``FormatError``."""
    if not isinstance(text, str) or not text.startswith(IDENTITY_PREFIX):
        raise FormatError("not a public identity", seen=shape(text), wanted=f"{IDENTITY_PREFIX}BASE64")
    raw = b64decode(text.removeprefix(IDENTITY_PREFIX))
    return VerifyKey(raw[IDENTITY_KEM_BYTES:])


def open_documents(raw: Mapping[str, bytes], trust: Trust, steps: Steps) -> LeaseDocuments:
    """Open what is there, in the order of the lease; a step a document."""
    found = LeaseDocuments(raw, digests={kind: sha256_digest(data) for kind, data in raw.items()})
    customers: list[VerifyKey] = []
    job = raw.get("job")
    if job is not None:
        found.job = _open("job-signature", lambda: _open_job(job, trust), steps)
        customers = [found.job.customer] if found.job is not None else []
    plan = raw.get("plan")
    if plan is not None:
        _open("plan-format", lambda: _canonical(plan), steps)
    signed: list[tuple[str, Callable[[Envelope], None]]] = [
        ("evidence", lambda envelope: _set_evidence(found, envelope, trust)),
        ("grant", lambda envelope: setattr(found, "grant", Grant.from_payload(envelope.verify(GRANT_PAYLOAD_TYPE, customers)))),
        ("run", lambda envelope: _set_run(found, envelope, trust)),
        ("wipe", lambda envelope: _set_wipe(found, envelope, trust)),
        ("certificate", lambda envelope: _set_certificate(found, envelope, trust)),
    ]
    for kind, read in signed:
        if (data := raw.get(kind)) is not None:
            _open(f"{kind}-signature", lambda data=data, read=read: read(_envelope(data)), steps)  # type: ignore[misc]  # defaults bind the loop's values
    return found


def _open(step: str, read: Callable[[], T], steps: Steps) -> T | None:
    try:
        value = read()
    except AttestationError as error:
        steps.note(step, error)
        return None
    steps.check(step, ok=True, seen="proven, in its one spelling", wanted="the bytes that were signed")
    return value


def _envelope(raw: bytes) -> Envelope:
    envelope = Envelope.from_bytes(raw)
    if envelope.to_bytes() != raw:
        # The log holds the digest of these bytes; another spelling of the same envelope would have another digest.
        raise FormatError("the envelope is not in canonical form", seen="another spelling", wanted="RFC 8785 JSON")
    return envelope


def _canonical(raw: bytes) -> None:
    if canonical_json(parse_json(raw)) != raw:
        raise FormatError("not in canonical form", seen="another spelling", wanted="RFC 8785 JSON")


def _open_job(raw: bytes, trust: Trust) -> JobView:
    envelope = _envelope(raw)
    claimed = identity_key(_get(parse_json(envelope.payload), "customer"))
    if trust.spec.customers is not None and claimed.text not in trust.spec.customers:
        raise SignatureError(
            "the job is by a customer that the trust file does not list", seen=claimed.text, wanted=", ".join(trust.spec.customers)[:400]
        )
    tree = parse_json(envelope.verify(JOB_PAYLOAD_TYPE, [claimed]))
    policy = _get(tree, "policyDigest" if isinstance(tree, dict) and "policyDigest" in tree else "policy_digest")
    image = _get(_get(_get(tree, "job"), "spec"), "image")
    return JobView(_text(_get(tree, "lease")), _text(policy), _text(image), claimed)


def _get(tree: object, name: str) -> object:
    if not isinstance(tree, dict) or name not in tree:
        raise FormatError(f"the job has no {name}", seen=shape(tree), wanted=f"a mapping with {name}")
    return tree[name]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise FormatError("the job has a field of a wrong type", seen=type(value).__name__, wanted="text")
    return value


def _node_key(trust: Trust, node: str) -> VerifyKey:
    key = trust.node_key(node)
    if key is None:
        raise SignatureError("the node is not one that the trust file lists", seen=node, wanted=", ".join(trust.spec.nodes)[:400])
    return key


def _set_evidence(found: LeaseDocuments, envelope: Envelope, trust: Trust) -> None:
    evidence = Evidence.from_payload(envelope.verify(EVIDENCE_PAYLOAD_TYPE, trust.node_keys))
    envelope.verify(EVIDENCE_PAYLOAD_TYPE, [_node_key(trust, evidence.node)])
    found.evidence = evidence


def _set_run(found: LeaseDocuments, envelope: Envelope, trust: Trust) -> None:
    run = RunRecord.from_payload(envelope.verify(RUN_PAYLOAD_TYPE, trust.node_keys))
    envelope.verify(RUN_PAYLOAD_TYPE, [_node_key(trust, run.node)])
    found.run = run


def _set_wipe(found: LeaseDocuments, envelope: Envelope, trust: Trust) -> None:
    wipe = WipeReport.from_payload(envelope.verify(WIPE_PAYLOAD_TYPE, trust.node_keys))
    envelope.verify(WIPE_PAYLOAD_TYPE, [_node_key(trust, wipe.node)])
    found.wipe = wipe


def _set_certificate(found: LeaseDocuments, envelope: Envelope, trust: Trust) -> None:
    # The statement names its node only inside the payload, so each listed key is tried before anything is read.
    for key in trust.node_keys:
        try:
            certificate = verify_certificate(envelope, key)
        except SignatureError:
            continue
        if _node_key(trust, certificate.predicate.node) == key:
            found.certificate = certificate
            return
    raise SignatureError(
        "none of the listed nodes signed the certificate",
        seen=", ".join(name[:16] for name, _ in envelope.signatures),
        wanted="a signature by the node that it names",
    )
