"""The people and the node around a control plane, with real keys, over any HTTP client."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from attestation.canonical import canonical_json, sha256_digest
from attestation.certificate import CERTIFICATE_PAYLOAD_TYPE, build_certificate
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.grant import GRANT_PAYLOAD_TYPE, Grant, WrappedKey
from attestation.run import RUN_PAYLOAD_TYPE, RunRecord
from attestation.signing import Envelope, SigningKey, b64decode, b64encode, sign_envelope
from attestation.wipe import WIPE_PAYLOAD_TYPE, Medium, WipeReport, WipeStep
from sandbox.job import JOB_PAYLOAD_TYPE
from sandbox.model import new_id
from sandbox.sealing.bundle import seal
from sandbox.sealing.hashing import bundle_digest
from sandbox.sealing.keys import Identity
from sandbox.wire import REPORT_PAYLOAD_TYPE

IMAGE = "sha256:" + "c" * 64
POLICY = b"""\
apiVersion: sealrig/v1
kind: Policy
metadata: {name: test}
spec:
  images: {allow: ["sha256:*"]}
  resources: {memory: {max: 4Gi}, scratch: {max: 8Gi}, cpus: {max: 2}, pids: {max: 4096}, shm: {max: 1Gi}}
  lease: {maxDuration: 1h}
"""
TUS = {"Tus-Resumable": "1.0.0"}


def code(answer: httpx.Response) -> str:
    """The stable code of a refusal."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    return str(body["code"])


def ok(answer: httpx.Response) -> Any:
    """The JSON of an answer that says yes."""
    assert answer.is_success, f"{answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


