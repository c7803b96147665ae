"""The three notes that prove a TPM's attestation key to lie in the TPM that an endorsement key names, and what is kept in between.

::

    node      Offer      its endorsement key (EK), the EK's certificate, its attestation key (AK)
    verifier  Challenge  a secret that only the TPM with this EK opens, and only if this AK is in it too   (keeps Pending)
    node      Answer     proof that the secret was opened
    verifier             lists the AK in the trust file

TPM 2.0 Library Part 1, section 24, Credential Protection. None of the notes is secret; ``Pending`` is.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Literal

from pydantic import Field

from attestation.canonical import bind
from attestation.document import Base64, Document, NodeId, Sha256, Text

MAX_PUBLIC_CHARS = 4096
MAX_CERTIFICATE_CHARS = 32 * 1024
_PROOF_DOMAIN = "sealrig/tpm-enrolment/v1"
PublicArea = Annotated[Base64, Field(min_length=4, max_length=MAX_PUBLIC_CHARS)]


class Offer(Document):
    """What a node says of its TPM. ``ek`` and ``ak`` are TPM2B_PUBLIC; ``ek_certificate`` is DER, empty where the TPM holds none."""

    v: Literal[1] = 1
    type: Literal["sealrig-tpm-offer"] = "sealrig-tpm-offer"
    node: NodeId
    ek: PublicArea
    ek_certificate: Annotated[Base64, Field(max_length=MAX_CERTIFICATE_CHARS)] = ""
    ak: PublicArea


class Challenge(Document):
    """``credential`` is in the file format of tpm2_activatecredential; ``offer`` is the digest of the offer that it answers."""

    v: Literal[1] = 1
    type: Literal["sealrig-tpm-challenge"] = "sealrig-tpm-challenge"
    node: NodeId
    offer: Sha256
    credential: PublicArea


class Answer(Document):
    """``proof`` is HMAC-SHA256 with the opened secret over offer and node."""

    v: Literal[1] = 1
    type: Literal["sealrig-tpm-answer"] = "sealrig-tpm-answer"
    node: NodeId
    offer: Sha256
    proof: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Pending(Document):
    """What the verifier keeps until the answer, in a file of mode 0600. ``ak`` is DER; ``basis`` says why the EK is accepted."""

    v: Literal[1] = 1
    type: Literal["sealrig-tpm-pending"] = "sealrig-tpm-pending"
    node: NodeId
    offer: Sha256
    ak: PublicArea
    secret: Annotated[Base64, Field(min_length=44, max_length=44)]
    basis: Text


def proof_of(secret: bytes, node: str, offer: str) -> str:
    """Return the hex proof that whoever answers for ``node`` opened the challenge to the offer of that digest."""
    return hmac.new(secret, bind(_PROOF_DOMAIN, node.encode(), offer.encode()), hashlib.sha256).hexdigest()
