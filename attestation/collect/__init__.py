"""Node side: turn what a node knows of itself into signed evidence. ``runner`` digests the installed program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attestation.errors import FormatError
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence, TeeEvidence
from attestation.signing import Envelope, SigningKey, sign_envelope


class EvidenceSource(Protocol):
    """A device that can vouch: a TPM, a confidential CPU or GPU."""

    def quote(self, binding: bytes) -> TeeEvidence:
        """Return evidence that carries the 32 bytes of ``binding``. Raises ``AttestationError`` where the device refuses."""
        ...


def collect(evidence: Evidence, key: SigningKey, *, devices: Sequence[EvidenceSource] = ()) -> Envelope:
    """Return the evidence, completed by each device's quote over its binding, signed with the node's key.

    Raises ``FormatError`` if ``key`` is not the one that the evidence names, or quotes are there already.
    """
    if key.public.text != evidence.node_key:
        raise FormatError("the evidence names another node key", seen=evidence.node_key, wanted=key.public.text)
    if evidence.tee is not None:
        raise FormatError("the evidence holds quotes already", seen=f"{len(evidence.tee)} quotes", wanted="none: they are collected here")
    if devices:
        binding = evidence.binding()
        fields = {name: getattr(evidence, name) for name in Evidence.model_fields}
        evidence = Evidence.model_validate(fields | {"tee": tuple(device.quote(binding) for device in devices)})
    return sign_envelope(evidence.to_payload(), EVIDENCE_PAYLOAD_TYPE, key)
