"""A working control plane in memory, over httpx's mock transport: bundles by tus, leases, and faults to plant."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from blake3 import blake3

from attestation.canonical import canonical_json, sha256_digest
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.log.note import NoteVerifier
from attestation.signing import Envelope, SigningKey, b64encode, sign_envelope
from attestation.trust import Trust
from sandbox.customer.client import Client
from sandbox.job import JOB_PAYLOAD_TYPE, JobStatement, job_from_tree
from sandbox.model import new_id
from sandbox.sealing.keys import Identity, LeaseKey

URL = "http://127.0.0.1:1"
IMAGE = "sha256:" + "c" * 64
POLICY = b"apiVersion: sealrig/v1\nkind: Policy\n"
NODE = "node-" + "0b" * 16
NODE_KEY = SigningKey(b"\x11" * 32)
LOG_KEY = NoteVerifier("log.example", SigningKey(b"\x33" * 32).public).text
RUNNER = "sha256:" + "d" * 64


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def problem(status: int, code: str, detail: str = "no", **details: object) -> httpx.Response:
    body = {"title": code, "status": status, "code": code, "detail": detail, "details": details}
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json"})


@dataclass
class Upload:
    digest: str
    length: int
    data: bytearray = field(default_factory=bytearray)
    joined: str = ""


@dataclass
class FakeControl:
    """``fault`` may answer or raise before the control plane does; ``cut_after`` bytes of each PATCH arrive, then the line breaks.

    ``held`` says of each question for waiting leases whether a real one would have been held open.
    """

    bundles: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    leases: dict[str, dict[str, Any]] = field(default_factory=dict)
    evidence: dict[str, dict[str, Any]] = field(default_factory=dict)
    grants: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    refusals: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    nonces: dict[str, str] = field(default_factory=dict)
    receipts: dict[str, bytes] = field(default_factory=dict)
    jobs: list[Envelope] = field(default_factory=list)
    logs: list[bytes] = field(default_factory=list)
    log_final: bool = False
    nodes: list[dict[str, Any]] = field(default_factory=list)
    policy: bytes = POLICY
    fault: Callable[[httpx.Request], httpx.Response | None] | None = None
    cut_after: int | None = None
    seen: list[tuple[str, str]] = field(default_factory=list)
    received: int = 0
    held: list[bool] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    extensions: str = "creation,concatenation"
    counting: threading.Lock = field(default_factory=threading.Lock)

    def client(self, *, patience: float = 0.5) -> Client:
        return Client(URL, "secret", transport=httpx.MockTransport(self.handle), patience=patience, sleep=self.slept.append)

    def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.seen.append((request.method, path))
        if self.fault is not None and (answer := self.fault(request)) is not None:
            return answer
        for method, pattern, action in _ROUTES:
            if method == request.method and (match := re.fullmatch(pattern, path)):
                return action(self, request, *match.groups())
        return problem(404, "not-found")

    # ---- tus

    def create(self, request: httpx.Request) -> httpx.Response:
        concat = request.headers.get("upload-concat", "")
        name = f"u{len(self.uploads)}"
        if concat == "partial":
            self.uploads[name] = Upload("", int(request.headers["upload-length"]))
            return httpx.Response(201, headers={"location": f"/v1/uploads/{name}"})
        metadata = dict(pair.split(" ") for pair in request.headers["upload-metadata"].split(","))
        digest = base64.b64decode(metadata["digest"]).decode()
        if concat:
            return self.join(name, digest, concat)
        self.uploads[name] = Upload(digest, int(request.headers["upload-length"]))
        return httpx.Response(201, headers={"location": f"/v1/uploads/{name}"})

    def join(self, name: str, digest: str, concat: str) -> httpx.Response:
        if not any(upload.joined == concat for upload in self.uploads.values()):
            parts = [url.rpartition("/")[2] for url in concat.removeprefix("final;").split()]
            if not all(part in self.uploads for part in parts):
                return problem(404, "not-found", "no such upload")
            data = b"".join(bytes(self.uploads.pop(part).data) for part in parts)
            if f"blake3:{blake3(data).hexdigest()}" != digest:
                return problem(422, "bundle-tampered", "another digest")
            self.uploads[name] = Upload(digest, len(data), bytearray(data), concat)
            self.bundles[digest] = data
        return httpx.Response(201, headers={"location": f"/v1/uploads/{name}"})

    def head(self, _request: httpx.Request, name: str) -> httpx.Response:
        if name not in self.uploads:
            return httpx.Response(404)
        upload = self.uploads[name]
        return httpx.Response(200, headers={"upload-offset": str(len(upload.data)), "upload-length": str(upload.length)})

    def patch(self, request: httpx.Request, name: str) -> httpx.Response:
        upload = self.uploads[name]
        if int(request.headers["upload-offset"]) != len(upload.data):
            return problem(409, "invalid-state", "another offset")
        for chunk in request.stream:  # type: ignore[union-attr]  # the client streams
            room = len(chunk) if self.cut_after is None else self.cut_after
            upload.data += chunk[:room]
            with self.counting:
                self.received += len(chunk[:room])
            if room < len(chunk):
                self.cut_after = None
                raise httpx.ReadError("connection reset", request=request)
            self.cut_after = None if self.cut_after is None else self.cut_after - len(chunk)
        if upload.digest and len(upload.data) == upload.length:
            if f"blake3:{blake3(upload.data).hexdigest()}" != upload.digest:
                return problem(422, "bundle-tampered", "another digest")
            self.bundles[upload.digest] = bytes(upload.data)
        return httpx.Response(204, headers={"upload-offset": str(len(upload.data))})

    # ---- bundles

    def bundle(self, _request: httpx.Request, digest: str) -> httpx.Response:
        if digest not in self.bundles:
            return problem(404, "not-found")
        return httpx.Response(200, json={"digest": digest, "size": len(self.bundles[digest]), "created_at": now_text()})

    def content(self, request: httpx.Request, digest: str) -> httpx.Response:
        start = int(request.headers["range"][6:-1]) if "range" in request.headers else 0
        return httpx.Response(206 if start else 200, content=self.bundles[digest][start:])

    # ---- people and leases

    def submit(self, request: httpx.Request) -> httpx.Response:
        envelope = Envelope.from_json(json.loads(request.content)["job"])
        self.jobs.append(envelope)
        lease = json.loads(envelope.payload)["lease"]
        self.leases.setdefault(lease, self.info(lease, "admitted", envelope))
        return httpx.Response(201, json=self.leases[lease])

    def info(self, lease: str, state: str, job: Envelope) -> dict[str, Any]:
        return {
            "id": lease, "tenant": "lab", "name": "test", "state": state, "image": IMAGE, "job_digest": job.digest,
            "policy_digest": sha256_digest(self.policy), "created_at": now_text(), "updated_at": now_text(),
        }  # fmt: skip

    def show_logs(self, request: httpx.Request, _lease: str) -> httpx.Response:
        after = int(request.url.params["after"])
        chunks = [{"seq": seq, "data": b64encode(data)} for seq, data in enumerate(self.logs)][after : after + 2]
        return httpx.Response(200, json={"chunks": chunks, "final": self.log_final and after + len(chunks) >= len(self.logs)})


def _json(body: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def _listed(control: FakeControl, request: httpx.Request) -> httpx.Response:
    state = request.url.params.get("state")
    return _json([info for info in control.leases.values() if state in (None, info["state"])])


def _waiting(control: FakeControl, request: httpx.Request) -> httpx.Response:
    found = [info for info in control.leases.values() if info["state"] in ("placed", "attested")]
    mark = sha256_digest(canonical_json([[info["id"], info["state"]] for info in found]))
    control.held.append(mark == request.url.params["mark"])
    return _json({"mark": mark, "leases": found, "added": "by a newer server"})


def _policy(control: FakeControl, _request: httpx.Request) -> httpx.Response:
    return _json({"tenant": "lab", "name": "test", "digest": sha256_digest(control.policy), "raw": b64encode(control.policy)})


def _lease(control: FakeControl, _request: httpx.Request, lease: str) -> httpx.Response:
    return _json(control.leases[lease]) if lease in control.leases else problem(404, "not-found")


def _nonce(control: FakeControl, request: httpx.Request, lease: str) -> httpx.Response:
    nonce = json.loads(request.content)["nonce"]
    if control.nonces.setdefault(lease, nonce) != nonce:
        return problem(409, "invalid-state", "another nonce")
    return _json(control.leases[lease])


def _grant(control: FakeControl, request: httpx.Request, lease: str) -> httpx.Response:
    control.grants.setdefault(lease, []).append(json.loads(request.content)["grant"])
    return _json(control.leases[lease])


def _refusal(control: FakeControl, request: httpx.Request, lease: str) -> httpx.Response:
    control.refusals.setdefault(lease, []).append(json.loads(request.content))
    return _json(control.leases[lease])


def _receipt(control: FakeControl, _request: httpx.Request, lease: str) -> httpx.Response:
    return httpx.Response(200, content=control.receipts[lease]) if lease in control.receipts else problem(404, "not-found")


_LEASE = r"/v1/leases/(lease-[0-9a-f]{32})"
_ROUTES: tuple[tuple[str, str, Callable[..., httpx.Response]], ...] = (
    ("OPTIONS", "/v1/uploads", lambda control, _r: httpx.Response(204, headers={"tus-extension": control.extensions})),
    ("POST", "/v1/uploads", FakeControl.create),
    ("HEAD", "/v1/uploads/([^/]+)", FakeControl.head),
    ("PATCH", "/v1/uploads/([^/]+)", FakeControl.patch),
    ("GET", "/v1/bundles/([^/]+)", FakeControl.bundle),
    ("GET", "/v1/bundles/([^/]+)/content", FakeControl.content),
    ("GET", "/v1/whoami", lambda _c, _r: _json({"token": "token-" + "0" * 32, "role": "customer", "tenant": "lab"})),
    ("GET", "/v1/policy", _policy),
    ("POST", "/v1/identities", lambda _c, _r: _json({}, 201)),
    ("GET", "/v1/nodes", lambda control, _r: _json(control.nodes)),
    ("GET", "/log/vkey", lambda _c, _r: httpx.Response(200, text=f"{LOG_KEY}\n")),
    ("POST", "/v1/leases", FakeControl.submit),
    ("GET", "/v1/leases", _listed),
    ("GET", "/v1/leases/waiting", _waiting),
    ("GET", _LEASE, _lease),
    ("PUT", f"{_LEASE}/nonce", _nonce),
    ("GET", f"{_LEASE}/evidence", lambda control, _r, lease: _json(control.evidence[lease])),
    ("POST", f"{_LEASE}/grant", _grant),
    ("POST", f"{_LEASE}/refusal", _refusal),
    ("GET", f"{_LEASE}/logs", FakeControl.show_logs),
    ("GET", f"{_LEASE}/receipt", _receipt),
)


def trust(**changes: Any) -> Trust:
    spec = {
        "level": "software",
        "nodes": {NODE: NODE_KEY.public.text}, "log": {"origin": "log.example", "key": LOG_KEY}, "interlock": "claimed",
    }  # fmt: skip
    return Trust.from_tree({"apiVersion": "sealrig/v1", "kind": "Trust", "spec": spec | changes})


def statement(identity: Identity, bundles: tuple[str, ...] = (), *, lease: str = "", **spec: Any) -> JobStatement:
    tree = {
        "apiVersion": "sealrig/v1",
        "kind": "Job",
        "metadata": {"name": "test"},
        "spec": {
            "image": IMAGE, "command": ["/bin/true", "x"], "env": {"BATCH": "8"},
            "inputs": [{"bundle": bundle, "path": f"/in/{number}"} for number, bundle in enumerate(bundles)], **spec,
        },
    }  # fmt: skip
    return JobStatement(
        lease=lease or new_id("lease"), tenant="lab", customer=identity.public.text, policy_digest=sha256_digest(POLICY),
        submitted_at=datetime.now(UTC), job=job_from_tree(tree),
    )  # fmt: skip


def sign(job: JobStatement, identity: Identity) -> Envelope:
    return sign_envelope(canonical_json(job.model_dump(mode="json", by_alias=True)), JOB_PAYLOAD_TYPE, identity.signing_key)


def plan_tree(job: JobStatement, **changes: Any) -> dict[str, Any]:
    spec = job.job.spec
    binds = [{"source": f"/s/{number}", "target": item.path, "read_only": True} for number, item in enumerate(spec.inputs)]
    binds += [
        {"source": "/s/out", "target": spec.output.path, "read_only": False},
        {"source": "/s/tmp", "target": "/tmp", "read_only": False},
    ]
    egress = [] if spec.network == "none" else list(spec.network.egress)
    return {
        "lease": job.lease, "image_reference": spec.image, "command": list(spec.command), "env": ["PATH=/bin", "BATCH=8"],
        "binds": binds,
        "network": "egress" if egress else "none", "egress": egress, "runtime": "runc", "lease_seconds": spec.lease.duration,
        "read_only": True,
        "no_new_privileges": True, "cap_drop": ["ALL"], "log_driver": "none", "ipc": "private", "pid": "", "core": 0,
    } | changes  # fmt: skip


def plan_bytes(job: JobStatement, **changes: Any) -> bytes:
    return canonical_json({"v": 1, "plan": plan_tree(job, **changes)})


def make_evidence(job: JobStatement, envelope: Envelope, nonce: str, lease_key: LeaseKey, plan: bytes, **changes: Any) -> Evidence:
    fields = {
        "lease": job.lease, "node": NODE, "node_key": NODE_KEY.public.text, "nonce": nonce,
        "lease_public_key": b64encode(lease_key.public),
        "job_digest": envelope.digest, "image": IMAGE, "policy_digest": sha256_digest(POLICY), "plan_digest": sha256_digest(plan),
        "runner_digest": RUNNER, "runner_version": "0.1.0", "previous_wipes": {"node": None}, "made_at": datetime.now(UTC),
    } | changes  # fmt: skip
    return Evidence(**fields)  # type: ignore[arg-type]


def sign_evidence(evidence: Evidence, key: SigningKey = NODE_KEY) -> Envelope:
    return sign_envelope(evidence.to_payload(), EVIDENCE_PAYLOAD_TYPE, key)
