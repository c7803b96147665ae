"""What the log only commits to: told to those who may know, erased for good, logged, and nothing of it left in the data folder."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
from sqlalchemy import select

from attestation.log.commitments import SubjectKeys
from attestation.log.errors import LogStoreError
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from sandbox.control.database.models import UploadRow
from sandbox.control.erasure import finish_erasures
from sandbox.control.web.sessions import COOKIE
from tests.control.actors import Customer, code, ok, walk
from tests.control.conftest import House, open_house
from tests.control.test_story import admitted

NAME = "ada-of-lovelace"


def entries(house: House, **filters: str) -> list[dict]:
    return ok(house.person("auditor").get("/v1/log/entries", params={"limit": 500, **filters}))["entries"]


def told(person, index: int) -> dict[str, str | None]:
    return {each["field"]: each["value"] for each in ok(person.get(f"/v1/log/entries/{index}"))["committed"]}


@pytest.fixture
def subject(house: House) -> tuple[Customer, str, str]:
    """A customer whose lease has ended, its tenant's random id, and the lease."""
    customer, node = house.customer(NAME), house.node()
    lease = admitted(house, customer)
    walk(customer, node, lease, "closed")
    return customer, entries(house, lease=lease)[0]["tenant"], lease


def test_the_log_names_nobody_and_nothing_that_could_be_guessed(house: House, subject) -> None:
    customer, _, _ = subject
    leaves = b"\n".join(raw for _, raw in LogReader.from_dir(house.control.settings.data).entries(0, 10_000))
    policy = house.control.settings.policy.digest.encode()
    identity = ok(customer.get("/v1/identities"))[0].encode()
    assert leaves.count(b"\n") > 10
    for secret in (NAME.encode(), b"lab", policy, identity, b'"test"', b'operator",'):
        assert secret not in leaves.replace(b'"outcome":"operator"', b""), secret


def test_those_who_may_know_are_told(house: House, subject) -> None:
    customer, _, lease = subject
    submitted = entries(house, lease=lease, type="lease.submitted")[0]["index"]
    for person in (customer, house.person("auditor"), house.person("operator")):
        assert told(person, submitted) == {"job-name": "test", "tenant": NAME}
    assert code(house.customer("other").get(f"/v1/log/entries/{submitted}")) == "not-found"
    admission = entries(house, lease=lease, type="lease.admitted")[0]["index"]
    assert told(customer, admission) == {"policy": house.control.settings.policy.digest}


def test_erased_is_gone_logged_and_shown_as_erased(house: House, subject) -> None:
    customer, ref, lease = subject
    operator = house.person("operator")
    receipt = customer.get(f"/v1/leases/{lease}/receipt").content
    assert json.loads(receipt)["log"]["entries"][1]["openings"]
    submitted = entries(house, lease=lease, type="lease.submitted")[0]["index"]
    done = ok(operator.post(f"/v1/subjects/{ref}/erase"))
    assert (done["subject"], done["leases"]) == (ref, 1)
    assert done["values"] >= 4
    (logged,) = entries(house, type="subject.erased")
    assert (logged["index"], logged["resource"]) == (done["index"], ref)
    assert told(operator, submitted) == {"job-name": None, "tenant": None}
    assert code(operator.get(f"/v1/leases/{lease}/receipt")) == "not-found"
    assert ok(operator.get(f"/v1/leases/{lease}"))["name"] == "erased"
    assert code(customer.get("/v1/leases")) == "unauthenticated"
    assert code(operator.post(f"/v1/subjects/{ref}/erase")) == "invalid-state"
    files = [path for path in (house.folder / "data").rglob("*") if path.is_file()]
    identity = customer.identity.public.text.encode()[9:60]
    assert [path for path in files if NAME.encode() in path.read_bytes() or identity in path.read_bytes()] == []
    check = verify_log(LogReader.from_dir(house.control.settings.data), house.control.vkey)
    assert check.checkpoint.size > done["index"]
    house.http.cookies.clear()
    house.http.post("/login", data={"token": house.token("auditor", "audit")}, follow_redirects=False)
    assert COOKIE in house.http.cookies
    page = house.http.get(f"/audit/{submitted}").text
    assert "erased</span>" in page
    assert NAME not in page + house.http.get("/leases").text


def test_others_are_untouched(house: House, subject) -> None:
    _, ref, _ = subject
    other = house.customer("other")
    lease = admitted(house, other)
    ok(house.person("operator").post(f"/v1/subjects/{ref}/erase"))
    submitted = entries(house, lease=lease, type="lease.submitted")[0]["index"]
    assert told(other, submitted) == {"job-name": "test", "tenant": "other"}
    assert other.lease(lease)["state"] == "admitted"


def test_what_is_refused(house: House) -> None:
    operator = house.person("operator")
    lease = admitted(house, house.customer(NAME))
    ref = entries(house, lease=lease)[0]["tenant"]
    refused = operator.post(f"/v1/subjects/{ref}/erase")
    assert (code(refused), refused.json()["details"]["rule"]) == ("invalid-state", "erase-lease")
    assert code(operator.post(f"/v1/subjects/tenant-{'0' * 32}/erase")) == "not-found"
    own = entries(house, type="token.issued")[0]["tenant"]
    assert operator.post(f"/v1/subjects/{own}/erase").json()["details"]["rule"] == "erase-self"
    assert told(operator, entries(house, lease=lease, type="lease.submitted")[0]["index"])["tenant"] == NAME


def test_a_crash_before_the_key_is_gone_is_finished_at_the_next_start(folder, monkeypatch) -> None:
    def no_disk(*_: object) -> None:
        raise OSError(5, "planted")

    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer = house.customer(NAME)
        lease = admitted(house, customer)
        assert customer.start_upload("blake3:" + "1" * 64, 5, filename=NAME).status_code == 201
        ok(house.person("operator").post(f"/v1/leases/{lease}/cancel"))
        ref = entries(house, lease=lease)[0]["tenant"]
        with monkeypatch.context() as patch:
            patch.setattr(SubjectKeys, "erase", no_disk)
            caller = house.person("operator")
            answer = caller.post(f"/v1/subjects/{ref}/erase")
            assert answer.status_code == 503
            assert answer.json()["code"] == LogStoreError.code
        assert ref in set(house.control.keys.subjects())
        with house.control.database.read() as session:
            assert list(session.scalars(select(UploadRow.stated))) == [None]
    with ExitStack() as stack:
        house = open_house(stack, folder)
        finish_erasures(house.control)
        assert ref not in set(house.control.keys.subjects())
        assert [row["resource"] for row in entries(house, type="subject.erased")] == [ref]
