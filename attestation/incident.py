"""What a node saw go wrong while a job ran, and nobody else could have seen: part of an input that does not verify."""

from __future__ import annotations

from typing import Literal

from attestation.document import Blake3, Count, Document, LeaseId, Moment, Name, NodeId

INCIDENT_PAYLOAD_TYPE = "application/vnd.sealrig.incident+json"
MAX_INCIDENTS = 16
"""How many a node reports of one lease; its run record counts them."""


class Incident(Document):
    """The payload of ``INCIDENT_PAYLOAD_TYPE``, signed by the node.

    ``segment`` is the MiB of the bundle's payload that did not verify, and ``code`` the error that the job's read ended with. What file it
    belongs to only the customer can tell: names are sealed.
    """

    v: Literal[1] = 1
    lease: LeaseId
    node: NodeId
    at: Moment
    what: Literal["input-unverified"] = "input-unverified"
    bundle: Blake3
    segment: Count
    code: Name
