"""Incidents that a node reports of a lease: signed, kept, shown in the lease's history and in the audit log. They change no state."""

from __future__ import annotations

from sqlalchemy import func, select

from attestation.canonical import sha256_digest
from attestation.chain import INCIDENT_TYPE
from attestation.incident import INCIDENT_PAYLOAD_TYPE, MAX_INCIDENTS, Incident
from attestation.log.leaf import DocumentRef
from attestation.signing import Envelope, VerifyKey
from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import LeaseRow, ReportRow, TransitionRow
from sandbox.control.nodes import own_node
from sandbox.control.story import no_lease
from sandbox.control.transitions import DSSE, tenant_ref
from sandbox.errors import InputError, LimitError, StateError
from sandbox.lifecycle import ON_NODE

_KEPT_AS = "i-"


def take_incident(control: Control, caller: Caller, node_id: str, lease_id: str, envelope: Envelope) -> None:
    """Keep one incident; the same one twice is one. Raises ``SignatureError``, ``InputError``, ``StateError`` or ``NotFoundError``."""
    with control.database.write() as session:
        node = own_node(session, caller, node_id)
        incident = Incident.from_payload(envelope.verify(INCIDENT_PAYLOAD_TYPE, [VerifyKey.from_text(node.public_key)]))
        if (incident.node, incident.lease) != (node_id, lease_id):
            raise InputError(
                "this incident is of something else",
                rule="incident-subject",
                seen=f"{incident.node} {incident.lease}",
                wanted=f"{node_id} {lease_id}",
                fix="report to the lease's own address",
            )
        lease = session.get(LeaseRow, lease_id, with_for_update=True)
        if lease is None or lease.node != node_id:
            raise no_lease(lease_id)
        data = envelope.to_bytes()
        digest = sha256_digest(data)
        name = _KEPT_AS + digest.removeprefix("sha256:")[:14]
        if session.get(ReportRow, (lease_id, name)) is not None:
            return
        if lease.state not in {state.value for state in ON_NODE}:
            raise StateError("the lease is not on a node", rule="lease-state", seen=lease.state, wanted="a lease that runs", fix="nothing")
        kept = session.scalar(select(func.count()).where(ReportRow.lease == lease_id, ReportRow.state.startswith(_KEPT_AS)))
        if int(kept or 0) >= MAX_INCIDENTS:
            raise LimitError("too many incidents", rule="incidents", seen=str(kept), wanted=f"≤ {MAX_INCIDENTS} a lease", fix="nothing")
        session.add(ReportRow(lease=lease_id, state=name, digest=digest, data=data))
        event = control.journal.record(
            session, INCIDENT_TYPE, actor=node_id, tenant_ref=tenant_ref(session, lease.tenant), resource=lease_id, at=control.now(),
            outcome=incident.what, evidence=DocumentRef(digest, DSSE),
        )  # fmt: skip
        detail = f"incident: input {incident.bundle}: segment {incident.segment} did not verify ({incident.code})"
        session.add(TransitionRow(lease=lease_id, state=lease.state, at=control.now(), detail=detail[:2000], event=event))
    control.acknowledge(lease_id)
