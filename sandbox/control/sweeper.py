"""What time does: leases that nobody takes or releases expire, silent nodes are noted, half uploads go, the outbox is pumped.

It never ends a lease because a node is silent: loss of contact alone ends nothing.
"""

from __future__ import annotations

import threading
from datetime import timedelta

import structlog
from sqlalchemy import select, update

from attestation.errors import AttestationError
from sandbox.control import uploads
from sandbox.control.bundles import collect_garbage
from sandbox.control.core import Control
from sandbox.control.database.models import LeaseRow, NodeRow
from sandbox.control.story import expire
from sandbox.errors import SealrigError

EVERY_SECONDS = 2.0
STORE_EVERY = 30
"""Rounds between looks at uploads and the store."""
logger = structlog.get_logger("sealrig.control")


class Sweeper:
    """One thread that looks around every ``EVERY_SECONDS`` until it is stopped."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the round that is under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rounds = 0
        while not self._stop.wait(EVERY_SECONDS):
            try:
                sweep_leases(self._control)
                sweep_nodes(self._control)
                self._control.journal.settle()
                if rounds % STORE_EVERY == 0:
                    uploads.sweep(self._control)
                    collect_garbage(self._control)
            except (SealrigError, AttestationError, OSError) as error:
                logger.warning("sweep failed; the next round tries again", error=type(error).__name__, reason=str(error)[:300])
            rounds += 1


def sweep_leases(control: Control) -> None:
    """Expire what is over its time."""
    with control.database.read() as session:
        due = list(session.scalars(select(LeaseRow.id).where(LeaseRow.deadline.is_not(None), LeaseRow.deadline <= control.now())))
    for lease in due:
        expire(control, lease)


def sweep_nodes(control: Control) -> None:
    """Note the nodes that have not been heard of for a while."""
    since = control.now() - timedelta(seconds=control.settings.limits.stale_seconds)
    silent = (NodeRow.last_seen < since, NodeRow.stale.is_(False))
    with control.database.read() as session:
        due = list(session.scalars(select(NodeRow.id).where(*silent)))
    if due:
        with control.database.write() as session:
            session.execute(update(NodeRow).where(*silent).values(stale=True))
        logger.warning("nodes not heard of", nodes=due)
