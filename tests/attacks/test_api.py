"""Strangers, other tenants and dishonest nodes at a live server's API: each probe must be refused, and nothing may have changed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation.signing import Envelope, SigningKey, sign_envelope
from sandbox.job import JOB_PAYLOAD_TYPE
from sandbox.sealing.keys import Identity
from sandbox.wire import REPORT_PAYLOAD_TYPE
from tests.attacks import greedy
from tests.attacks.conftest import House
from tests.attacks.results import write_results
from tests.patience import LONG
from tests.rig import Person

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]
REFUSED = {400, 401, 403, 404, 405, 409, 410, 411, 412, 413, 415, 422, 423, 431, 460}
Probe = Callable[["Scene"], str]
PROBES: dict[str, tuple[str, Probe]] = {}


@dataclass
class Scene:
    """A server, the victim's closed lease and bundle, and everything that an attacker may have got hold of."""

    house: House
    victim: Person
    lease: str
    bundle: str
    tokens: dict[str, str]
    documents: dict[str, bytes]
    node: str

    @property
    def url(self) -> str:
        return self.house.rig.url

    def call(self, method: str, path: str, *, caller: str = "mallory", **arguments: Any) -> httpx.Response:
        """Call the API as mallory, or as whoever a token is named for."""
        headers = {"Authorization": f"Bearer {self.tokens.get(caller, caller)}", **arguments.pop("headers", {})}
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=LONG, **arguments)

    def raw(self, request: bytes, *, seconds: float = 3) -> str:
        """Write bytes to the server's socket and return the first line of its answer; empty where it just closed."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=seconds) as link:
            link.sendall(request)
            try:
                return link.recv(4096).decode("latin-1").partition("\r\n")[0]
            except (TimeoutError, ConnectionResetError):
                return ""

    def envelope(self, kind: str) -> dict[str, Any]:
        """Return a signed document of the victim's receipt."""
        return Envelope.from_bytes(self.documents[kind]).to_json()

    def fingerprint(self) -> str:
        """Return everything of the victim that an attack could have changed."""
        info = self.victim.json("lease", "show", self.lease)
        bundles = httpx.get(f"{self.url}/v1/bundles", headers={"Authorization": f"Bearer {self.tokens['victim']}"}).json()
        return json.dumps([info, self.bundle in {each["digest"] for each in bundles}])


def probe(tried: str) -> Callable[[Probe], Probe]:
    def register(function: Probe) -> Probe:
        PROBES[function.__name__] = (tried, function)
        return function

    return register


def refused(*answers: httpx.Response) -> str:
    """Return how the answers refused; fail for one that did not, or that broke the server."""
    for answer in answers:
        assert answer.status_code in REFUSED, f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:200]}"
    return ", ".join(sorted({f"{answer.status_code} {_code(answer)}".strip() for answer in answers}))


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("code", ""))
    except (ValueError, AttributeError):
        return ""


# ---- who are you


@probe("use every tenant route without a token")
def no_token(scene: Scene) -> str:
    places = (
        "/v1/whoami",
        "/v1/leases",
        f"/v1/leases/{scene.lease}",
        "/v1/bundles",
        "/v1/nodes",
        "/v1/policy",
        "/v1/log/entries",
        "/v1/tokens",
    )
    return refused(*(httpx.get(f"{scene.url}{place}") for place in places))


@probe("forge tokens: random, cut, empty, of another scheme, a token's id, SQL")
def forged_token(scene: Scene) -> str:
    real = scene.tokens["victim"]
    forged = ("sealrig_" + "A" * 43, real[:-1], real + "A", real.upper(), "sealrig_' OR '1'='1", "server", "x" * 10_000)
    answers = [scene.call("GET", "/v1/whoami", caller=each) for each in forged]
    basic = base64.b64encode(f"operator:{real}".encode()).decode()
    answers.append(httpx.get(f"{scene.url}/v1/whoami", headers={"Authorization": f"Basic {basic}"}))
    answers.append(httpx.get(f"{scene.url}/v1/whoami", params={"token": real}, headers={"Cookie": f"token={real}"}))
    with contextlib.suppress(ConnectionError):  # the server closes on a head that it will not hold, perhaps before all is sent
        first = scene.raw(b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"x" * 200_000)
        assert not first or " 4" in first, first
    return refused(*answers)


