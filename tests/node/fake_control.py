"""A control plane in memory that follows the same lifecycle: enough of HTTP for a node, and the agent's part played at once."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx

from attestation.canonical import canonical_json, sha256_digest
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.grant import GRANT_PAYLOAD_TYPE, Grant, WrappedKey, grant_info
from attestation.incident import INCIDENT_PAYLOAD_TYPE, Incident
from attestation.signing import Envelope, VerifyKey, b64decode, b64encode, sign_envelope
from policies.loader import load_policy
from sandbox.job import JOB_PAYLOAD_TYPE, JobStatement, job_from_tree, parse_statement
from sandbox.lifecycle import TERMINAL, LeaseState, Outcome, check_transition, end_state
from sandbox.model import new_id
from sandbox.sealing.format import read_header
from sandbox.sealing.keys import Identity
from sandbox.sealing.public import wrap_to_kem_key
from sandbox.wire import REPORT_PAYLOAD_TYPE, Assignment, NodeReport, PollAnswer
from tests.patience import PATIENCE

POLICY = b"""\
apiVersion: sealrig/v1
kind: Policy
metadata: {name: test}
spec:
  images: {allow: ["sha256:*"]}
  resources: {memory: {max: 4Gi}, scratch: {max: 8Gi}, cpus: {max: 2}, pids: {max: 4096}, shm: {max: 1Gi}}
  lease: {maxDuration: 1h}
