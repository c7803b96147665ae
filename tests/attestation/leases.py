"""A whole lease as signed documents and log leaves, made with real keys; tests change one part at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attestation.canonical import canonical_json, sha256_digest
from attestation.certificate import CERTIFICATE_PAYLOAD_TYPE, build_certificate
from attestation.chain import POLICY_FIELD
from attestation.documents import IDENTITY_KEM_BYTES, JOB_PAYLOAD_TYPE
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence, PostureFact
from attestation.grant import GRANT_PAYLOAD_TYPE, Grant, WrappedKey
from attestation.log.commitments import Opening, commitment_mac
from attestation.log.leaf import Commitment, DocumentRef, Leaf
from attestation.log.note import NoteVerifier
from attestation.log.places import LogPlaces
from attestation.log.reader import LogExtract, LogReader
from attestation.log.writer import LogWriter
from attestation.receipt import build_receipt
from attestation.run import RUN_PAYLOAD_TYPE, RunRecord
from attestation.signing import SigningKey, b64encode, sign_envelope
from attestation.trust import Trust
from attestation.verify import Expected
from attestation.wipe import WIPE_PAYLOAD_TYPE, Medium, WipeReport, WipeStep

LEASE = "lease-" + "0a" * 16
NODE = "node-" + "0b" * 16
IMAGE = "sha256:" + "c" * 64
NONCE = "5a" * 32
POLICY = b"apiVersion: sealrig/v1\nkind: Policy\n"
PLAN = canonical_json({"image": IMAGE, "network": "none"})
RUNNER = "sha256:" + "d" * 64
LEASE_KEY = bytes(range(256)) * 4
ORIGIN = "log.example/test"
AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NODE_KEY = SigningKey(b"\x11" * 32)
CUSTOMER_KEY = SigningKey(b"\x22" * 32)
LOG_KEY = SigningKey(b"\x33" * 32)
OTHER_KEY = SigningKey(b"\x44" * 32)
IDENTITY = "sealrig1:" + b64encode(bytes(IDENTITY_KEM_BYTES) + CUSTOMER_KEY.public.raw)
SALT = b"\x5a" * 32
DSSE = "application/vnd.dsse.envelope.v1+json"


def trust_tree(**changes: Any) -> dict[str, Any]:
    spec = {
        "level": "software",
        "nodes": {NODE: NODE_KEY.public.text},
        "log": {"origin": ORIGIN, "key": NoteVerifier(ORIGIN, LOG_KEY.public).text},
        "interlock": "claimed",
    }
    return {"apiVersion": "sealrig/v1", "kind": "Trust", "spec": spec | changes}


def trust(**changes: Any) -> Trust:
    return Trust.from_tree(trust_tree(**changes))


def job(**changes: Any) -> bytes:
    tree = {
        "v": 1,
        "lease": LEASE,
        "tenant": "lab",
        "customer": IDENTITY,
        "policyDigest": sha256_digest(POLICY),
        "submittedAt": "2026-03-01T11:59:00.000Z",
        "job": {
            "apiVersion": "sealrig/v1",
            "kind": "Job",
            "metadata": {"name": "test"},
            "spec": {"image": IMAGE, "command": ["/bin/true"]},
        },
    } | changes
    return sign_envelope(canonical_json(tree), JOB_PAYLOAD_TYPE, CUSTOMER_KEY).to_bytes()


def evidence(**changes: Any) -> Evidence:
    fields = {
        "lease": LEASE,
        "node": NODE,
        "node_key": NODE_KEY.public.text,
        "nonce": NONCE,
        "lease_public_key": b64encode(LEASE_KEY),
        "job_digest": sha256_digest(job()),
        "image": IMAGE,
        "policy_digest": sha256_digest(POLICY),
        "plan_digest": sha256_digest(PLAN),
        "runner_digest": RUNNER,
        "runner_version": "0.1.0",
        "posture": (PostureFact(id="swap-off", seen="no swap", wanted="no swap", result="pass"),),
        "previous_wipes": {"node": None},
        "made_at": AT,
    }
    return Evidence(**(fields | changes))


def expected(**changes: Any) -> Expected:
    known = Expected(
        lease=LEASE, nonce=NONCE, job_digest=sha256_digest(job()), policy_digest=sha256_digest(POLICY), image=IMAGE, plan=PLAN, history=None
    )
    return replace(known, **changes)


def wipe_report(*, ok: bool = True) -> WipeReport:
    step = WipeStep(
        step="key", target="scratch", action="remove key", seen="absent" if ok else "busy", wanted="absent", ok=ok, seconds=0.01
    )
    medium = Medium(
        kind="disk",
        model="Example 1",
        method="purge",
        technique="cryptographic erase",
        verification="kernel reports the key absent",
        proven=ok,
    )
    return WipeReport(
        lease=LEASE, node=NODE, started_at=AT + timedelta(minutes=5), ended_at=AT + timedelta(minutes=6), steps=(step,), media=(medium,)
    )


def documents(*, proven: bool = True) -> dict[str, bytes]:
    """The documents of a lease that ran, in order."""
    found = {"job": job(), "policy": POLICY, "plan": PLAN}
    envelope = sign_envelope(evidence().to_payload(), EVIDENCE_PAYLOAD_TYPE, NODE_KEY)
    found["evidence"] = envelope.to_bytes()
    grant = Grant(
        lease=LEASE,
        evidence_digest=envelope.digest,
        lease_public_key_digest=sha256_digest(LEASE_KEY),
        keys=(WrappedKey(bundle="blake3:" + "e" * 64, header=sha256_digest(b"header"), wrapped=b64encode(b"wrapped")),),
        issued_at=AT + timedelta(seconds=2),
        expires_at=AT + timedelta(hours=1),
    )
    found["grant"] = sign_envelope(grant.to_payload(), GRANT_PAYLOAD_TYPE, CUSTOMER_KEY).to_bytes()
    run = RunRecord(
        lease=LEASE,
        node=NODE,
        container="f" * 64,
        image=IMAGE,
        plan_digest=sha256_digest(PLAN),
        inspect_digest=RUNNER,
        started_at=AT + timedelta(minutes=1),
        ended_at=AT + timedelta(minutes=4),
        exit_code=0,
        outcome="succeeded",
        log_chunks=2,
        log_digest=RUNNER,
        result="blake3:" + "a" * 64,
        result_size=100,
    )
    found["run"] = sign_envelope(run.to_payload(), RUN_PAYLOAD_TYPE, NODE_KEY).to_bytes()
    report = wipe_report(ok=proven)
    found["wipe"] = sign_envelope(report.to_payload(), WIPE_PAYLOAD_TYPE, NODE_KEY).to_bytes()
    payload = build_certificate(
        lease=LEASE,
        node=NODE,
        documents={kind: sha256_digest(data) for kind, data in found.items()},
        wipe=report,
        tool_version="0.1.0",
        at=AT + timedelta(minutes=6),
    )
    found["certificate"] = sign_envelope(payload, CERTIFICATE_PAYLOAD_TYPE, NODE_KEY).to_bytes()
    return found


STORY = (
    ("submitted", "job"),
    ("admitted", "policy"),
    ("placed", "job"),
    ("attested", "evidence"),
    ("unlocked", "grant"),
    ("running", None),
    ("collecting", None),
    ("wiping", "run"),
    ("closed", "certificate"),
)
TOKEN = "token-" + "0c" * 16


@dataclass
class Story:
    """The leaves of one lease, in order."""

    documents: dict[str, bytes]
    steps: tuple[tuple[str, str | None], ...] = STORY
    resource: str = LEASE
    leaves: list[Leaf] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, (state, kind) in enumerate(self.steps):
            digest = sha256_digest(self.documents[kind]) if kind else "sha256:" + "9" * 64
            at = AT + timedelta(seconds=number)
            actor = NODE if state in {"attested", "running", "collecting", "wiping", "closed", "quarantined"} else TOKEN
            hidden = kind == "policy"  # anybody could guess its digest: the log commits to it
            leaf = Leaf(
                type=f"lease.{state}",
                occurred_at=at,
                recorded_at=at,
                actor_ref=actor,
                resource_ref=self.resource,
                action=state,
                outcome="done",
                evidence=None if hidden else DocumentRef(digest, DSSE),
                commitments=(Commitment(POLICY_FIELD, commitment_mac(SALT, POLICY_FIELD, digest)),) if hidden else (),
            )
            self.leaves.append(leaf)


def append(folder: Path, *stories: Story) -> list[list[int]]:
    """Append the stories to a log in ``folder``; return their indexes."""
    with_log = LogWriter.open(LogPlaces(folder), origin=ORIGIN, key=LOG_KEY)
    try:
        return [with_log.append([leaf.to_bytes() for leaf in story.leaves]) for story in stories]
    finally:
        with_log.close()


def extract(folder: Path, indexes: list[int]) -> LogExtract:
    return LogReader.from_dir(folder).extract(indexes)


def receipt_of(found: dict[str, bytes], log: LogExtract, handovers: tuple[str, ...] = ()) -> bytes:
    """The receipt, with what opens the log's commitments to the policy."""
    opened = {
        entry.index: [
            Opening(each.field, SALT, sha256_digest(found.get("policy", POLICY))) for each in Leaf.from_bytes(entry.leaf).commitments
        ]
        for entry in log.entries
    }
    return build_receipt(LEASE, found, log, opened, handovers)
