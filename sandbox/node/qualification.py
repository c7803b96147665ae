"""The node's own qualification of its GPUs: signed, kept in its data folder, sent to the control plane."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from attestation.errors import AttestationError
from attestation.qualification import QUALIFICATION_PAYLOAD_TYPE, Qualification
from attestation.signing import Envelope, SigningKey, VerifyKey, sign_envelope
from sandbox.node.gpu.cards import table
from sandbox.node.layout import NodeFolder, write_durably

if TYPE_CHECKING:
    from attestation.qualification import Card
    from sandbox.node.gpu.measure import Effort


def sign(node: str, key: SigningKey, effort: Effort, cards: tuple[Card, ...], *, started_at: datetime, driver: str) -> Envelope:
    """Return the signed qualification of these cards."""
    floors = table()
    document = Qualification(
        node=node,
        mode=effort.mode,
        started_at=started_at,
        ended_at=datetime.now(UTC),
        driver=driver,
        floors=floors.digest,
        floors_date=floors.date,
        cards=cards,
    )
    return sign_envelope(document.to_payload(), QUALIFICATION_PAYLOAD_TYPE, key)


def keep(folder: NodeFolder, envelope: Envelope) -> None:
    """Keep the newest qualification; it is sent again whenever the node registers."""
    write_durably(folder.qualification, envelope.to_bytes())


def kept(folder: NodeFolder, key: VerifyKey) -> tuple[Envelope, Qualification] | None:
    """Return the qualification that this node made; None where there is none, or it does not verify."""
    try:
        envelope = Envelope.from_bytes(folder.qualification.read_bytes())
        return envelope, Qualification.from_payload(envelope.verify(QUALIFICATION_PAYLOAD_TYPE, [key]))
    except (FileNotFoundError, AttestationError):
        return None


def grades(folder: NodeFolder, key: VerifyKey) -> dict[str, str]:
    """Return the grade of each GPU by uuid, as this node measured it."""
    found = kept(folder, key)
    return {} if found is None else {card.uuid: card.grade for card in found[1].cards}