@probe("use a token after it was revoked")
def revoked_token(scene: Scene) -> str:
    made = scene.house.rig.operator.json("token", "new", "--role", "customer", "--tenant", "mallory")
    assert scene.call("GET", "/v1/whoami", caller=made["token"]).status_code == 200
    assert scene.call("DELETE", f"/v1/tokens/{made['id']}", caller="operator").status_code < 300
    return refused(scene.call("GET", "/v1/whoami", caller=made["token"]))


@probe("do what only the operator may")
def operator_routes(scene: Scene) -> str:
    token = {"role": "operator", "tenant": "mallory"}
    return refused(
        scene.call("POST", "/v1/tokens", json=token), scene.call("GET", "/v1/tokens"),
        scene.call("POST", f"/v1/nodes/{scene.node}/quarantine"),
        scene.call("POST", f"/v1/nodes/{scene.node}/restore"), scene.call("PUT", "/v1/policies/victim", json={"raw": ""}),
        scene.call("PUT", "/v1/policies/mallory", json={"raw": ""}), scene.call("POST", "/v1/tokens", caller="node", json=token),
    )  # fmt: skip


# ---- another tenant's things


@probe("read another tenant's lease, evidence, logs and receipt")
def foreign_lease_read(scene: Scene) -> str:
    return refused(*(scene.call("GET", f"/v1/leases/{scene.lease}{part}") for part in ("", "/evidence", "/logs", "/receipt")))


@probe("end, revoke, unlock or refuse another tenant's lease")
def foreign_lease_write(scene: Scene) -> str:
    place = f"/v1/leases/{scene.lease}"
    return refused(
        scene.call("POST", f"{place}/cancel"), scene.call("POST", f"{place}/revoke"),
        scene.call("PUT", f"{place}/nonce", json={"nonce": "00" * 32}),
        scene.call("POST", f"{place}/grant", json={"grant": scene.envelope("grant")}),
        scene.call("POST", f"{place}/refusal", json={"reasons": [{"rule": "x", "seen": "x", "wanted": "x", "fix": "x"}]}),
    )  # fmt: skip


@probe("read or delete another tenant's bundle")
def foreign_bundle(scene: Scene) -> str:
    place = f"/v1/bundles/{scene.bundle}"
    ranged = scene.call("GET", f"{place}/content", headers={"Range": "bytes=0-99"})
    return refused(scene.call("GET", place), scene.call("GET", f"{place}/content"), ranged, scene.call("DELETE", place))


@probe("tell another tenant's things from things that do not exist")
def no_oracle(scene: Scene) -> str:
    other, none = scene.call("GET", f"/v1/leases/{scene.lease}"), scene.call("GET", f"/v1/leases/lease-{'0' * 32}")
    theirs, missing = scene.call("GET", f"/v1/bundles/{scene.bundle}"), scene.call("GET", f"/v1/bundles/blake3:{'0' * 64}")
    assert (other.status_code, _code(other)) == (none.status_code, _code(none))
    assert (theirs.status_code, _code(theirs)) == (missing.status_code, _code(missing))
    return refused(other, theirs)


@probe("find other tenants in lists, in the audit list and in the policy of another tenant")
def foreign_lists(scene: Scene) -> str:
    lists = [scene.call("GET", place).text for place in ("/v1/leases?limit=500", "/v1/bundles", "/v1/log/entries?limit=500", "/v1/nodes")]
    assert not [text for text in lists if scene.lease in text or scene.bundle in text or "victim" in text]
    return "not in any list; " + refused(scene.call("GET", "/v1/policy", params={"tenant": "victim"}))


# ---- paths, queries, headers


