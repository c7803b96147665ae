"""Qualifications of GPUs: a node says, signed, what each of its cards is fit for. Policies see the grade; the log keeps each by digest.

A grade is the node's own word about its own hardware. It protects a customer from unfit cards, not from a node that lies.
"""

from __future__ import annotations

from datetime import timedelta

from attestation.log.leaf import DocumentRef
from attestation.qualification import GRADES, QUALIFICATION_PAYLOAD_TYPE, Qualification
from attestation.signing import Envelope, VerifyKey
from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import QualificationRow
from sandbox.control.fitness import read
from sandbox.control.nodes import own_node
from sandbox.control.transitions import DSSE
from sandbox.errors import InputError, StateError

AHEAD = timedelta(minutes=5)
"""How far a node's clock may be ahead of the server's."""


def take_qualification(control: Control, caller: Caller, node_id: str, envelope: Envelope) -> None:
    """Keep a node's qualification; the same one twice is one. Raises ``SignatureError``, ``InputError`` or ``StateError``."""
    at = control.now()
    with control.database.write() as session:
        node = own_node(session, caller, node_id)
        said = Qualification.from_payload(envelope.verify(QUALIFICATION_PAYLOAD_TYPE, [VerifyKey.from_text(node.public_key)]))
        if said.node != node_id or said.ended_at > at + AHEAD:
            raise InputError(
                "this qualification is not this node's, or of a time to come",
                rule="qualification-subject",
                seen=f"{said.node} at {said.ended_at.isoformat()}",
                wanted=f"{node_id}, not after {at.isoformat()}",
                fix="set the node's clock and qualify again",
            )
        row = session.get(QualificationRow, node_id, with_for_update=True)
        if row is not None and row.digest == envelope.digest:
            return
        if row is not None and read(row).ended_at >= said.ended_at:
            raise StateError(
                "a newer qualification is on record",
                rule="qualification-order",
                seen=said.ended_at.isoformat(),
                wanted=f"after {read(row).ended_at.isoformat()}",
                fix="qualify again",
            )
        if row is None:
            row = QualificationRow(node=node_id, digest="", data=b"")
            session.add(row)
        row.digest, row.data = envelope.digest, envelope.to_bytes()
        worst = min((card.grade for card in said.cards), key=GRADES.index, default="none")
        control.journal.record(
            session, "node.qualified", actor=node_id, tenant_ref=None, resource=node_id, at=at, outcome=worst,
            evidence=DocumentRef(envelope.digest, DSSE),
        )  # fmt: skip
    control.acknowledge(f"node:{node_id}")
