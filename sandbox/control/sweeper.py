"""What time does: leases that nobody takes or releases expire, silent nodes are noted, half uploads go, the outbox is pumped.

It never ends a lease because a node is silent: loss of contact alone ends nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import structlog
from sqlalchemy import select, update

from attestation.errors import AttestationError
from sandbox.control.bundles import collect_garbage
from sandbox.control.core import Control
from sandbox.control.database.models import LeaseRow, NodeRow
from sandbox.control.nodes import CHANGED
from sandbox.control.story import expire
from sandbox.control.upload_sweep import sweep_uploads
from sandbox.errors import SealrigError

EVERY_SECONDS = 2.0
STORE_EVERY_SECONDS = 60.0
"""Between looks at uploads and the store, which have a thread of their own: handing a large bundle over may take an hour."""
STOP_SECONDS = 10.0
"""How long the end waits for such a look. Cutting it short is as safe as a crash: the next start goes on with it."""
logger = structlog.get_logger("sealrig.control")


class Sweeper:
    """Two threads that look around until they are stopped: one after leases and nodes, one after uploads and the store."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._stop = threading.Event()
        self._often = self._thread("sweeper", EVERY_SECONDS, sweep_leases, sweep_nodes, _settle)
        self._seldom = self._thread("store-sweeper", STORE_EVERY_SECONDS, sweep_uploads, collect_garbage)

    def start(self) -> None:
        """Begin."""
        self._often.start()
        self._seldom.start()

    def stop(self) -> None:
        """End, and wait for the rounds that are under way; for one at the store, ``STOP_SECONDS`` at most."""
        self._stop.set()
        self._often.join()
        self._seldom.join(STOP_SECONDS)

    def _thread(self, name: str, pause: float, *duties: Callable[[Control], None]) -> threading.Thread:
        return threading.Thread(target=self._run, args=(pause, duties), name=name, daemon=True)

    def _run(self, pause: float, duties: tuple[Callable[[Control], None], ...]) -> None:
        wait = EVERY_SECONDS
        while not self._stop.wait(wait):
            for duty in duties:
                try:
                    duty(self._control)
                except (SealrigError, AttestationError, OSError) as error:
                    logger.warning("sweep failed; the next round tries again", error=type(error).__name__, reason=str(error)[:300])
            wait = pause


def _settle(control: Control) -> None:
    control.journal.settle()


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
        control.bell.ring(CHANGED)
        logger.warning("nodes not heard of", nodes=due)
