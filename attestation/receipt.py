"""One file that proves a lease, offline: every document's exact bytes, and every entry of the audit log with its proof.

``verify_receipt`` takes, in this order:

1. ``format``, ``lease``             one receipt, in its one spelling
2. ``…-signature``, ``plan-format``  each document opened with the key that must have signed it (``attestation.documents``)
3. ``…-lease``, ``policy-digest``, ``evidence-…``, ``grant-…``, ``run-plan``, ``certificate-…``  documents name each other
4. ``appraisal/…``                   where keys were released: the evidence verifies as of the moment of the grant
5. ``log-origin``, ``log-keys``, ``log-checkpoint``, ``log-witnesses``, ``entry-N``, ``opening-N``  each entry stands in the signed
   log, and each value that is told beside an entry is the one that it commits to
6. ``log-…``, ``documents``          the entries tell one possible life of the lease, and nothing is missing or surplus

Steps go on after a failure where they have a basis, so that a reader sees all that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attestation.appraisal import Appraisal
from attestation.canonical import canonical_json, parse_json
from attestation.chain import ProvenEntry, check_documents, check_story
from attestation.documents import LeaseDocuments, open_documents
from attestation.errors import AttestationError, FormatError, Step, VerificationError
from attestation.log.commitments import Opening
from attestation.log.keychain import KeyChain
from attestation.log.leaf import MAX_COMMITMENTS, Leaf
from attestation.log.note import Note, open_checkpoint
from attestation.log.proof import TlogProof
from attestation.log.reader import LogExtract
from attestation.log.rules import LogRules
from attestation.shape import shape
from attestation.signing import Envelope, b64decode, b64encode
from attestation.steps import Steps
from attestation.trust import Trust
from attestation.verify import Expected, verify_evidence
from attestation.verify.cache import NOTHING, Cached

RECEIPT_TYPE = "sealrig-receipt"
MAX_RECEIPT_BYTES = 64 * 1024 * 1024
MAX_ENTRIES = 64
MAX_HANDOVERS = 64
DSSE_MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json"
MEDIA_TYPES = {
    "job": DSSE_MEDIA_TYPE,
    "policy": "application/yaml",
    "evidence": DSSE_MEDIA_TYPE,
    "plan": "application/json",
    "grant": DSSE_MEDIA_TYPE,
    "run": DSSE_MEDIA_TYPE,
    "wipe": DSSE_MEDIA_TYPE,
    "certificate": DSSE_MEDIA_TYPE,
}


@dataclass(frozen=True)
class ReceiptResult:
    """What came out: all steps, the appraisal that was recomputed where keys had been released, and the documents that opened."""

    lease: str
    steps: tuple[Step, ...]
    appraisal: Appraisal | None = None
    documents: LeaseDocuments | None = None

    @property
    def ok(self) -> bool:
        """Whether there are steps and every one held."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return the result as one JSON document."""
        steps = [
            {"number": number, "step": step.step, "ok": step.ok, "detail": step.detail, "seen": step.seen, "wanted": step.wanted}
            for number, step in enumerate(self.steps, 1)
        ]
        level = self.appraisal.level.label if self.appraisal is not None else None
        return {"ok": self.ok, "lease": self.lease, "level": level, "steps": steps}


def build_receipt(
    lease: str,
    documents: Mapping[str, bytes],
    log: LogExtract,
    openings: Mapping[int, Sequence[Opening]] | None = None,
    handovers: Sequence[str] = (),
) -> bytes:
    """Return the receipt of a lease from the exact bytes of its documents, by kind, and its log entries with proofs.

    ``openings`` are what opens the commitments of entries, by index; a policy's digest stands in the log only so.
    ``handovers`` are the notes by which the log's key was exchanged, for those who know an older one.
    Raises ``FormatError`` for an unknown kind of document.
    """
    if unknown := sorted(set(documents) - set(MEDIA_TYPES)):
        raise FormatError("not a document of a lease", seen=", ".join(unknown), wanted=", ".join(MEDIA_TYPES))
    return canonical_json(
        {
            "v": 1,
            "type": RECEIPT_TYPE,
            "lease": lease,
            "documents": {kind: {"mediaType": MEDIA_TYPES[kind], "data": b64encode(data)} for kind, data in documents.items()},
            "log": {
                "origin": log.origin,
                "checkpoint": log.checkpoint,
                "handovers": list(handovers),
                "entries": [
                    {
                        "index": entry.index,
                        "leaf": b64encode(entry.leaf),
                        "proof": entry.proof,
                        "openings": [
                            {"field": each.field, "salt": b64encode(each.salt), "value": each.value}
                            for each in (openings or {}).get(entry.index, ())
                        ],
                    }
                    for entry in log.entries
                ],
            },
        }
    )


