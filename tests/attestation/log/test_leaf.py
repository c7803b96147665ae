"""Leaves: one spelling, nothing personal, every refusal named."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.canonical import canonical_json
from attestation.log.errors import LeafError
from attestation.log.leaf import MAX_LEAF_BYTES, Commitment, DocumentRef, Leaf, leaf_id, new_leaf_id

NOW = datetime(2026, 11, 5, 12, 0, 0, 123000, tzinfo=UTC)
LEAF = Leaf(
    type="lease.running",
    occurred_at=NOW,
    recorded_at=NOW,
    actor_ref="server",
    resource_ref="lease-" + "0" * 32,
    action="run",
    outcome="ok",
    tenant_ref="tenant-" + "1" * 32,
    evidence=DocumentRef("sha256:" + "a" * 64, "application/vnd.in-toto+json"),
    commitments=(Commitment("name", "b" * 64), Commitment("email", "c" * 64)),
    id="01936f00-0000-7000-8000-000000000001",
)
SLUG = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
REF = st.from_regex(r"(server|[a-z]{1,16}-[0-9a-f]{32}|sha256:[0-9a-f]{64})", fullmatch=True)
TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  (hypothesis wants naive bounds)


def test_round_trip_is_exact() -> None:
    assert Leaf.from_bytes(LEAF.to_bytes()) == LEAF


def test_bytes_are_rfc_8785() -> None:
    assert canonical_json(json.loads(LEAF.to_bytes())) == LEAF.to_bytes()


@given(st.builds(Leaf, SLUG, TIMES, TIMES, REF, REF, SLUG, SLUG, st.none() | REF))
def test_any_leaf_round_trips(leaf: Leaf) -> None:
    raw = leaf.to_bytes()
    assert Leaf.from_bytes(raw) == leaf
    assert raw == canonical_json(json.loads(raw))


def test_times_are_utc_milliseconds() -> None:
    local = datetime(2026, 11, 5, 14, 0, 0, 123999, tzinfo=timezone(timedelta(hours=2)))
    assert replace(LEAF, occurred_at=local).occurred_at == NOW


def test_id_is_sixteen_bytes_of_a_fresh_uuid7() -> None:
    assert leaf_id(LEAF.to_bytes()).hex() == LEAF.id.replace("-", "")
    assert new_leaf_id() != new_leaf_id()
    assert Leaf("a", NOW, NOW, "server", "server", "a", "ok").id[14] == "7"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"actor_ref": "alice@example.org"}, "leaf-actor_ref"),
        ({"resource_ref": "Annual report 2026"}, "leaf-resource_ref"),
        ({"tenant_ref": "acme"}, "leaf-tenant_ref"),
        ({"action": "free text"}, "leaf-action"),
        ({"outcome": ""}, "leaf-outcome"),
        ({"type": "Lease"}, "leaf-type"),
        ({"id": "936da01f-9abd-4d9d-80c7-02af85c822a8"}, "leaf-id"),
        ({"evidence": DocumentRef("md5:00", "text/plain")}, "leaf-digest"),
        ({"evidence": DocumentRef("sha256:" + "a" * 64, "nothing")}, "leaf-mediaType"),
        ({"commitments": (Commitment("name", "short"),)}, "leaf-commitments"),
        ({"commitments": tuple(Commitment("name", "b" * 64) for _ in range(65))}, "leaf-commitments"),
        ({"occurred_at": datetime(2026, 11, 5)}, "leaf-occurred_at"),  # noqa: DTZ001  (the missing zone is what is refused)
    ],
)
def test_what_could_name_a_person_is_refused(change: dict[str, object], rule: str) -> None:
    with pytest.raises(LeafError) as caught:
        replace(LEAF, **change)  # type: ignore[arg-type]
    assert caught.value.details["rule"] == rule


def _edit(**fields: object) -> bytes:
    return canonical_json({**json.loads(LEAF.to_bytes()), **fields})


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "leaf-json"),
        (b"\xff", "leaf-json"),
        (b"[]", "leaf-fields"),
        (_edit(extra=1), "leaf-fields"),
        (_edit(v=2), "leaf-version"),
        (_edit(v=True), "leaf-version"),
        (_edit(evidence="x"), "leaf-evidence"),
        (_edit(action=7), "leaf-action"),
        (_edit(commitments={}), "leaf-commitments"),
        (_edit(occurred_at="2026-02-30T00:00:00.000Z"), "leaf-day"),
        (_edit(recorded_at="0000-01-01T00:00:00.000Z"), "leaf-day"),
        (_edit(recorded_at="2026-01-01T24:00:00.000Z"), "leaf-recorded_at"),
        (LEAF.to_bytes() + b"\n", "leaf-canonical"),
        (LEAF.to_bytes().replace(b":", b": ", 1), "leaf-canonical"),
        (LEAF.to_bytes().replace(b'"v":1', b'"v":1,"v":1'), "leaf-json"),
        (LEAF.to_bytes().replace(b"run", b"\\u0072un", 1), "leaf-canonical"),
        (b" " * (MAX_LEAF_BYTES + 1), "leaf-size"),
    ],
)
def test_other_bytes_are_refused_by_name(raw: bytes, rule: str) -> None:
    with pytest.raises(LeafError) as caught:
        Leaf.from_bytes(raw)
    assert caught.value.details["rule"] == rule


def test_a_leaf_s_id_is_not_given_for_a_day_that_is_none() -> None:
    with pytest.raises(LeafError):
        leaf_id(_edit(recorded_at="2026-02-30T00:00:00.000Z"))
