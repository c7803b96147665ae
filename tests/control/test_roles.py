"""Who may call what: the whole API as one table, and two tenants that see nothing of each other."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sandbox.model import new_id
from tests.control.actors import Node, Person, code, nonce, ok, walk
from tests.control.conftest import House

LEASE, NODE, TOKEN, DIGEST = "lease-" + "0" * 32, "node-" + "0" * 32, "token-" + "0" * 32, "blake3:" + "0" * 64
ALL, PEOPLE = {"customer", "operator", "auditor", "node"}, {"customer", "operator", "auditor"}
OPEN: set[str] = {"nobody"}
TABLE: dict[tuple[str, str], set[str]] = {
    ("get", "/healthz"): OPEN,
    ("get", "/readyz"): OPEN,
    ("get", "/metrics"): OPEN,
    ("get", "/log/checkpoint"): OPEN,
    ("get", "/log/vkey"): OPEN,
    ("get", "/log/tile/{path}"): OPEN,
    ("get", "/log/keys/{number}"): OPEN,
    ("options", "/v1/uploads"): OPEN,
    ("options", "/v1/uploads/{upload}"): OPEN,
    ("get", "/v1/whoami"): ALL,
    ("get", "/v1/tokens"): {"operator"},
    ("post", "/v1/tokens"): {"operator"},
    ("delete", "/v1/tokens/{token}"): {"operator"},
    ("post", "/v1/identities"): {"customer"},
    ("get", "/v1/identities"): PEOPLE,
    ("get", "/v1/policy"): PEOPLE,
    ("get", "/v1/policy/{digest}"): PEOPLE,
    ("get", "/v1/policy-changes"): PEOPLE,
    ("get", "/v1/policy-changes/{digest}"): PEOPLE,
    ("get", "/v1/policies"): {"operator", "auditor"},
    ("put", "/v1/policies/{tenant}"): {"operator"},
    ("post", "/v1/uploads"): {"customer", "node"},
    ("head", "/v1/uploads/{upload}"): {"customer", "node"},
    ("patch", "/v1/uploads/{upload}"): {"customer", "node"},
    ("delete", "/v1/uploads/{upload}"): {"customer", "node"},
    ("get", "/v1/bundles"): PEOPLE,
    ("get", "/v1/bundles/{digest}"): PEOPLE,
    ("get", "/v1/bundles/{digest}/content"): {"customer", "node"},
    ("head", "/v1/bundles/{digest}/content"): {"customer", "node"},
    ("delete", "/v1/bundles/{digest}"): {"customer"},
    ("post", "/v1/leases"): {"customer"},
    ("get", "/v1/leases"): PEOPLE,
    ("get", "/v1/leases/waiting"): {"customer"},
    ("get", "/v1/leases/{lease}"): ALL,
    ("post", "/v1/leases/{lease}/cancel"): {"customer", "operator"},
    ("post", "/v1/leases/{lease}/revoke"): {"customer"},
    ("put", "/v1/leases/{lease}/nonce"): {"customer"},
    ("get", "/v1/leases/{lease}/evidence"): PEOPLE,
    ("post", "/v1/leases/{lease}/grant"): {"customer"},
    ("post", "/v1/leases/{lease}/refusal"): {"customer"},
    ("get", "/v1/leases/{lease}/logs"): {"customer"},
    ("get", "/v1/leases/{lease}/receipt"): PEOPLE,
    ("get", "/v1/nodes"): PEOPLE,
    ("get", "/v1/nodes/{node}"): ALL,
    ("put", "/v1/nodes/{node}"): {"node"},
    ("put", "/v1/nodes/{node}/qualification"): {"node"},
    ("post", "/v1/nodes/{node}/quarantine"): {"operator"},
    ("post", "/v1/nodes/{node}/restore"): {"operator"},
    ("post", "/v1/nodes/{node}/poll"): {"node"},
    ("post", "/v1/nodes/{node}/leases/{lease}/report"): {"node"},
    ("post", "/v1/nodes/{node}/leases/{lease}/incidents"): {"node"},
    ("put", "/v1/nodes/{node}/leases/{lease}/logs/{seq}"): {"node"},
    ("get", "/v1/log/entries"): PEOPLE,
    ("get", "/v1/log/entries/{index}"): PEOPLE,
    ("post", "/v1/subjects/{subject}/erase"): {"operator"},
}
# Enough of a body to get past its schema, so that the answer is about the role.
ENVELOPE = {"payload": "", "payloadType": "x", "signatures": [{"keyid": "", "sig": ""}]}
BODIES: dict[str, object] = {
    "/v1/tokens": {"role": "node", "tenant": "t"},
    "/v1/identities": {"identity": "x"},
    "/v1/policies/{tenant}": {"raw": ""},
    "/v1/leases": {"job": ENVELOPE},
    "/v1/leases/{lease}/nonce": {"nonce": "0" * 64},
    "/v1/leases/{lease}/grant": {"grant": ENVELOPE},
    "/v1/leases/{lease}/refusal": {"reasons": [{"rule": "r", "seen": "s", "wanted": "w", "fix": "f"}]},
    "/v1/nodes/{node}": {"public_key": "x", "version": "1", "capacity": {"slots": 1, "cpus": 1, "memory": 1, "scratch": 1}},
    "/v1/nodes/{node}/poll": {},
    "/v1/nodes/{node}/qualification": {"qualification": ENVELOPE},
    "/v1/nodes/{node}/leases/{lease}/report": {"report": ENVELOPE},
    "/v1/nodes/{node}/leases/{lease}/incidents": {"incident": ENVELOPE},
}


def test_every_route_stands_in_the_table(house: House) -> None:
    paths = ok(house.http.get("/openapi.json"))["paths"]
    assert {
        (method, path)
        for path, methods in paths.items()
        for method in methods
        if path.startswith(("/v1", "/log", "/healthz", "/readyz", "/metrics"))
    } == set(TABLE)


@pytest.mark.parametrize("role", ["nobody", "customer", "operator", "auditor", "node"])
def test_each_role_reaches_exactly_what_the_table_says(house: House, role: str) -> None:
    person = Person(house.http, "" if role == "nobody" else house.token(role, "lab"))
    wrong = []
    for (method, template), roles in TABLE.items():
        path = template.format(
            number=1,
            lease=LEASE,
            node=NODE,
            token=TOKEN,
            digest=DIGEST,
            upload="upload-" + "0" * 32,
            tenant="t",
            path="0/000",
            seq=0,
            index=0,
            subject="tenant-" + "0" * 32,
        )
        answer = person.call(method.upper(), path, json=BODIES.get(template)) if template in BODIES else person.call(method.upper(), path)
        refused = answer.status_code == 401 or (
            answer.status_code == 403 and (method == "head" or answer.json()["details"].get("rule") == "role")
        )
        if refused is not (role not in roles and roles is not OPEN):
            wrong.append((method, template, answer.status_code))
        if refused:
            assert answer.status_code == (401 if role == "nobody" else 403)
    assert wrong == []


@pytest.mark.parametrize("secret", ["", "sealrig_", "sealrig_" + "x" * 43, "x" * 100_0, "Basic abc"])
def test_no_token_and_wrong_tokens_look_the_same(house: House, secret: str) -> None:
    answer = Person(house.http, secret).get("/v1/whoami")
    assert (answer.status_code, code(answer)) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert secret == "" or secret not in answer.text


def test_tokens_expire_and_are_revoked_at_once(house: House) -> None:
    operator = house.person("operator")
    issued = ok(operator.post("/v1/tokens", {"role": "customer", "tenant": "lab", "ttl_seconds": 60}))
    customer = Person(house.http, issued["token"])
    assert ok(customer.get("/v1/whoami")) == {"token": issued["id"], "role": "customer", "tenant": "lab"}
    house.clock.ahead += timedelta(seconds=61)
    assert code(customer.get("/v1/whoami")) == "unauthenticated"
    house.clock.ahead *= 0
    ok(operator.delete(f"/v1/tokens/{issued['id']}"))
    ok(operator.delete(f"/v1/tokens/{issued['id']}"))
    assert code(customer.get("/v1/whoami")) == "unauthenticated"
    assert code(operator.delete(f"/v1/tokens/{TOKEN}")) == "not-found"
    listed = operator.get("/v1/tokens")
    assert issued["token"] not in listed.text
    assert [row["revoked_at"] is not None for row in listed.json() if row["id"] == issued["id"]] == [True]


def test_tokens_are_not_in_the_data_folder(house: House) -> None:
    secret = house.token("customer", "lab")
    files = [path for path in house.folder.rglob("*") if path.is_file()]
    assert files
    assert not any(secret.encode() in path.read_bytes() for path in files)


def test_two_tenants_see_nothing_of_each_other(house: House) -> None:
    lab, works, node = house.customer("lab"), house.customer("works"), house.node()
    bundle = house.bundle(lab)
    lease = ok(lab.submit(lab.job(inputs=[bundle.digest])))["id"]
    walk(lab, node, lease, "closed", bundle.digest)
    half = lab.start_upload("blake3:" + "1" * 64, 100).headers["location"]
    for listed in ("/v1/leases", "/v1/bundles"):
        assert ok(works.get(listed)) == []
        assert len(ok(lab.get(listed))) == 1
    assert ok(works.get("/v1/log/entries?type=lease.closed"))["entries"] == []
    (entry,) = ok(lab.get("/v1/log/entries?type=lease.closed"))["entries"]
    assert ok(works.get("/v1/identities")) == [works.identity.public.text]
    refusals = [
        works.get(f"/v1/leases/{lease}"),
        works.post(f"/v1/leases/{lease}/cancel"),
        works.post(f"/v1/leases/{lease}/revoke"),
        nonce(works, lease),
        works.get(f"/v1/leases/{lease}/evidence"),
        works.get(f"/v1/leases/{lease}/logs"),
        works.get(f"/v1/leases/{lease}/receipt"),
        works.post(f"/v1/leases/{lease}/grant", {"grant": lab.grant(lease).to_json()}),
        works.post(f"/v1/leases/{lease}/refusal", {"reasons": [{"rule": "", "seen": "", "wanted": "", "fix": ""}]}),
        works.get(f"/v1/leases?before={lease}"),
        works.get(f"/v1/bundles/{bundle.digest}"),
        works.get(f"/v1/bundles/{bundle.digest}/content"),
        works.delete(f"/v1/bundles/{bundle.digest}"),
        works.get(f"/v1/log/entries/{entry['index']}"),
        works.send(half, 0, b"x"),
        works.call("DELETE", half, headers={"Tus-Resumable": "1.0.0"}),
    ]
    assert [(answer.status_code, code(answer)) for answer in refusals] == [(404, "not-found")] * len(refusals)
    unknown = works.get(f"/v1/leases/{LEASE}").json()
    foreign = works.get(f"/v1/leases/{lease}").json()
    assert {**foreign["details"], "seen": ""} == {**unknown["details"], "seen": ""}
    assert code(works.get("/v1/policy?tenant=lab")) == "forbidden"
    assert ok(works.get(f"/v1/nodes/{node.id}"))["leases"] == []


def test_a_tenants_live_leases_are_named_to_it_alone(house: House) -> None:
    lab, works, node = house.customer("lab"), house.customer("works"), house.node()
    lease = ok(lab.submit(lab.job()))["id"]
    node.poll()
    assert ok(lab.get(f"/v1/nodes/{node.id}"))["leases"] == [lease]
    assert ok(works.get(f"/v1/nodes/{node.id}"))["leases"] == []
    assert ok(house.person("auditor").get(f"/v1/nodes/{node.id}"))["leases"] == [lease]


def test_operators_and_auditors_read_all_tenants(house: House) -> None:
    lab, works, node = house.customer("lab"), house.customer("works"), house.node()
    leases = [ok(person.submit(person.job()))["id"] for person in (lab, works)]
    for person in (lab, works):
        house.bundle(person)
    walk(lab, node, leases[0], "closed")
    for role in ("operator", "auditor"):
        reader = house.person(role)
        assert [row["id"] for row in ok(reader.get("/v1/leases"))] == leases[::-1]
        assert len(ok(reader.get("/v1/bundles"))) == 2
        assert reader.get(f"/v1/leases/{leases[0]}/receipt").status_code == 200
        assert len(ok(reader.get("/v1/policies"))) >= 2


def test_a_node_reads_only_what_its_leases_need(house: House) -> None:
    lab, node, other = house.customer("lab"), house.node(), house.node()
    bundle, unused = house.bundle(lab, b"a"), house.bundle(lab, b"b")
    lease = ok(lab.submit(lab.job(inputs=[bundle.digest])))["id"]
    assert code(node.get(f"/v1/bundles/{bundle.digest}/content")) == "not-found"
    node.poll()
    assert node.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    assert code(node.get(f"/v1/bundles/{unused.digest}/content")) == "not-found"
    assert code(other.get(f"/v1/bundles/{bundle.digest}/content")) == "not-found"
    assert code(other.get(f"/v1/leases/{lease}")) == "not-found"
    assert code(other.get(f"/v1/nodes/{node.id}")) == "not-found"
    assert code(other.post(f"/v1/nodes/{node.id}/poll", {})) == "not-found"
    assert code(other.start_upload(bundle.digest, 10, lease=lease)) == "not-found"
    ok(lab.post(f"/v1/leases/{lease}/cancel"))
    ok(node.report(lease, "wiping", outcome="cancelled"))
    ok(node.report(lease, "cancelled", documents=node.wipe(lease)))
    assert code(node.get(f"/v1/bundles/{bundle.digest}/content")) == "not-found"


def test_a_token_is_bound_to_the_first_node_that_uses_it(house: House) -> None:
    node = house.node()
    thief = Node(house.http, node.token, "operator")
    assert code(thief.register()) == "forbidden"
    fresh = Node(house.http, house.token("node", "operator"), "operator", id=node.id, key=node.key)
    assert code(fresh.register()) == "forbidden"
    operator = house.person("operator")
    old = ok(node.get("/v1/whoami"))["token"]
    ok(operator.delete(f"/v1/tokens/{old}"))
    fresh = Node(house.http, house.token("node", "operator"), "operator", id=node.id, key=node.key)
    assert fresh.register().status_code == 200


def test_a_nodes_key_is_fixed(house: House) -> None:
    node = house.node()
    node.key = type(node.key).generate()
    assert code(node.register()) == "invalid-state"


def test_pages_are_bounded_and_complete(house: House) -> None:
    lab = house.customer("lab")
    leases = [ok(lab.submit(lab.job()))["id"] for _ in range(7)]
    seen: list[str] = []
    before = ""
    while page := ok(lab.get(f"/v1/leases?limit=3{before}")):
        seen += [row["id"] for row in page]
        before = f"&before={seen[-1]}"
    assert seen == leases[::-1]
    for wrong in ("limit=0", "limit=501", "limit=x", "before=lease-1", "state=lost", "limit=-1"):
        assert code(lab.get(f"/v1/leases?{wrong}")) == "bad-input"
    assert code(lab.get(f"/v1/leases?before={new_id('lease')}")) == "not-found"
    assert [row["state"] for row in ok(lab.get("/v1/leases?state=admitted"))] == ["admitted"] * 7
    assert ok(lab.get("/v1/leases?state=running")) == []
    entries = ok(house.person("auditor").get("/v1/log/entries?limit=5&start=2"))
    assert [row["index"] for row in entries["entries"]] == [2, 3, 4, 5, 6]
    assert entries["next"] == 7