def verify_receipt(raw: bytes, trust: Trust, *, cached: Cached = NOTHING) -> ReceiptResult:
    """Check a receipt against a trust file, offline. Never raises for what is wrong in it: a failed step says so.

    ``cached`` is collateral of one's own, for evidence that came without (``attestation.verify.cache``).
    """
    steps = Steps("the receipt")
    try:
        receipt = _parse(raw)
    except AttestationError as error:
        steps.note("format", error)
        return ReceiptResult("", steps.all)
    steps.check(
        "format",
        ok=True,
        seen=f"{len(raw)} bytes, {len(receipt.documents)} documents, {len(receipt.entries)} entries",
        wanted="a receipt v1",
    )
    found = open_documents(receipt.documents, trust, steps)
    check_documents(found, receipt.lease, steps)
    appraisal = _appraise(found, trust, steps, cached)
    entries = _check_log(receipt, trust, steps)
    check_story(entries, found, receipt.lease, steps)
    return ReceiptResult(receipt.lease, steps.all, appraisal, found)


def verify_receipt_or_raise(raw: bytes, trust: Trust) -> ReceiptResult:
    """Return the result of a receipt that verifies. Raises ``VerificationError`` with all steps otherwise."""
    result = verify_receipt(raw, trust)
    for step in result.steps:
        if not step.ok:
            raise VerificationError(
                f"the receipt does not verify at step {step.step}: {step.detail}",
                steps=result.steps,
                rule=step.step,
                seen=step.seen,
                wanted=step.wanted,
                fix="ask for the receipt again; if it stays so, the lease is not proven",
            )
    return result


@dataclass(frozen=True)
class _Entry:
    index: int
    leaf: bytes
    proof: str
    openings: tuple[Opening, ...]


@dataclass(frozen=True)
class _Receipt:
    lease: str
    documents: Mapping[str, bytes]
    origin: str
    checkpoint: str
    handovers: tuple[str, ...]
    entries: tuple[_Entry, ...]


def _parse(raw: bytes) -> _Receipt:
    tree = parse_json(raw, max_bytes=MAX_RECEIPT_BYTES)
    _keys(tree, "the receipt", {"v", "type", "lease", "documents", "log"})
    if tree["v"] != 1 or tree["type"] != RECEIPT_TYPE or not isinstance(tree["lease"], str):
        raise FormatError("not a receipt of this version", seen=shape(tree), wanted=f"{RECEIPT_TYPE} 1")
    if canonical_json(tree) != raw:
        raise FormatError("the receipt is not in canonical form", seen="another spelling", wanted="RFC 8785 JSON")
    documents, log = tree["documents"], tree["log"]
    if not isinstance(documents, dict) or not set(documents) <= set(MEDIA_TYPES):
        raise FormatError("not the documents of a lease", seen=shape(documents), wanted=", ".join(MEDIA_TYPES))
    opened = {}
    for kind, document in documents.items():
        _keys(document, kind, {"mediaType", "data"})
        if document["mediaType"] != MEDIA_TYPES[kind]:
            raise FormatError(f"{kind}: another media type", seen=shape(document["mediaType"]), wanted=MEDIA_TYPES[kind])
        opened[kind] = b64decode(document["data"])
    _keys(log, "the log", {"origin", "checkpoint", "handovers", "entries"})
    origin, checkpoint, handovers, entries = log["origin"], log["checkpoint"], log["handovers"], log["entries"]
    if not isinstance(origin, str) or not isinstance(checkpoint, str) or not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise FormatError(
            "not a log extract", seen="wrong types or too many entries", wanted=f"origin, checkpoint, ≤ {MAX_ENTRIES} entries"
        )
    if not isinstance(handovers, list) or len(handovers) > MAX_HANDOVERS or not all(isinstance(each, str) for each in handovers):
        raise FormatError("not the handovers of a log's key", seen="wrong types or too many", wanted=f"≤ {MAX_HANDOVERS} notes")
    return _Receipt(tree["lease"], opened, origin, checkpoint, tuple(handovers), tuple(_entry(entry) for entry in entries))


def _entry(tree: object) -> _Entry:
    entry = _keys(tree, "an entry", {"index", "leaf", "proof", "openings"})
    index, proof, openings = entry["index"], entry["proof"], entry["openings"]
    if type(index) is not int or not isinstance(proof, str) or not isinstance(openings, list) or len(openings) > MAX_COMMITMENTS:
        seen = ", ".join(type(each).__name__ for each in (index, proof, openings))
        raise FormatError("not a log entry", seen=seen, wanted=f"a whole number, a proof and ≤ {MAX_COMMITMENTS} openings")
    return _Entry(index, b64decode(entry["leaf"]), proof, tuple(_opening(each) for each in openings))


def _opening(tree: object) -> Opening:
    opening = _keys(tree, "an opening", {"field", "salt", "value"})
    field, value = opening["field"], opening["value"]
    if not isinstance(field, str) or not isinstance(value, str):
        raise FormatError("not an opening", seen=f"{type(field).__name__}, {type(value).__name__}", wanted="texts")
    return Opening(field, b64decode(opening["salt"]), value)


