"""The sanitization certificate: an in-toto Statement v1 in a DSSE envelope, with the fields of NIST SP 800-88 Rev. 2.

Any in-toto reader opens it. Its subjects are the documents of the lease (SHA-256 each), so that it also says which documents exist.
A certificate of a wipe that was not proven says so in ``result``: there is no certificate of success without proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from attestation.document import Count, Document, Duration, LeaseId, Moment, Name, NodeId, Part, Text
from attestation.errors import FormatError, VerificationError
from attestation.signing import Envelope, VerifyKey
from attestation.wipe import MAX_MEDIA, GpuWipe, Medium, WipeReport

CERTIFICATE_PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://sealrig.dev/sanitization/v1"
LIMITS = "Cryptographic erase is the destruction of every known copy of the key; process memory of the node is not claimed to be wiped."
STANDARD = "NIST SP 800-88 Rev. 2"

DOCUMENT_KINDS = frozenset({"job", "policy", "evidence", "plan", "grant", "run", "wipe"})
_SHA256 = "sha256:"


class _CamelPart(Part):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True
    )


class DigestSet(Part):
    """The digests of a subject, in hex (in-toto DigestSet)."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Subject(Part):
    """One document of the lease; ``name`` is its kind."""

    name: Name
    digest: DigestSet


class Sanitized(_CamelPart):
    """One medium and what was done to it (SP 800-88 Rev. 2, certificate of sanitization).

    Sizes in bytes; they are 0 where the technique does not write to the medium (key destruction).
    """

    media_type: Name
    manufacturer: Text
    model: Text
    serial_number: Text
    source: Text
    method: Literal["clear", "purge", "none"]
    technique: Text
    verification_method: Text
    total_bytes: Count = 0
    written_bytes: Count = 0
    verified_bytes: Count = 0
    proven: bool


class Person(_CamelPart):
    """Who performed, verified or validated. A node signs as itself; its signature is the envelope's."""

    name: Name
    organization: Text = ""
    location: Text = ""
    date: Moment
    signature: Text


class Tool(Part):
    """What did the work."""

    name: Name
    version: Name


class StepResult(Part):
    """One step of the wipe, in short; the wipe report has all of it."""

    step: Name
    ok: bool
    seconds: Duration


class Predicate(_CamelPart):
    """What was sanitized, how, by whom. ``verified_by`` and ``validated_by`` are null where nobody but the node looked."""

    lease: LeaseId
    node: NodeId
    standard: Name = STANDARD
    result: Literal["sanitized", "not-proven"]
    started_at: Moment
    ended_at: Moment
    media: Annotated[tuple[Sanitized, ...], Field(max_length=MAX_MEDIA + 64)]
    gpus: Text
    steps: Annotated[tuple[StepResult, ...], Field(max_length=512)]
    tool: Tool
    performed_by: Person
    verified_by: Person | None = None
    validated_by: Person | None = None
    limits: Text


class Certificate(Document):
    """The payload of ``CERTIFICATE_PAYLOAD_TYPE``: an in-toto Statement."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, serialize_by_alias=True)

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = STATEMENT_TYPE
    subject: Annotated[tuple[Subject, ...], Field(min_length=1, max_length=16)]
    predicate_type: Annotated[Literal["https://sealrig.dev/sanitization/v1"], Field(alias="predicateType")] = PREDICATE_TYPE
    predicate: Predicate

    @property
    def documents(self) -> dict[str, str]:
        """Kind to ``sha256:…`` of each document that the certificate covers."""
        return {subject.name: _SHA256 + subject.digest.sha256 for subject in self.subject}


def build_certificate(
    *,
    lease: str,
    node: str,
    documents: Mapping[str, str],
    wipe: WipeReport,
    tool_version: str,
    at: datetime,
    organization: str = "",
    location: str = "",
) -> bytes:
    """Return the payload to sign. ``documents`` maps each kind of document of the lease to ``sha256:…`` over its exact bytes.

    The digest of a signed document is ``Envelope.digest``. Raises ``FormatError`` if the wipe is of another lease or missing.
    """
    if (wipe.lease, wipe.node) != (lease, node):
        raise FormatError("the wipe report is of another lease or node", seen=f"{wipe.lease} {wipe.node}", wanted=f"{lease} {node}")
    if "wipe" not in documents or not set(documents) <= DOCUMENT_KINDS:
        raise FormatError("not the documents of a lease", seen=", ".join(sorted(documents)), wanted="wipe, and others of the known kinds")
    predicate = Predicate(
        lease=lease,
        node=node,
        result="sanitized" if wipe.proven else "not-proven",
        started_at=wipe.started_at,
        ended_at=wipe.ended_at,
        media=(*map(_medium, wipe.media), *map(_gpu, wipe.gpus)),
        gpus=f"{len(wipe.gpus)} GPUs were part of this lease"
        if wipe.gpus
        else "no GPU was part of this lease; nothing is claimed of GPU memory",
        steps=tuple(StepResult(step=step.step, ok=step.ok, seconds=step.seconds) for step in wipe.steps),
        tool=Tool(name="sealrig", version=tool_version),
        performed_by=Person(
            name=node, organization=organization, location=location, date=at, signature="the DSSE signature of this statement"
        ),
        limits=LIMITS,
    )
    subjects = tuple(
        Subject(name=kind, digest=DigestSet(sha256=digest.removeprefix(_SHA256))) for kind, digest in sorted(documents.items())
    )
    return Certificate(subject=subjects, predicate=predicate).to_payload()


def verify_certificate(envelope: Envelope, key: VerifyKey) -> Certificate:
    """Return the certificate once ``key`` is proven to have signed it.

    Raises ``SignatureError``, ``FormatError`` or ``VerificationError``.
    """
    certificate = Certificate.from_payload(envelope.verify(CERTIFICATE_PAYLOAD_TYPE, [key]))
    kinds = [subject.name for subject in certificate.subject]
    if len(set(kinds)) != len(kinds) or not set(kinds) <= DOCUMENT_KINDS or "wipe" not in kinds:
        raise VerificationError("the certificate covers wrong documents", seen=", ".join(kinds), wanted="each kind once, wipe among them")
    body = certificate.predicate
    proven = bool(body.steps) and all(step.ok for step in body.steps) and all(medium.proven for medium in body.media)
    if (body.result == "sanitized") is not proven:
        raise VerificationError(
            "the result does not follow from the steps", seen=body.result, wanted="sanitized" if proven else "not-proven"
        )
    return certificate


def _medium(medium: Medium) -> Sanitized:
    return Sanitized(
        media_type=medium.kind,
        manufacturer=medium.manufacturer,
        model=medium.model,
        serial_number=medium.serial,
        source=medium.source,
        method=medium.method,
        technique=medium.technique,
        verification_method=medium.verification,
        proven=medium.proven,
    )


def _gpu(gpu: GpuWipe) -> Sanitized:
    reached = f"{gpu.verified_bytes} of {gpu.total_bytes} bytes read back after writing"
    missed = max(0, gpu.total_bytes - gpu.verified_bytes)
    return Sanitized(
        media_type="GPU memory",
        manufacturer="unknown",
        model=gpu.name,
        serial_number=gpu.uuid,
        source="leased GPU",
        method="clear" if gpu.written_bytes else "none",
        technique=f"overwrite with patterns and zeros ({gpu.backend})",
        verification_method=f"{reached}; {missed} bytes were not reached, of which the driver reserves {gpu.reserved_bytes}",
        total_bytes=gpu.total_bytes,
        written_bytes=gpu.written_bytes,
        verified_bytes=gpu.verified_bytes,
        proven=gpu.ok,
    )
