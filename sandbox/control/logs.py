"""Sealed log chunks on their way from the node to the customer. The server cannot read them."""

from __future__ import annotations

from sqlalchemy import func, select

from sandbox.control.access import Caller
from sandbox.control.core import Control
from sandbox.control.database.models import LeaseRow, LogChunkRow
from sandbox.control.nodes import own_node
from sandbox.control.story import no_lease
from sandbox.errors import LimitError, StateError
from sandbox.lifecycle import ON_NODE

_TAKES_LOGS = {state.value for state in ON_NODE}  # the last chunks may come while the node wipes already


def take_chunk(control: Control, caller: Caller, *, node_id: str, lease_id: str, seq: int, data: bytes) -> None:
    """Keep one chunk. The same chunk twice is one; other bytes under the same number are refused, as is a lease that has ended."""
    limits = control.settings.limits
    with control.database.write() as session:
        own_node(session, caller, node_id)
        lease = session.get(LeaseRow, lease_id)
        if lease is None or lease.node != node_id:
            raise no_lease(lease_id)
        known = session.get(LogChunkRow, (lease_id, seq))
        if known is not None:
            if known.data != data:
                raise StateError(
                    "this chunk is there with other bytes",
                    rule="log-chunk",
                    seen=f"chunk {seq}",
                    wanted="the same bytes for the same number",
                    fix="go on with the next number",
                )
            return
        if lease.state not in _TAKES_LOGS:
            raise StateError(
                "this lease takes no more output", rule="lease-state", seen=lease.state, wanted="a lease that runs", fix="stop sending"
            )
        held = session.scalar(select(func.coalesce(func.sum(func.length(LogChunkRow.data)), 0)).where(LogChunkRow.lease == lease_id))
        if int(held or 0) + len(data) > limits.log_bytes_per_lease or seq >= limits.log_chunks_per_lease:
            raise LimitError(
                "the output of this lease is too long",
                rule="log-bytes-per-lease",
                seen=f"{held} bytes, chunk {seq}",
                wanted=f"at most {limits.log_bytes_per_lease} bytes",
                fix="write less to stdout; results belong into /out",
            )
        session.add(LogChunkRow(lease=lease_id, seq=seq, data=data))
    control.bell.ring(f"logs:{lease_id}")
