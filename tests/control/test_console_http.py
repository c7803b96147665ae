"""The console over HTTP: who gets in, who sees what, and what every answer carries."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from attestation.signing import b64encode
from sandbox.control.web.sessions import COOKIE
from tests.control.actors import POLICY, ok
from tests.control.conftest import House
from tests.control.test_story import admitted

PAGES = ("/leases", "/nodes", "/policies", "/audit", "/audit/0")


def sign_in(house: House, role: str, tenant: str) -> int:
    house.http.cookies.clear()
    return house.http.post("/login", data={"token": house.token(role, tenant)}, follow_redirects=False).status_code


@pytest.mark.parametrize("page", PAGES)
def test_strangers_are_sent_to_sign_in(house: House, page: str) -> None:
    answer = house.http.get(page, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_a_strict_policy_and_no_script_inside(house: House, page: str) -> None:
    sign_in(house, "operator", "operator")
    answer = house.http.get(page)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert "<script>" not in answer.text
    assert " onclick=" not in answer.text


def test_a_wrong_token_and_a_nodes_token_do_not_sign_in(house: House) -> None:
    for token, status in (("sealrig_wrong", 401), ("", 401), (house.token("node", "operator"), 403)):
        house.http.cookies.clear()
        answer = house.http.post("/login", data={"token": token}, follow_redirects=False)
        assert answer.status_code == status
        assert COOKIE not in answer.cookies


def test_the_cookie_is_not_the_token_and_scripts_cannot_read_it(house: House) -> None:
    token = house.token("operator", "operator")
    cookie = house.http.post("/login", data={"token": token}, follow_redirects=False).headers["set-cookie"]
    assert token not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


def test_a_revoked_token_ends_its_session(house: House) -> None:
    operator = house.person("operator")
    sign_in(house, "auditor", "audit")
    cookies = dict(house.http.cookies)
    token = next(item["id"] for item in ok(operator.get("/v1/tokens")) if item["role"] == "auditor")
    operator.delete(f"/v1/tokens/{token}")
    house.http.cookies.update(cookies)
    assert house.http.get("/leases", follow_redirects=False).status_code == 303


def test_signing_out_needs_the_pages_own_form(house: House) -> None:
    sign_in(house, "operator", "operator")
    house.http.post("/logout", data={"csrf": "guess"})
    assert house.http.get("/leases", follow_redirects=False).status_code == 200
    csrf = house.http.get("/leases").text.split('name="csrf" value="')[1].split('"')[0]
    house.http.post("/logout", data={"csrf": csrf})
    assert house.http.get("/leases", follow_redirects=False).status_code == 303


def test_two_tenants_see_nothing_of_each_other(house: House) -> None:
    lab, other = house.customer("lab"), house.customer("other")
    mine, foreign = admitted(house, lab), admitted(house, other)
    sign_in(house, "customer", "lab")
    page = house.http.get("/leases").text
    assert mine[:18] in page
    assert f"/leases/{foreign}" not in page
    assert house.http.get(f"/leases/{foreign}").status_code == 404
    assert house.http.get(f"/leases/{foreign}/receipt").status_code == 404
    assert "other" not in house.http.get("/policies").text
    entries = house.http.get("/audit").text
    assert mine in entries
    assert foreign not in entries
    row = next(line for line in house.http.get("/audit", params={"lease": mine}).text.splitlines() if 'href="/audit/' in line)
    index = int(row.split('href="/audit/')[1].split('"')[0])
    assert house.http.get(f"/audit/{index}").status_code == 200
    sign_in(house, "customer", "other")
    assert house.http.get(f"/audit/{index}").status_code == 404
    assert house.http.get(f"/audit/{index}/proof").status_code == 404


def test_who_changed_a_policy_and_what(house: House) -> None:
    house.customer("lab")
    operator = house.person("operator")
    ok(operator.put("/v1/policies/lab", {"raw": b64encode(POLICY.replace(b"4Gi", b"1Gi"))}))
    sign_in(house, "customer", "lab")
    page = house.http.get("/policies").text
    assert "+  resources: {memory: {max: 1Gi}" in page
    assert ok(operator.get("/v1/whoami"))["token"] in page
    (change, first) = ok(operator.get("/v1/policy-changes?tenant=lab"))
    for row in (change, first):
        assert f'<a href="/audit/{row["log_index"]}">' in page


def test_filters_narrow_the_log_and_bad_ones_are_explained(house: House) -> None:
    lease = admitted(house, house.customer())
    sign_in(house, "auditor", "audit")
    found = house.http.get("/audit", params={"type": "lease.admitted", "lease": lease}).text
    assert "1 shown" in found
    assert "0 shown" in house.http.get("/audit", params={"until": "2001-01-01T00:00"}).text
    assert "1 shown" in house.http.get("/audit", params={"before": "1"}).text
    for bad in ({"since": "yesterday"}, {"before": "x"}):
        answer = house.http.get("/audit", params=bad)
        assert answer.status_code == 422
        assert "wanted" in answer.text


def test_a_time_without_a_zone_is_utc_whatever_the_servers_zone(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead
    time.tzset()
    try:
        now, hour = datetime.now(UTC).replace(tzinfo=None, microsecond=0), timedelta(hours=1)
        sign_in(house, "auditor", "audit")
        for times, some in (({"until": now + hour}, True), ({"since": now + hour}, False), ({"since": now - hour}, True)):
            words = {name: moment.isoformat() for name, moment in times.items()}
            assert bool(ok(house.person("auditor").get("/v1/log/entries", params=words))["entries"]) is some, times
            assert ("No entry fits" not in house.http.get("/audit", params=words).text) is some, times
    finally:
        monkeypatch.undo()
        time.tzset()


def test_names_from_outside_stay_text(house: House) -> None:
    sign_in(house, "operator", "operator")
    answer = house.http.get("/audit", params={"text": '"><script>alert(1)</script>'})
    assert "<script>alert" not in answer.text


def test_a_large_form_is_not_read(house: House) -> None:
    assert house.http.post("/login", content=b"token=" + b"x" * 100_000).status_code in {401, 413}