@dataclass
class Person:
    """Somebody with a token."""

    http: httpx.Client
    token: str
    tenant: str = ""

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", **arguments.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.call("GET", path, **arguments)

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.call("POST", path, json=body)

    def put(self, path: str, body: Any = None) -> httpx.Response:
        return self.call("PUT", path, json=body)

    def delete(self, path: str) -> httpx.Response:
        return self.call("DELETE", path)

    # ---- tus

    def start_upload(self, digest: str, size: int, **metadata: str) -> httpx.Response:
        pairs = {"digest": digest, **metadata}
        text = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())
        return self.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": str(size), "Upload-Metadata": text})

    def send(self, place: str, offset: int, data: bytes, **headers: str) -> httpx.Response:
        sent = {**TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream", **headers}
        return self.call("PATCH", place, headers=sent, content=data)

    def upload(self, raw: bytes, digest: str, **metadata: str) -> str:
        place = self.start_upload(digest, len(raw), **metadata)
        assert place.status_code == 201, place.text
        answer = self.send(place.headers["location"], 0, raw)
        assert answer.status_code == 204, answer.text
        assert answer.headers["upload-offset"] == str(len(raw))
        return digest


@dataclass
class Bundle:
    raw: bytes
    digest: str


def make_bundle(folder: Path, identity: Identity, content: bytes = b"weights") -> Bundle:
    """A real sealed bundle."""
    source = folder / f"src-{secrets.token_hex(4)}"
    source.mkdir()
    (source / "file").write_bytes(content)
    out = folder / f"{source.name}.sealed"
    seal([source], out, recipients=[identity.public], signer=identity.signing_key)
    return Bundle(out.read_bytes(), bundle_digest(out))


@dataclass
class Customer(Person):
    """A customer with an identity."""

    identity: Identity = field(default_factory=Identity.generate)

    def enrol(self) -> Customer:
        ok(self.post("/v1/identities", {"identity": self.identity.public.text}))
        return self

    def job(self, inputs: list[str] | None = None, lease: str = "", **changes: Any) -> Envelope:
        spec: dict[str, Any] = {"image": IMAGE, "command": ["/bin/true"], "inputs": [
            {"bundle": digest, "path": f"/in/{number}"} for number, digest in enumerate(inputs or [])
        ], "output": {"path": "/out", "maxSize": 2**20}, **changes.pop("spec", {})}  # fmt: skip
        tree = {
            "v": 1, "lease": lease or new_id("lease"), "tenant": self.tenant, "customer": self.identity.public.text,
            "policyDigest": sha256_digest(POLICY), "submittedAt": _now(),
            "job": {"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "test"}, "spec": spec},
        } | changes  # fmt: skip
        return sign_envelope(canonical_json(tree), JOB_PAYLOAD_TYPE, self.identity.signing_key)

    def submit(self, job: Envelope) -> httpx.Response:
        return self.post("/v1/leases", {"job": job.to_json()})

    def lease(self, lease: str) -> Any:
        return ok(self.get(f"/v1/leases/{lease}"))

    def grant(self, lease: str, /, **changes: Any) -> Envelope:
        info = ok(self.get(f"/v1/leases/{lease}/evidence"))
        envelope = Envelope.from_json(info["evidence"])
        evidence = Evidence.from_payload(envelope.payload)
        fields: dict[str, Any] = {
            "lease": lease,
            "evidence_digest": envelope.digest,
            "lease_public_key_digest": sha256_digest(b64decode(evidence.lease_public_key)),
            "keys": tuple(
                WrappedKey(bundle=digest, header=sha256_digest(b"header"), wrapped=b64encode(b"wrapped"))
                for digest in changes.pop("bundles", ())
            ),
            "issued_at": datetime.now(UTC),
            "expires_at": datetime.now(UTC) + timedelta(hours=1),
        } | changes
        return sign_envelope(Grant(**fields).to_payload(), GRANT_PAYLOAD_TYPE, self.identity.signing_key)

    def unlock(self, lease: str, *bundles: str) -> httpx.Response:
        return self.post(f"/v1/leases/{lease}/grant", {"grant": self.grant(lease, bundles=bundles).to_json()})


@dataclass
class Node(Person):
    """A node that says what it should; tests change one part at a time."""

    id: str = field(default_factory=lambda: new_id("node"))
    key: SigningKey = field(default_factory=SigningKey.generate)
    documents: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def register(self, **capacity: Any) -> httpx.Response:
        whole = {"slots": 2, "cpus": 4, "memory": 8 * 2**30, "scratch": 32 * 2**30, **capacity}
        return self.put(f"/v1/nodes/{self.id}", {"public_key": self.key.public.text, "version": "1", "capacity": whole})

    def poll(self, held: tuple[str, ...] = (), *, accepting: bool = True, wait: float = 0, **more: Any) -> Any:
        return ok(self.post(f"/v1/nodes/{self.id}/poll", {"held": list(held), "accepting": accepting, "wait": wait, **more}))

    def assignment(self, lease: str) -> Any:
        return next(each for each in self.poll()["assignments"] if each["lease"] == lease)

    def report(self, lease: str, state: str, *, key: SigningKey | None = None, **fields: Any) -> httpx.Response:
        return self.send_report(lease, self.signed_report(lease, state, key=key, **fields))

    def send_report(self, lease: str, envelope: Envelope) -> httpx.Response:
        return self.post(f"/v1/nodes/{self.id}/leases/{lease}/report", {"report": envelope.to_json()})

    def signed_report(self, lease: str, state: str, *, key: SigningKey | None = None, **fields: Any) -> Envelope:
        documents = {kind: b64encode(data) for kind, data in fields.pop("documents", {}).items()}
        tree = {"v": 1, "lease": lease, "node": self.id, "state": state, "at": _now(), "documents": documents} | fields
        return sign_envelope(json.dumps(tree).encode(), REPORT_PAYLOAD_TYPE, key or self.key)

    def evidence(self, lease: str, /, **changes: Any) -> dict[str, bytes]:
        work = self.assignment(lease)
        job = Envelope.from_json(work["job"])
        plan = canonical_json({"lease": lease, "image": IMAGE})
        fields = {
            "lease": lease,
            "node": self.id,
            "node_key": self.key.public.text,
            "nonce": work["nonce"] or "0" * 64,
            "lease_public_key": b64encode(bytes(1216)),
            "job_digest": job.digest,
            "image": IMAGE,
            "policy_digest": sha256_digest(b64decode(work["policy"])),
            "plan_digest": sha256_digest(plan),
            "runner_digest": "sha256:" + "d" * 64,
            "runner_version": "1",
            "previous_wipes": {"node": None},
            "made_at": datetime.now(UTC),
        } | changes
        envelope = sign_envelope(Evidence(**fields).to_payload(), EVIDENCE_PAYLOAD_TYPE, self.key)
        self.documents[lease] = {"job": job.to_bytes(), "policy": b64decode(work["policy"]), "plan": plan, "evidence": envelope.to_bytes()}
        return {"evidence": envelope.to_bytes(), "plan": plan}

    def attest(self, lease: str) -> httpx.Response:
        return self.report(lease, "attested", documents=self.evidence(lease))

    def run_record(self, lease: str, result: str | None = None, **changes: Any) -> dict[str, bytes]:
        now = datetime.now(UTC)
        fields = {
            "lease": lease,
            "node": self.id,
            "container": "f" * 64,
            "image": IMAGE,
            "plan_digest": sha256_digest(self.documents[lease]["plan"]),
            "started_at": now,
            "ended_at": now,
            "exit_code": 0,
            "outcome": "succeeded",
            "result": result,
            "result_size": 1 if result else 0,
        } | changes
        self.documents[lease]["run"] = sign_envelope(RunRecord(**fields).to_payload(), RUN_PAYLOAD_TYPE, self.key).to_bytes()
        return {"run": self.documents[lease]["run"]}

    def wipe(self, lease: str, *, proven: bool = True, key: SigningKey | None = None) -> dict[str, bytes]:
        now = datetime.now(UTC)
        step = WipeStep(
            step="key", target="scratch", action="remove", seen="absent" if proven else "busy", wanted="absent", ok=proven, seconds=0.1
        )
        medium = Medium(kind="disk", method="purge", technique="cryptographic erase", verification="kernel", proven=proven)
        report = WipeReport(lease=lease, node=self.id, started_at=now, ended_at=now, steps=(step,), media=(medium,))
        known = self.documents.setdefault(lease, {})
        if "job" not in known:
            work = self.assignment(lease)
            known |= {"job": Envelope.from_json(work["job"]).to_bytes(), "policy": b64decode(work["policy"])}
        work = self.assignment(lease)
        if work["grant"]:
            known["grant"] = Envelope.from_json(work["grant"]).to_bytes()
        known["wipe"] = sign_envelope(report.to_payload(), WIPE_PAYLOAD_TYPE, key or self.key).to_bytes()
        payload = build_certificate(
            lease=lease,
            node=self.id,
            documents={kind: sha256_digest(data) for kind, data in known.items()},
            wipe=report,
            tool_version="1",
            at=now,
        )
        certificate = sign_envelope(payload, CERTIFICATE_PAYLOAD_TYPE, key or self.key).to_bytes()
        return {"wipe": known["wipe"], "certificate": certificate}


def nonce(customer: Customer, lease: str, value: str = "5a" * 32) -> httpx.Response:
    return customer.put(f"/v1/leases/{lease}/nonce", {"nonce": value})


def walk(customer: Customer, node: Node, lease: str, until: str, *bundles: str) -> None:
    """Take an admitted lease through its story up to ``until``, without a result."""
    steps = (
        ("placed", node.poll),
        ("attested", lambda: (ok(nonce(customer, lease)), ok(node.attest(lease)))),
        ("unlocked", lambda: ok(customer.unlock(lease, *bundles))),
        ("running", lambda: ok(node.report(lease, "running"))),
        ("collecting", lambda: ok(node.report(lease, "collecting"))),
        ("wiping", lambda: ok(node.report(lease, "wiping", outcome="succeeded", exit_code=0, documents=node.run_record(lease)))),
        ("closed", lambda: ok(node.report(lease, "closed", documents=node.wipe(lease)))),
    )
    for state, step in steps:
        if until in {"admitted", "submitted"}:
            return
        step()
        assert customer.lease(lease)["state"] == state
        if state == until:
            return


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
