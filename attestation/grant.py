"""The customer's release of data keys to one lease key. Holds no secret: the keys are wrapped to the attested lease key.

The wrapping itself is HPKE in the sealing package, with ``Grant.info`` as its context, so that a wrapped key opens for one lease,
one evidence and one bundle only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from attestation.canonical import bind
from attestation.document import Base64, Blake3, Document, LeaseId, Moment, Part, Sha256

GRANT_PAYLOAD_TYPE = "application/vnd.sealrig.grant+json"
MAX_KEYS = 64


def grant_info(lease: str, evidence_digest: str, bundle: str) -> bytes:
    """Return the HPKE info under which the data key of ``bundle`` is wrapped: it binds lease, evidence and bundle."""
    return bind("sealrig/grant/v1", lease.encode(), evidence_digest.encode(), bundle.encode())


class WrappedKey(Part):
    """The data key of one bundle, wrapped to the lease key (base64).

    ``header`` is SHA-256 over the bundle's signed header, from a file whose whole digest the customer's agent checked: it ties what a node
    reads piece by piece, and whose digest it therefore cannot take, to the bundle that the customer means.
    """

    bundle: Blake3
    header: Sha256
    wrapped: Annotated[Base64, Field(min_length=4, max_length=8192)]


class Grant(Document):
    """The payload of ``GRANT_PAYLOAD_TYPE``, signed by the customer.

    ``evidence_digest`` is ``Envelope.digest`` of the evidence; ``lease_public_key_digest`` is SHA-256 over the key's raw bytes.
    """

    v: Literal[1] = 1
    lease: LeaseId
    evidence_digest: Sha256
    lease_public_key_digest: Sha256
    keys: Annotated[tuple[WrappedKey, ...], Field(max_length=MAX_KEYS)]
    issued_at: Moment
    expires_at: Moment
