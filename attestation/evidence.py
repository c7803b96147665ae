"""What a node says of itself before it gets a key: one document, signed with the node's key, bound into hardware quotes.

``Evidence.binding()`` is the one value that a TPM quote (qualifying data), an SEV-SNP report (first half of ``report_data``)
or a GPU report (nonce) must carry. It covers every field but ``tee``, where those quotes travel.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from attestation.canonical import bind, canonical_json
from attestation.document import Base64, Count, Document, ImageRef, LeaseId, Moment, Name, NodeId, Nonce, Part, Sha256, Text

EVIDENCE_PAYLOAD_TYPE = "application/vnd.sealrig.evidence+json"
MAX_GPUS = 64
MAX_POSTURE = 256
MAX_TEE = 130
"""Pieces of hardware evidence: a TPM, a CPU report and one report a GPU, with room."""

RESERVED_TARGETS = frozenset({"node", "cpu0"})
_BINDING_DOMAIN = "sealrig/evidence/v1"
KeyText = Annotated[str, StringConstraints(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$")]
WipeTarget = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
"""``node`` or a GPU's uuid."""


def _is_none(value: object) -> bool:
    return value is None


class PostureFact(Part):
    """One posture check: what was seen, what is wanted. ``unknown`` is never a pass."""

    id: Name
    seen: Text
    wanted: Text
    result: Literal["pass", "fail", "unknown"]


class GpuFact(Part):
    """One GPU of the node, or a part of one (MIG): ``parent`` is then the whole one's uuid.

    ``memory`` in bytes; ``leased`` says whether this lease gets it. ``link`` is PCIe generation and lanes, now and at most.
    ``repair_pending`` says that bad memory waits for a reset, ``repair_failed`` that it cannot be put aside. ``confidential`` says whether
    confidential computing is on, ``driver_parameters`` how the kernel module is set: ``name=value; …``. All is as the node found it at its
    start. What the driver does not tell is left out of the document, as in those that were made before there was such a field.
    """

    uuid: WipeTarget
    name: Name
    memory: Count
    leased: bool = True
    pci: Text = ""
    driver: Text = ""
    vbios: Text = ""
    serial: Text = ""
    parent: Text = ""
    link: Text | None = Field(default=None, exclude_if=_is_none)
    ecc: bool | None = Field(default=None, exclude_if=_is_none)
    uncorrected_errors: Count | None = Field(default=None, exclude_if=_is_none)
    retired_pages: Count | None = Field(default=None, exclude_if=_is_none)
    remapped_rows: Count | None = Field(default=None, exclude_if=_is_none)
    repair_pending: bool | None = Field(default=None, exclude_if=_is_none)
    repair_failed: bool | None = Field(default=None, exclude_if=_is_none)
    mig: bool | None = Field(default=None, exclude_if=_is_none)
    nvlinks: Count | None = Field(default=None, exclude_if=_is_none)
    confidential: bool | None = Field(default=None, exclude_if=_is_none)
    driver_parameters: Text | None = Field(default=None, exclude_if=_is_none)

    @field_validator("uuid")
    @classmethod
    def _own_name(cls, uuid: str) -> str:
        if uuid in RESERVED_TARGETS:
            msg = f"a GPU cannot be called {uuid}"
            raise ValueError(msg)
        return uuid


class DeviceCounts(Part):
    """How many GPUs the PCI bus shows and how many the driver shows.

    Both must be the number of ``GpuFact``s, parts of one counting as one.
    """

    pci: Count = 0
    driver: Count = 0


class TeeEvidence(Part):
    """One piece of hardware evidence in its own binary format, with what is needed to check it offline.

    ``target`` is ``node``, ``cpu0`` or a GPU's uuid. ``parts`` holds base64 of named parts, for example ``quote``,
    ``signature``, ``report``, ``chain``.
    """

    kind: Literal["tpm", "sev-snp", "tdx", "nvidia-gpu"]
    target: WipeTarget
    parts: Annotated[dict[Name, Base64], Field(min_length=1, max_length=16)]


class Evidence(Document):
    """The payload of ``EVIDENCE_PAYLOAD_TYPE``.

    ``nonce`` is 32 bytes in hex from the release agent; ``lease_public_key`` is base64. ``gpus`` lists every GPU of the node.
    ``previous_wipes`` names, for ``node`` and each leased GPU, the audit log's index of the entry that ended the last lease there
    with a proven wipe; None means that there was none. ``tee`` is None where the node has no hardware evidence.
    """

    v: Literal[1] = 1
    lease: LeaseId
    node: NodeId
    node_key: KeyText
    nonce: Nonce
    lease_public_key: Annotated[Base64, Field(min_length=4, max_length=8192)]
    job_digest: Sha256
    image: ImageRef
    policy_digest: Sha256
    plan_digest: Sha256
    runner_digest: Sha256
    runner_version: Name
    posture: Annotated[tuple[PostureFact, ...], Field(max_length=MAX_POSTURE)] = ()
    gpus: Annotated[tuple[GpuFact, ...], Field(max_length=MAX_GPUS)] = ()
    device_counts: DeviceCounts = DeviceCounts()
    previous_wipes: Annotated[dict[WipeTarget, Count | None], Field(max_length=MAX_GPUS + 1)]
    tee: Annotated[tuple[TeeEvidence, ...], Field(max_length=MAX_TEE)] | None = None
    made_at: Moment

    def binding(self) -> bytes:
        """Return the 32 bytes that hardware evidence must carry: every field but ``tee``, by name, length-prefixed."""
        tree = self.model_dump(mode="json", exclude={"tee"})
        fields: list[bytes] = []
        for name in sorted(tree):
            fields += [name.encode(), canonical_json(tree[name])]
        return bind(_BINDING_DOMAIN, *fields)