def _keys(tree: object, what: str, wanted: set[str]) -> dict[str, Any]:
    if not isinstance(tree, dict) or set(tree) != wanted:
        raise FormatError(f"{what} has other fields", seen=shape(tree), wanted=", ".join(sorted(wanted)))
    return tree


def _appraise(found: LeaseDocuments, trust: Trust, steps: Steps, cached: Cached) -> Appraisal | None:
    """Verify the evidence again as of the grant.

    The nonce was the agent's own and is taken from the evidence; the log's history of the node belongs to the moment of release
    and is not in a receipt.
    """
    if found.grant is None or found.evidence is None or found.job is None or "plan" not in found.raw:
        return None
    expected = Expected(
        lease=found.job.lease,
        nonce=found.evidence.nonce,
        job_digest=found.digests["job"],
        policy_digest=found.job.policy_digest,
        image=found.job.image,
        plan=found.raw["plan"],
        history=None,
    )
    offline = trust.model_copy(update={"spec": trust.spec.model_copy(update={"interlock": "claimed"})})
    try:
        envelope, at = Envelope.from_bytes(found.raw["evidence"]), found.grant.issued_at
        appraisal = verify_evidence(envelope, trust=offline, expected=expected, at=at, cached=cached)
    except VerificationError as error:
        steps.absorb(error.steps, "appraisal/")
        return None
    steps.absorb(appraisal.steps, "appraisal/")
    return appraisal


def _check_log(receipt: _Receipt, trust: Trust, steps: Steps) -> list[ProvenEntry]:
    """Return the entries that are proven to stand in the trusted log."""
    log = trust.spec.log
    steps.check("log-origin", ok=receipt.origin == log.origin, seen=receipt.origin[:200], wanted=log.origin)
    keys = _log_keys(receipt, trust, steps)
    if keys is None:
        return []
    rules, chain = keys
    try:
        open_checkpoint(receipt.checkpoint, chain.keys, origin=log.origin)
        checkpoint, note = chain.open(receipt.checkpoint)
    except AttestationError as error:
        steps.note("log-checkpoint", error)
        return []
    steps.check(
        "log-checkpoint", ok=True, seen=f"{checkpoint.origin}, {checkpoint.size} entries", wanted="a checkpoint signed by the trusted log"
    )
    _check_witnesses(note, rules, steps)
    proven = []
    for entry in receipt.entries:
        try:
            proof = TlogProof.from_text(entry.proof)
            if proof.index != entry.index or proof.checkpoint != receipt.checkpoint:
                raise FormatError(
                    "the proof is of another entry or tree",
                    seen=f"entry {proof.index}",
                    wanted=f"entry {entry.index} of the receipt's checkpoint",
                )
            proof.verify(entry.leaf, chain.keys, origin=log.origin)
            leaf = Leaf.from_bytes(entry.leaf)
        except AttestationError as error:
            steps.note(f"entry-{entry.index}", error)
        else:
            steps.check(f"entry-{entry.index}", ok=True, seen=leaf.type, wanted="an entry of the signed tree")
            proven.append(ProvenEntry(entry.index, leaf, _opened(entry, leaf, steps)))
    return proven


def _log_keys(receipt: _Receipt, trust: Trust, steps: Steps) -> tuple[LogRules, KeyChain] | None:
    """Return what is accepted of the log, and its keys: the trusted ones, and those that they handed over to."""
    try:
        rules = LogRules.from_trust(trust)
        chain = rules.from_handovers(receipt.handovers)
    except AttestationError as error:
        steps.note("log-keys", error)
        return None
    if receipt.handovers:
        followed = sum(link.note is not None for link in chain.links)
        seen = f"{followed} of {len(receipt.handovers)} handovers are between keys that follow from the trusted ones"
        steps.check("log-keys", ok=True, seen=seen, wanted="handovers that both keys signed")
    return rules, chain


def _check_witnesses(note: Note, rules: LogRules, steps: Steps) -> None:
    if not rules.quorum:
        return
    try:
        cosigned = rules.require_cosigned(note)
    except AttestationError as error:
        steps.note("log-witnesses", error)
    else:
        steps.check("log-witnesses", ok=True, seen=f"{cosigned} cosignatures", wanted=f"≥ {rules.quorum}")


def _opened(entry: _Entry, leaf: Leaf, steps: Steps) -> dict[str, str]:
    """Return the values that a leaf is proven to have committed to, by field."""
    step = f"opening-{entry.index}"
    found = {}
    for opening in entry.openings:
        commitment = next((each for each in leaf.commitments if each.field == opening.field), None)
        try:
            if commitment is None:
                raise FormatError("the entry commits to no such field", seen=opening.field[:80], wanted="a field of the entry")
            opening.verify(commitment)
            if opening.field in found:
                raise FormatError("a field is opened twice", seen=opening.field, wanted="one opening a field")
        except AttestationError as error:
            steps.note(step, error)
        else:
            steps.check(step, ok=True, seen=f"{opening.field}: {opening.value}"[:200], wanted="the value that was committed to")
            found[opening.field] = opening.value
    return found