@probe("climb out of the log's tiles")
def tile_traversal(scene: Scene) -> str:
    paths = (
        "../log.key",
        "..%2f..%2fcontrol.db",
        "%2e%2e/%2e%2e/operator.token",
        "0/x000/../../../../operator.token",
        "entries/000%00",
        "/etc/passwd",
        "0/../checkpoint",
    )
    answers = [scene.raw(f"GET /log/tile/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()) for path in paths]
    assert all(answer.split()[1] in {"404", "400"} for answer in answers), answers
    return "404"


@probe("climb out of the bundle store through a digest")
def digest_traversal(scene: Scene) -> str:
    digests = (
        "..%2f..%2foperator.token",
        "blake3:..%2f..%2foperator.token",
        "blake3:" + "A" * 64,
        "blake3:%00",
        "sha256:" + "0" * 64,
        "blake3:" + "0" * 65,
    )
    return refused(*(scene.call("GET", f"/v1/bundles/{digest}{end}") for digest in digests for end in ("", "/content")))


@probe("put SQL and wildcards into filters and ids")
def sql(scene: Scene) -> str:
    words = ("' OR '1'='1", "%", "x'; DROP TABLE lease;--", "\x00")
    for word in words:
        answer = scene.call("GET", "/v1/log/entries", params={"resource": word, "type": word, "actor": word})
        assert answer.status_code in REFUSED or answer.json()["entries"] == [], answer.text[:200]
    return refused(*(scene.call("GET", "/v1/leases", params={"state": word, "before": word}) for word in words))


@probe("inject headers and requests through upload metadata and paths")
def header_injection(scene: Scene) -> str:
    digest = base64.b64encode(f"blake3:{'0' * 64}\r\nX-Owned: 1".encode()).decode()
    answer = scene.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "1", "Upload-Metadata": f"digest {digest}"})
    assert "x-owned" not in answer.headers
    assert "x-owned" not in scene.call("GET", "/v1/leases/x%0d%0aX-Owned:%201").headers
    smuggled = b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    smuggled += b"0\r\n\r\nGET /v1/whoami HTTP/1.1\r\n\r\n"
    status = scene.raw(smuggled)
    assert status.split()[1] in {"400", "401"}, status
    return refused(answer)


# ---- bodies


@probe("send bodies that are too large, lying about their length, or no JSON")
def odd_bodies(scene: Scene) -> str:
    def endless() -> Iterator[bytes]:
        for _ in range(10 * 16):
            yield b" " * 65536

    nested = b"[" * 100_000
    bodies = (
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"job": 1}',
        nested,
        b"\xff\xfe",
        b'{"job": {}, "job": {}}',
        b'{"job": NaN}',
        b'{"job": {}, "more": 1}',
    )
    answers = [scene.call("POST", "/v1/leases", content=body, headers={"Content-Type": "application/json"}) for body in bodies]
    with contextlib.suppress(httpx.TransportError):  # the server may hang up on 10 MiB
        answers.append(scene.call("POST", "/v1/leases", content=endless(), headers={"Content-Type": "application/json"}))
    return refused(*answers)


@probe("hold connections open with requests that never end")
def slow_bodies(scene: Scene) -> str:
    host, port = scene.url.removeprefix("http://").split(":")
    links = [socket.create_connection((host, int(port)), timeout=LONG) for _ in range(200)]
    try:
        for link in links:
            link.sendall(b"POST /v1/leases HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
        started = time.monotonic()
        assert scene.call("GET", "/healthz").status_code == 200
        took = time.monotonic() - started
    finally:
        for link in links:
            link.close()
    assert took < 30
    return f"200 hanging requests beside it; others are answered in {took:.2f} s"


# ---- uploads

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}


def _upload(scene: Scene, size: int, digest: str = f"blake3:{'1' * 64}", caller: str = "mallory") -> httpx.Response:
    metadata = f"digest {base64.b64encode(digest.encode()).decode()}"
    return scene.call("POST", "/v1/uploads", caller=caller, headers={**TUS, "Upload-Length": str(size), "Upload-Metadata": metadata})


@probe("play with a tus upload's offsets: beyond, negative, huge, twice, over its length")
def tus_offsets(scene: Scene) -> str:
    place = _upload(scene, 10).headers["location"]
    offsets = ("5", "-1", "1e3", "99999999999999999999", "", "0x0")
    answers = [scene.call("PATCH", place, content=b"x", headers={**PIECE, "Upload-Offset": offset}) for offset in offsets]
    answers.append(scene.call("PATCH", place, content=b"x" * 11, headers={**PIECE, "Upload-Offset": "0"}))
    return refused(*answers)


