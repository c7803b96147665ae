"""What a node says of the run itself: which container it made, how it was checked, how it ended."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from attestation.document import Blake3, Count, Document, ImageRef, LeaseId, Moment, Name, NodeId, Sha256, Text

RUN_PAYLOAD_TYPE = "application/vnd.sealrig.run+json"


class RunRecord(Document):
    """The payload of ``RUN_PAYLOAD_TYPE``, signed by the node.

    ``inspect_digest`` is over the engine's own description of the container that was compared with the plan; None when none was made.
    ``exit_code`` is None when the job never started. ``limit`` names the limit that ended it, if one did. ``log_digest`` is SHA-256
    over the sealed log chunks in order; ``result`` the digest of the sealed result bundle and ``result_size`` its bytes. ``incidents``
    counts the incidents that the node reported while the job ran.
    """

    v: Literal[1] = 1
    lease: LeaseId
    node: NodeId
    container: Text | None = None
    image: ImageRef
    plan_digest: Sha256
    inspect_digest: Sha256 | None = None
    started_at: Moment | None = None
    ended_at: Moment
    exit_code: Annotated[int, Field(ge=-255, le=255)] | None = None
    outcome: Name
    limit: Name | None = None
    log_chunks: Count = 0
    log_digest: Sha256 | None = None
    result: Blake3 | None = None
    result_size: Count = 0
    incidents: Count = 0
