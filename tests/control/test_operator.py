"""Policies, tokens, metrics, the log over HTTP, the database's own shape."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from attestation.canonical import sha256_digest
from attestation.log.leaf import Leaf
from attestation.log.reader import LogReader
from attestation.policy_change import POLICY_CHANGE_MEDIA, PolicyChange, verify_change
from attestation.signing import b64decode, b64encode
from policies.loader import load_policy, load_profile
from sandbox.control.core import open_control
from sandbox.control.database.engine import Database
from sandbox.control.database.models import Base
from sandbox.control.server import first_token
from sandbox.control.settings import ControlSettings
from sandbox.control.tenant_policies import follow_default
from sandbox.errors import UsageError
from tests.control.actors import POLICY, Person, code, ok, walk
from tests.control.conftest import House, open_house

TIGHT = POLICY.replace(b"memory: {max: 4Gi}", b"memory: {max: 512Mi}")


def apply(person: Person, tenant: str, raw: bytes, *, dry_run: bool = False) -> httpx.Response:
    return person.call("PUT", f"/v1/policies/{tenant}", params={"dry_run": dry_run}, json={"raw": b64encode(raw)})


def test_a_dry_run_says_what_a_policy_would_do_and_changes_nothing(house: House) -> None:
    customer, operator, node = house.customer(), house.person("operator"), house.node(slots=1)
    running = ok(customer.submit(customer.job()))["id"]
    walk(customer, node, running, "running")
    large = ok(customer.submit(customer.job()))["id"]
    small = ok(customer.submit(customer.job(spec={"resources": {"memory": "256Mi"}})))["id"]
    change = ok(apply(operator, "lab", TIGHT, dry_run=True))
    assert (change["applied"], change["before"], change["digest"]) == (False, sha256_digest(POLICY), sha256_digest(TIGHT))
    assert {row["lease"]: row["allowed"] for row in change["queued"]} == {large: False, small: True}
    assert change["queued"][0]["reasons"][0]["rule"] == "memory-max"
    assert "+  resources: {memory: {max: 512Mi}" in change["diff"]
    assert ok(customer.get("/v1/policy"))["digest"] == sha256_digest(POLICY)
    assert customer.lease(large)["state"] == "admitted"

    assert ok(apply(operator, "lab", TIGHT))["applied"]
    assert customer.lease(large)["state"] == "denied"
    assert customer.lease(large)["denials"][0]["rule"] == "memory-max"
    assert customer.lease(small)["state"] == "admitted"
    assert customer.lease(running)["state"] == "running"
    assert customer.lease(running)["policy_digest"] == sha256_digest(POLICY)
    assert ok(customer.get("/v1/policy"))["digest"] == sha256_digest(TIGHT)
    entry = ok(operator.get("/v1/log/entries?type=policy.applied"))["entries"][-1]
    assert entry["actor"] == ok(operator.get("/v1/whoami"))["token"]
    told = ok(customer.get(f"/v1/log/entries/{entry['index']}"))["committed"]
    assert {each["field"]: each["value"] for each in told} == {"tenant": "lab"}


def test_tenants_have_their_own_policies(house: House) -> None:
    lab, works, operator = house.customer("lab"), house.customer("works"), house.person("operator")
    ok(apply(operator, "lab", TIGHT))
    assert ok(lab.get("/v1/policy"))["digest"] == sha256_digest(TIGHT)
    assert ok(works.get("/v1/policy"))["digest"] == sha256_digest(POLICY)
    assert {row["tenant"]: row["digest"] for row in ok(operator.get("/v1/policies"))} == {
        "lab": sha256_digest(TIGHT), "works": sha256_digest(POLICY), "operator": sha256_digest(POLICY),
    }  # fmt: skip
    assert ok(operator.get("/v1/policy?tenant=lab"))["name"] == "test"
    assert code(operator.get("/v1/policy?tenant=nobody")) == "not-found"
    rehearsed = ok(apply(operator, "later", TIGHT, dry_run=True))
    assert (rehearsed["applied"], rehearsed["before"], rehearsed["queued"]) == (False, sha256_digest(POLICY), [])
    assert code(operator.get("/v1/policy?tenant=later")) == "not-found"
    assert ok(apply(operator, "later", TIGHT))["diff"] == rehearsed["diff"]
    assert ok(Person(house.http, house.token("customer", "later")).get("/v1/policy"))["digest"] == sha256_digest(TIGHT)


def test_a_change_is_in_the_log_with_who_and_the_difference(house: House) -> None:
    lab, works, operator, auditor = house.customer("lab"), house.customer("works"), house.person("operator"), house.person("auditor")
    ok(apply(operator, "lab", TIGHT))
    ok(apply(operator, "lab", POLICY))
    changes = ok(auditor.get("/v1/policy-changes?tenant=lab"))
    assert [(row["before"], row["after"]) for row in changes] == [
        (sha256_digest(TIGHT), sha256_digest(POLICY)), (sha256_digest(POLICY), sha256_digest(TIGHT)), (None, sha256_digest(POLICY)),
    ]  # fmt: skip
    assert {row["actor"] for row in changes[:2]} == {ok(operator.get("/v1/whoami"))["token"]}
    log = LogReader(house.control.log_files)
    for row in changes:
        leaf = Leaf.from_bytes(log.extract([row["log_index"]]).entries[0].leaf)
        assert leaf.evidence is not None
        document = auditor.get(f"/v1/policy-changes/{leaf.evidence.digest}")
        assert document.headers["content-type"] == POLICY_CHANGE_MEDIA
        texts = [digest and auditor.get(f"/v1/policy/{digest}").content for digest in (row["before"], row["after"])]
        assert verify_change(document.content, leaf, texts[0], texts[1]).to_payload() == b64decode(row["document"])
    assert "-  resources: {memory: {max: 4Gi}" in PolicyChange.from_payload(b64decode(changes[1]["document"])).diff

    assert [row["log_index"] for row in ok(lab.get(f"/v1/policy-changes?before={changes[0]['log_index']}&limit=1"))] == [
        changes[1]["log_index"]
    ]
    assert lab.get(f"/v1/policy/{sha256_digest(TIGHT)}").content == TIGHT
    assert lab.get(f"/v1/policy-changes/{sha256_digest(b64decode(changes[0]['document']))}").is_success
    assert code(works.get("/v1/policy-changes?tenant=lab")) == "forbidden"
    assert code(works.get(f"/v1/policy/{sha256_digest(TIGHT)}")) == "not-found"
    assert code(works.get(f"/v1/policy-changes/{sha256_digest(b64decode(changes[0]['document']))}")) == "not-found"


RENAMED = load_profile("development").raw.replace(b"name: development", b"name: harmless")


@pytest.mark.parametrize(
    "raw", [b"", b"kind: Policy", b"\xff", POLICY + b"  more: 1\n", POLICY + POLICY, load_profile("development").raw, RENAMED]
)
def test_policies_that_are_refused(house: House, raw: bytes) -> None:
    customer, operator = house.customer(), house.person("operator")
    answer = apply(operator, "lab", raw)
    assert answer.status_code == 422
    assert code(answer) in {"bad-policy", "bad-input"}
    assert ok(customer.get("/v1/policy"))["digest"] == sha256_digest(POLICY)


def test_tenants_without_a_policy_of_their_own_follow_the_servers(folder: Path) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder)
        house.customer("lab")
        ok(apply(house.person("operator"), "works", TIGHT))
    settings = ControlSettings(data=folder / "data", policy=load_profile("strict"))
    with open_control(settings) as control:
        follow_default(control)
        follow_default(control)
    with ExitStack() as stack:
        house = open_house(stack, folder)
        rows = {row["tenant"]: row["digest"] for row in ok(house.person("operator").get("/v1/policies"))}
        assert rows == {"lab": load_profile("strict").digest, "operator": load_profile("strict").digest, "works": sha256_digest(TIGHT)}
        auditor = house.person("auditor")
        now = ok(auditor.get("/v1/log/entries?type=policy.applied&actor=server"))["entries"]
        assert len(now) >= 2
        (change, first) = ok(auditor.get("/v1/policy-changes?tenant=lab"))
        assert (change["before"], change["actor"], first["before"]) == (first["after"], "server", None)


def test_metrics_count_and_name_nobody(house: House) -> None:
    customer, node = house.customer("lab-with-a-name"), house.node()
    lease = ok(customer.submit(customer.job()))["id"]
    walk(customer, node, lease, "running")
    text = house.http.get("/metrics").text
    assert 'sealrig_leases{state="running"} 1.0' in text
    assert 'sealrig_nodes{state="ready"} 1.0' in text
    assert 'sealrig_http_requests_total{method="POST",route="/v1/leases",status="201"} 1.0' in text
    assert "sealrig_log_pending 0.0" in text
    entries = LogReader(house.control.log_files)
    assert f"sealrig_log_entries {float(sum(1 for _ in entries.entries(0, 10**6)))}" in text
    for secret in (lease, node.id, "lab-with-a-name", customer.token):
        assert secret not in text


def test_the_log_over_http_is_the_log_on_disk(house: House) -> None:
    customer = house.customer()
    ok(customer.submit(customer.job()))
    local = LogReader(house.control.log_files)
    assert house.http.get("/log/checkpoint").text == local.checkpoint()
    assert house.http.get("/log/vkey").text.strip() == house.control.vkey
    folder = house.control.settings.data / "log"
    tiles = [path.relative_to(folder) for path in (folder / "tile").rglob("*") if path.is_file()]
    assert tiles
    for tile in tiles:
        assert house.http.get(f"/log/{tile}").content == (folder / tile).read_bytes()
    assert house.http.get("/log/tile/0/999").status_code == 404


def test_readiness_and_health(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert house.http.get("/healthz").text == "ok\n"
    assert house.http.get("/readyz").text == "ok\n"
    shutil.rmtree(house.control.settings.data / "bundles")
    answer = house.http.get("/readyz")
    assert (answer.status_code, code(answer)) == (503, "storage-unavailable")
    assert str(house.folder) not in answer.text
    assert house.http.get("/healthz").status_code == 200


def test_openapi_describes_the_api(house: House) -> None:
    tree = ok(house.http.get("/openapi.json"))
    assert tree["openapi"].startswith("3.1")
    assert tree["paths"]["/v1/leases"]["post"]["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/LeaseInfo")


def test_a_full_database_is_told_and_nothing_is_half_done(house: House) -> None:
    customer = house.customer()
    with house.control.database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    limit = f"PRAGMA max_page_count={pages + 3}"

    def cap(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(limit)

    from sqlalchemy import event

    event.listen(house.control.database.engine, "connect", cap)
    house.control.database.engine.dispose()
    answer = None
    for _ in range(30):
        answer = customer.submit(customer.job())
        if not answer.is_success:
            break
    assert answer is not None
    assert (answer.status_code, code(answer)) == (507, "storage-full")
    before = len(ok(customer.get("/v1/leases")))
    event.remove(house.control.database.engine, "connect", cap)
    house.control.database.engine.dispose()
    assert customer.submit(customer.job()).status_code == 201
    assert len(ok(customer.get("/v1/leases"))) == before + 1
    assert all(step["log_index"] is not None for row in ok(customer.get("/v1/leases")) for step in row["history"])


# ---- the database


def test_migrations_make_the_tables_of_the_models(folder: Path) -> None:
    database = Database(f"sqlite:///{folder / 'new.db'}")
    database.migrate()
    database.migrate()
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata) == []
    database.close()


def test_a_database_from_a_newer_version_is_left_alone(folder: Path) -> None:
    database = Database(f"sqlite:///{folder / 'new.db'}")
    database.migrate()
    with database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError) as raised:
        database.migrate()
    assert raised.value.details["rule"] == "database-version"
    database.close()


@pytest.mark.parametrize(
    "url", ["", "sqlite", "mysql://x/y", "oracle://u:secret@x/y", "postgresql+nodriver://u:secret@x/y", "sqlite:////nonexistent/x.db"]
)
def test_database_urls_that_do_not_work_are_told_without_their_password(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        Database(url).migrate()
    assert "secret" not in f"{raised.value} {raised.value.details}"


def test_one_server_a_folder(house: House) -> None:
    with pytest.raises(UsageError) as raised, open_control(house.control.settings):
        pass
    assert raised.value.details["rule"] == "data-folder"


def test_a_lost_log_key_is_not_replaced(folder: Path) -> None:
    settings = ControlSettings(data=folder / "data", policy=load_policy(POLICY))
    with open_control(settings):
        pass
    (folder / "data" / "log.key").unlink()
    with pytest.raises(UsageError) as raised, open_control(settings):
        pass
    assert raised.value.details["rule"] == "log-key"


def test_the_first_token_is_written_once_and_for_its_owner_alone(house: House) -> None:
    path = house.control.settings.data / "operator.token"
    first_token(house.control)
    assert path.stat().st_mode & 0o777 == 0o600
    secret = path.read_text().strip()
    assert ok(Person(house.http, secret).get("/v1/whoami"))["role"] == "operator"
    first_token(house.control)
    assert path.read_text().strip() == secret


def test_a_crash_before_the_first_token_was_stored_does_not_lose_it(house: House) -> None:
    path = house.control.settings.data / "operator.token"
    path.write_text("sealrig_" + "x" * 43 + "\n")
    first_token(house.control)
    assert ok(Person(house.http, "sealrig_" + "x" * 43).get("/v1/whoami"))["role"] == "operator"


def test_identities_are_enrolled_once_and_checked(house: House) -> None:
    customer = house.customer()
    body = {"identity": customer.identity.public.text}
    assert customer.post("/v1/identities", body).status_code == 200
    assert ok(customer.get("/v1/identities")) == [customer.identity.public.text]
    for wrong in ("", "sealrig1:", "sealrig1:AAAA", customer.identity.public.text[:-4] + "!!!!", "x" * 9000):
        answer = customer.post("/v1/identities", {"identity": wrong})
        assert (answer.status_code, code(answer)) == (422, "bad-input")


def test_a_clock_that_moves_is_the_only_thing_a_token_needs_to_end(house: House) -> None:
    issued = ok(house.person("operator").post("/v1/tokens", {"role": "auditor", "tenant": "audit", "ttl_seconds": 3600}))
    auditor = Person(house.http, issued["token"])
    ok(auditor.get("/v1/whoami"))
    house.clock.ahead += timedelta(hours=1)
    assert code(auditor.get("/v1/whoami")) == "unauthenticated"