@probe("announce uploads of impossible lengths, too many, or with a broken digest")
def tus_lengths(scene: Scene) -> str:
    answers = [scene.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": size}) for size in ("-1", "1e9", "9" * 18, "")]
    answers += [_upload(scene, 2**59), _upload(scene, 10, "blake3:../../x"), _upload(scene, 10, "x")]
    return refused(*answers)


@probe("store other bytes under a digest, such as those of the victim's bundle")
def wrong_digest(scene: Scene) -> str:
    place = _upload(scene, 4, scene.bundle).headers["location"]
    return refused(scene.call("PATCH", place, content=b"evil", headers={**PIECE, "Upload-Offset": "0"}))


@probe("write into, look at or end another's upload")
def foreign_upload(scene: Scene) -> str:
    place = _upload(scene, 4, caller="victim").headers["location"]
    answers = [scene.call("HEAD", place, headers=TUS), scene.call("DELETE", place, headers=TUS)]
    answers.append(scene.call("PATCH", place, content=b"evil", headers={**PIECE, "Upload-Offset": "0"}))
    assert scene.call("DELETE", place, caller="victim", headers=TUS).status_code == 204
    return refused(*answers)


# ---- signed documents, replayed and altered


@probe("submit the victim's signed job as another tenant")
def replayed_job(scene: Scene) -> str:
    return refused(scene.call("POST", "/v1/leases", json={"job": scene.envelope("job")}))


@probe("submit an altered job under the old signature, and one signed by another identity")
def altered_job(scene: Scene) -> str:
    job = Envelope.from_bytes(scene.documents["job"])
    tree = json.loads(job.payload)
    tree["lease"] = "lease-" + "e" * 32
    altered = job.to_json()
    altered["payload"] = base64.b64encode(json.dumps(tree).encode()).decode()
    forged = sign_envelope(json.dumps(tree).encode(), JOB_PAYLOAD_TYPE, Identity.generate().signing_key).to_json()
    as_victim = [scene.call("POST", "/v1/leases", caller="victim", json={"job": each}) for each in (altered, forged)]
    return refused(*as_victim, scene.call("POST", "/v1/leases", json={"job": altered}))


@probe("hand over an old grant again, as it was and for another lease")
def replayed_grant(scene: Scene) -> str:
    fresh = scene.house.submit(scene.victim, "fresh", Path(greedy.__file__), "steady", "0")
    body = {"grant": scene.envelope("grant")}
    answers = [scene.call("POST", f"/v1/leases/{fresh}/grant", caller=name, json=body) for name in ("victim", "mallory")]
    assert scene.house.finish(scene.victim, fresh)["outcome"] == "succeeded"
    # Said to the lease it was for, by its own customer, it may count as the same grant said twice; it must change nothing.
    scene.call("POST", f"/v1/leases/{scene.lease}/grant", caller="victim", json=body)
    return refused(*answers)


def _report(scene: Scene, key: SigningKey, node: str, **fields: Any) -> dict[str, Any]:
    said = {"v": 1, "lease": scene.lease, "node": node, "state": "running", "at": "2026-01-01T00:00:00Z", "documents": {}, **fields}
    return {"report": sign_envelope(json.dumps(said).encode(), REPORT_PAYLOAD_TYPE, key).to_json()}


@probe("report on a lease as a customer, and as a node with another key or of another name")
def forged_report(scene: Scene) -> str:
    place, key = f"/v1/nodes/{scene.node}/leases/{scene.lease}/report", SigningKey.generate()
    other = "node-" + "f" * 32
    return refused(
        scene.call("POST", place, json=_report(scene, key, scene.node)),
        scene.call("POST", place, caller="node", json=_report(scene, key, scene.node)),
        scene.call("POST", place, caller="stray", json=_report(scene, key, scene.node)),
        scene.call("POST", f"/v1/nodes/{other}/leases/{scene.lease}/report", caller="node", json=_report(scene, key, other)),
    )


@probe("speak for another node: poll, register, logs and evidence with a token of one's own")
def other_node(scene: Scene) -> str:
    place = f"/v1/nodes/{scene.node}"
    registration = {
        "public_key": SigningKey.generate().public.text,
        "version": "1",
        "capacity": {"slots": 9, "cpus": 9, "memory": 9, "scratch": 9},
    }
    return refused(
        scene.call("PUT", place, caller="stray", json=registration), scene.call("POST", f"{place}/poll", caller="stray", json={}),
        scene.call("PUT", f"{place}/leases/{scene.lease}/logs/0", caller="stray", content=b"x"),
        scene.call("PUT", place, caller="node", json=registration), scene.call("POST", f"{place}/poll", json={}),
    )  # fmt: skip


@probe("append to the sealed log of a lease that has ended")
def late_logs(scene: Scene) -> str:
    place = f"/v1/nodes/{scene.node}/leases/{scene.lease}/logs"
    return refused(*(scene.call("PUT", f"{place}/{seq}", caller="node", content=b"forged") for seq in ("0", "9999", "-1", "1e3")))


@probe("replay the evidence of an earlier lease for a nonce of today")
def replayed_evidence(scene: Scene) -> str:
    place = f"/v1/nodes/{scene.node}/leases/{scene.lease}/report"
    key = SigningKey.load(scene.house.rig.folder / "node" / "node.key")  # a node that has gone bad signs whatever it likes
    documents = {kind: base64.b64encode(scene.documents[kind]).decode() for kind in ("evidence", "plan")}
    report = _report(scene, key, scene.node, state="attested", documents=documents)
    fresh = _report(scene, key, scene.node, state="attested", documents=documents, lease="lease-" + "e" * 32)
    elsewhere = place.replace(scene.lease, "lease-" + "e" * 32)
    return refused(scene.call("POST", place, caller="node", json=report), scene.call("POST", elsewhere, caller="node", json=fresh))


@probe("read the server's own pages, keys and files by name")
def server_files(scene: Scene) -> str:
    names = (
        "operator.token",
        "log.key",
        "control.db",
        ".env",
        "static/../../operator.token",
        "docs",
        "redoc",
        "debug",
        "v1/../operator.token",
    )
    answers = [scene.raw(f"GET /{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()) for name in names]
    assert all(answer.split()[1] in {"404", "400"} for answer in answers), answers
    return "404"


@pytest.fixture(scope="module")
def scene(house: House, mallory: Person, victim: Person) -> Scene:
    lease = house.submit(victim, "plain", Path(greedy.__file__), "steady", "0")
    assert house.finish(victim, lease)["outcome"] == "succeeded"
    tokens = {name: house.rig.token(role, tenant) for name, role, tenant in (
        ("mallory", "customer", "mallory"), ("victim", "customer", "victim"), ("stray", "node", "elsewhere"))}  # fmt: skip
    tokens["operator"] = (house.rig.data / "operator.token").read_text().strip()
    tokens["node"] = (house.rig.folder / "node" / "node.token").read_text().strip()
    receipt = httpx.get(f"{house.rig.url}/v1/leases/{lease}/receipt", headers={"Authorization": f"Bearer {tokens['victim']}"}).json()
    documents = {kind: base64.b64decode(item["data"]) for kind, item in receipt["documents"].items()}
    bundle = json.loads(Envelope.from_bytes(documents["job"]).payload)["job"]["spec"]["inputs"][0]["bundle"]
    (node,) = house.rig.operator.json("node", "list")
    return Scene(house, victim, lease, bundle, tokens, documents, node["id"])


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = {}
    yield found
    if os.environ.get("SEALRIG_WRITE_RESULTS"):
        write_results("api", found)


@pytest.mark.parametrize("name", PROBES)
def test_the_probe_is_refused_and_changes_nothing(scene: Scene, results: dict[str, dict[str, Any]], name: str) -> None:
    tried, attack = PROBES[name]
    before = scene.fingerprint()
    results[name] = {"tried": tried, "blocked": False, "happened": "it got through"}
    happened = attack(scene)
    assert scene.fingerprint() == before, "the attack changed something of the victim's"
    assert scene.call("GET", "/readyz").status_code == 200
    results[name] = {"tried": tried, "blocked": True, "happened": happened}
