"""A node's signed reports on one lease, sent in order, without ever holding the lease up."""

from __future__ import annotations

import queue
import threading
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog

from attestation.canonical import canonical_json
from attestation.incident import INCIDENT_PAYLOAD_TYPE
from attestation.signing import SigningKey, b64encode, sign_envelope
from sandbox.errors import AccessError, SealrigError, ServerError
from sandbox.wire import REPORT_PAYLOAD_TYPE, DocumentKind, LeaseInfo, NodeReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from attestation.incident import Incident
    from attestation.signing import Envelope
    from sandbox.lifecycle import LeaseState, Outcome
    from sandbox.node.client import ControlClient

_log = structlog.get_logger("sealrig.node")
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)


class Reporter:
    """Sends the reports of one lease from a thread of its own, trying again for as long as the control plane does not answer.

    A token that is not accepted counts as no answer: an operator may put a new one in its place, and a lease goes on meanwhile.
    """

    def __init__(self, client: ControlClient, key: SigningKey, lease: str) -> None:
        """``refused`` is set when the control plane understood a report and said no."""
        self._client, self._key, self._lease = client, key, lease
        self._queue: queue.Queue[tuple[Callable[[], LeaseInfo], bool] | None] = queue.Queue()
        self.refused: SealrigError | None = None
        self.answer: LeaseInfo | None = None
        self._idle = threading.Condition()
        self._open = 0
        self._stop = threading.Event()
        self._unanswered = False
        self._thread = threading.Thread(target=self._run, name=f"report-{lease[-8:]}", daemon=True)
        self._thread.start()

    def send(
        self,
        state: LeaseState,
        *,
        detail: str = "",
        outcome: Outcome | None = None,
        exit_code: int | None = None,
        result: str | None = None,
        documents: Mapping[DocumentKind, bytes] | None = None,
    ) -> Envelope:
        """Queue one report; return its envelope."""
        report = NodeReport(
            lease=self._lease,
            node=self._client.node,
            state=state,
            at=datetime.now(UTC),
            detail=detail[:2000],
            outcome=outcome,
            exit_code=exit_code,
            result=result,
            documents={kind: b64encode(data) for kind, data in (documents or {}).items()},
        )
        envelope = sign_envelope(canonical_json(report.model_dump(mode="json")), REPORT_PAYLOAD_TYPE, self._key)
        self._put(partial(self._client.report, self._lease, envelope))
        return envelope

    def tell(self, incident: Incident) -> None:
        """Queue one incident; that it is refused holds nothing up."""
        self._put(
            partial(self._client.incident, self._lease, sign_envelope(incident.to_payload(), INCIDENT_PAYLOAD_TYPE, self._key)),
            counts=False,
        )

    def _put(self, sending: Callable[[], LeaseInfo], *, counts: bool = True) -> None:
        with self._idle:
            self._open += 1
        self._queue.put((sending, counts))

    def settled(self) -> LeaseInfo | None:
        """Wait until everything queued so far was answered; return the last answer, or None where it was no, or we were stopped."""
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0 or self._stop.is_set())
        return None if self.refused is not None or self._stop.is_set() else self.answer

    def finish(self, seconds: float | None = None) -> bool:
        """Wait until everything queued was answered; say whether it was, and accepted."""
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive() and self.refused is None and not self._unanswered

    def stop(self) -> None:
        """Stop trying."""
        self._stop.set()
        with self._idle:
            self._idle.notify_all()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            sending, counts = item
            attempt = 0
            while not self._stop.is_set():
                try:
                    answer = sending()
                    if counts:
                        self.answer, self.refused = answer, None
                    break
                except (ServerError, AccessError):
                    self._stop.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                    attempt += 1
                except SealrigError as error:
                    # A later report may still be taken (a lease that was cancelled meanwhile goes on with wiping), so go on with the next.
                    self.refused = error if counts else self.refused
                    _log.warning("report refused", lease=self._lease, reason=error.message)
                    break
            else:
                self._unanswered = True  # stopped: nobody knows of this report
            with self._idle:
                self._open -= 1
                self._idle.notify_all()