"""


@dataclass
class FakeLease:
    """One lease as the fake control plane has it."""

    id: str
    job: Envelope
    policy: bytes
    keys: dict[str, bytes]
    grant_at_once: bool = True
    state: LeaseState = LeaseState.PLACED
    history: list[tuple[LeaseState, int]] = field(default_factory=lambda: [(LeaseState.PLACED, 0)])
    nonce: str | None = field(default_factory=lambda: os.urandom(32).hex())
    grant: Envelope | None = None
    end: Outcome | None = None
    outcome: Outcome | None = None
    exit_code: int | None = None
    detail: str = ""
    result: str | None = None
    documents: dict[str, bytes] = field(default_factory=dict)
    logs: dict[int, bytes] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)


class FakeControl:
    """Use ``transport`` with ``ControlClient``. ``down`` makes every call fail as a network does."""

    def __init__(self, customer: Identity, *, policy: bytes = POLICY) -> None:
        self.customer = customer
        self.policy = policy
        self.leases: dict[str, FakeLease] = {}
        self.bundles: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, int, bytearray]] = {}
        self.node_key: VerifyKey | None = None
        self.node_state = "ready"
        self.down = False
        self.index = 10
        self.asked: list[str] = []
        self.gpus_told: list[dict[str, object]] = []
        self.headers: dict[str, str] = {}
        self.changed = threading.Condition()
        self.transport = httpx.MockTransport(self.handle)

    def submit(self, spec: dict[str, object], keys: dict[str, bytes] | None = None, *, grant_at_once: bool = True) -> FakeLease:
        """Sign and place a job; ``keys`` are data keys by bundle digest."""
        job = job_from_tree({"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "test"}, "spec": spec})
        lease = new_id("lease")
        statement = JobStatement(
            lease=lease,
            tenant="acme",
            customer=self.customer.public.text,
            policy_digest=load_policy(self.policy).digest,
            submitted_at=datetime.now(UTC),
            job=job,
        )
        payload = canonical_json(statement.model_dump(mode="json", by_alias=True))
        envelope = sign_envelope(payload, JOB_PAYLOAD_TYPE, self.customer.signing_key)
        with self.changed:
            self.leases[lease] = FakeLease(lease, envelope, self.policy, keys or {}, grant_at_once)
            self.changed.notify_all()
        return self.leases[lease]

    def wait(self, lease: FakeLease, *states: LeaseState, seconds: float = 30) -> LeaseState:
        """Wait until a lease is in one of ``states`` (any terminal one by default)."""
        wanted = set(states) or set(TERMINAL)
        with self.changed:
            if not self.changed.wait_for(lambda: lease.state in wanted, seconds * PATIENCE):
                raise AssertionError(f"{lease.id} is {lease.state} after {seconds} s, wanted {wanted}; {lease.detail}")
        return lease.state

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer one call."""
        if self.down:
            raise httpx.ConnectError("down", request=request)
        path, body = request.url.path, request.read()
        with self.changed:
            for pattern, answer in self._routes():
                match = re.fullmatch(pattern, f"{request.method} {path}")
                if match:
                    return answer(request, body, *match.groups())
        return self._problem(404, "not-found", path)

    def _routes(self):
        return (
            (r"PUT /v1/nodes/([^/]+)", self._register),
            (r"POST /v1/nodes/([^/]+)/poll", self._poll),
            (r"POST /v1/nodes/([^/]+)/leases/([^/]+)/report", self._report),
            (r"POST /v1/nodes/([^/]+)/leases/([^/]+)/incidents", self._incident),
            (r"PUT /v1/nodes/([^/]+)/leases/([^/]+)/logs/(\d+)", self._log),
            (r"GET /v1/bundles/([^/]+)/content", self._content),
            (r"POST /v1/uploads", self._create),
            (r"PATCH /v1/uploads/(\w+)", self._patch),
            (r"HEAD /v1/uploads/(\w+)", self._head),
        )

    @staticmethod
    def _problem(status: int, code: str, detail: str) -> httpx.Response:
        return httpx.Response(
            status, json={"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail, "details": {}}
        )

    def _register(self, request, body, node):
        tree = json.loads(body)
        self.node_key = VerifyKey.from_text(tree["public_key"])
        info = {**tree, "id": node, "state": self.node_state, "last_seen": datetime.now(UTC).isoformat()}
        return httpx.Response(200, json=info)

    def _poll(self, request, body, node):
        tree = json.loads(body)
        self.gpus_told += tree.get("gpus", ())
        deadline = time.monotonic() + min(tree["wait"], 0.15)
        self.changed.wait(max(0, deadline - time.monotonic()))
        live = [lease for lease in self.leases.values() if lease.state not in TERMINAL]
        rows = [
            Assignment(
                lease=lease.id,
                state=lease.state,
                job=lease.job.to_json(),
                policy=b64encode(lease.policy),
                nonce=lease.nonce,
                grant=lease.grant.to_json() if lease.grant else None,
                end=lease.end,
            )
            for lease in live
            if tree["accepting"] or lease.id in tree["held"] or lease.state != LeaseState.PLACED
        ]
        return httpx.Response(200, content=PollAnswer(assignments=tuple(rows), node_state=self.node_state).model_dump_json())

    def _report(self, request, body, node, lease_id):
        lease = self.leases[lease_id]
        report = NodeReport.model_validate_json(Envelope.from_json(json.loads(body)["report"]).verify(REPORT_PAYLOAD_TYPE, [self.node_key]))
        if report.state != lease.state:
            try:
                check_transition(lease_id, lease.state, report.state)
                self._move(lease, report)
            except Exception as error:  # noqa: BLE001  (any refusal is a refusal)
                return self._problem(409, "invalid-state", str(error))
        return httpx.Response(200, content=json.dumps(self._info(lease, node)))

    @staticmethod
    def _info(lease, node):
        return {
            "id": lease.id,
            "tenant": "acme",
            "name": "test",
            "state": lease.state,
            "image": "sha256:" + "0" * 64,
            "node": node,
            "outcome": lease.outcome,
            "job_digest": lease.job.digest,
            "policy_digest": sha256_digest(lease.policy),
            "created_at": datetime.now(UTC).isoformat(),
            "updated_at": datetime.now(UTC).isoformat(),
            "history": [{"state": state, "at": datetime.now(UTC).isoformat(), "log_index": index} for state, index in lease.history],
        }

    def _move(self, lease: FakeLease, report: NodeReport) -> None:
        documents = {kind: b64decode(data) for kind, data in report.documents.items()}
        if report.state == LeaseState.WIPING:
            if lease.state not in (LeaseState.PLACED, LeaseState.ATTESTED) and "run" not in documents:
                raise ValueError("wiping without a run record")
            if report.result is not None and report.result not in self.bundles:
                raise ValueError("the result has not arrived")
            lease.outcome, lease.exit_code, lease.detail, lease.result = report.outcome, report.exit_code, report.detail, report.result
        if report.state in TERMINAL:
            proven = json.loads(Envelope.from_bytes(documents["wipe"]).payload)["proven"]
            wanted = end_state(lease.history[-2][0], lease.outcome, proven=proven)
            if wanted != report.state:
                raise ValueError(f"the end should be {wanted}")
            if report.state == LeaseState.QUARANTINED:
                self.node_state = "quarantined"
        lease.documents.update(documents)
        lease.state = report.state
        self.index += 1
        lease.history.append((report.state, self.index))
        if report.state == LeaseState.ATTESTED and lease.grant_at_once:
            self.release(lease)
        self.changed.notify_all()

    def release(self, held: FakeLease, **changes: object) -> None:
        """Play the customer's agent: wrap the keys to the attested lease key."""
        envelope = Envelope.from_bytes(held.documents["evidence"])
        evidence = Evidence.from_payload(envelope.verify(EVIDENCE_PAYLOAD_TYPE, [self.node_key]))
        public = b64decode(evidence.lease_public_key)
        now = datetime.now(UTC)
        fields = {
            "lease": held.id,
            "evidence_digest": envelope.digest,
            "lease_public_key_digest": sha256_digest(public),
            "issued_at": now,
            "expires_at": now + timedelta(minutes=5),
            "keys": tuple(
                WrappedKey(
                    bundle=bundle,
                    header=self.headers.get(bundle) or read_header(self.bundles[bundle]).digest,
                    wrapped=b64encode(wrap_to_kem_key(public, key, grant_info(held.id, envelope.digest, bundle))),
                )
                for bundle, key in held.keys.items()
            ),
        } | changes
        held.grant = sign_envelope(Grant(**fields).to_payload(), GRANT_PAYLOAD_TYPE, self.customer.signing_key)
        held.state = LeaseState.UNLOCKED
        held.history.append((LeaseState.UNLOCKED, self.index))

    def _log(self, request, body, node, lease_id, seq):
        self.leases[lease_id].logs.setdefault(int(seq), body)
        return httpx.Response(204)

    def _incident(self, request, body, node, lease_id):
        envelope = Envelope.from_json(json.loads(body)["incident"])
        self.leases[lease_id].incidents.append(Incident.from_payload(envelope.verify(INCIDENT_PAYLOAD_TYPE, [self.node_key])))
        return httpx.Response(200, content=json.dumps(self._info(self.leases[lease_id], node)))

    def _content(self, request, body, digest):
        data = self.bundles[digest]
        self.asked.append(request.headers.get("Range", ""))
        headers = {"ETag": f'"{digest}"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if match is None:
            return httpx.Response(200, content=data, headers=headers)
        start, stop = int(match[1]), min(len(data), int(match[2]) + 1 if match[2] else len(data))
        if start >= len(data):
            return self._problem(416, "range", "beyond")
        return httpx.Response(206, content=data[start:stop], headers={**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def _create(self, request, body):
        meta = dict(item.split(" ") for item in request.headers["Upload-Metadata"].split(","))
        name = f"u{len(self.uploads)}"
        self.uploads[name] = (base64.b64decode(meta["digest"]).decode(), int(request.headers["Upload-Length"]), bytearray())
        return httpx.Response(201, headers={"Location": f"/v1/uploads/{name}", "Upload-Offset": "0"})

    def _patch(self, request, body, name):
        digest, size, data = self.uploads[name]
        if int(request.headers["Upload-Offset"]) != len(data):
            return self._problem(409, "offset", str(len(data)))
        data += body
        if len(data) == size:
            self.bundles[digest] = bytes(data)
        return httpx.Response(204, headers={"Upload-Offset": str(len(data))})

    def _head(self, request, body, name):
        return httpx.Response(200, headers={"Upload-Offset": str(len(self.uploads[name][2]))})

    def statement(self, lease: FakeLease) -> JobStatement:
        """Return what was signed."""
        return parse_statement(lease.job.payload)
