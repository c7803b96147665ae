"""What a node's GPUs are fit for, as its newest qualification on record says."""

from __future__ import annotations

from sqlalchemy.orm import Session

from attestation.qualification import Qualification
from attestation.signing import Envelope
from sandbox.control.database.models import NodeRow, QualificationRow
from sandbox.wire import QualificationInfo

UNKNOWN = "unknown"
"""The grade of a GPU that was never qualified."""


def show_qualification(session: Session, node: NodeRow) -> QualificationInfo | None:
    """Return a node's newest qualification; None where it made none."""
    row = session.get(QualificationRow, node.id)
    if row is None:
        return None
    said = read(row)
    return QualificationInfo(digest=row.digest, mode=said.mode, at=said.ended_at, floors_date=said.floors_date, cards=said.cards)


def grades(session: Session, node: NodeRow) -> dict[str, str]:
    """Return the grade of each of a node's GPUs by uuid; what is missing was never qualified."""
    row = session.get(QualificationRow, node.id)
    return {} if row is None else {card.uuid: card.grade for card in read(row).cards}


def read(row: QualificationRow) -> Qualification:
    """Return the document of a row."""
    return Qualification.from_payload(Envelope.from_bytes(row.data).payload)  # verified when it was taken
