"""Numbers for Prometheus: totals only, no tenant, lease or token among the labels."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from attestation.log.quorum import WitnessAnswer
from sandbox.lifecycle import LeaseState


class Metrics:
    """The counters of one control plane, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("sealrig_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry)
        self.seconds = Histogram("sealrig_http_request_seconds", "Time to answer, without long polls.", ["route"], registry=self.registry)
        self.upload_bytes = Counter("sealrig_upload_bytes", "Bytes received by uploads.", registry=self.registry)
        self.transitions = Counter("sealrig_lease_transitions", "Changes of state.", ["state"], registry=self.registry)
        self.leases = Gauge("sealrig_leases", "Leases by state.", ["state"], registry=self.registry)
        self.nodes = Gauge("sealrig_nodes", "Nodes by state.", ["state"], registry=self.registry)
        self.log_pending = Gauge("sealrig_log_pending", "Events that are not in the audit log yet.", registry=self.registry)
        self.log_size = Gauge("sealrig_log_entries", "Entries in the audit log.", registry=self.registry)
        self.log_published = Gauge("sealrig_log_published", "Entries below the published checkpoint.", registry=self.registry)
        self.log_waiting = Gauge("sealrig_log_unpublished_seconds", "How long entries wait for witnesses.", registry=self.registry)
        self.witnesses = Gauge("sealrig_log_witness_ok", "Whether a witness cosigned when last asked.", ["witness"], registry=self.registry)

    def note_log(self, published: int, waiting: float, witnesses: Mapping[str, WitnessAnswer]) -> None:
        """Take how far the log is published, and how its witnesses (by their names in the policy) answered last."""
        self.log_published.set(published)
        self.log_waiting.set(waiting)
        for name, answer in witnesses.items():
            self.witnesses.labels(name).set(0 if answer.problem else 1)

    def render(self, leases: dict[str, int], nodes: dict[str, int], pending: int, size: int) -> bytes:
        """Return the text form with the counts as the database has them now."""
        for state in LeaseState:
            self.leases.labels(state.value).set(leases.get(state.value, 0))
        for name in ("ready", "quarantined", "stale"):
            self.nodes.labels(name).set(nodes.get(name, 0))
        self.log_pending.set(pending)
        self.log_size.set(size)
        return generate_latest(self.registry)
