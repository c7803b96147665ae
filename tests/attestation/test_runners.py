"""Signed releases: what verifies, what each change does, and that a trust file accepts no more than they name."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from attestation.canonical import canonical_json
from attestation.errors import AttestationError, FormatError, SignatureError
from attestation.runners import RELEASE_PAYLOAD_TYPE, build_release, verify_release
from attestation.signing import sign_envelope
from attestation.verify import verify_evidence
from tests.attestation.leases import AT, LOG_KEY, NODE_KEY, OTHER_KEY, RUNNER, evidence, expected, trust
from tests.attestation.test_verify import collect, failed

PUBLISHER = LOG_KEY
LOCK = "sha256:" + "1" * 64
PAYLOAD = build_release("0.2.0", LOCK, {"cpython-3.11.7-linux-x86_64": RUNNER, "cpython-3.13.1-linux-x86_64": "sha256:" + "2" * 64}, AT)


def signed(payload=PAYLOAD, key=PUBLISHER, kind=RELEASE_PAYLOAD_TYPE):
    return sign_envelope(payload, kind, key).to_bytes()


def accepted(**changes):
    release = verify_release(signed(), [PUBLISHER.public]).model_dump(mode="json", by_alias=True)
    return {"keys": [PUBLISHER.public.text], "accepted": [release | changes]}


def test_a_release_says_what_was_signed():
    release = verify_release(signed(), [OTHER_KEY.public, PUBLISHER.public])
    assert (release.version, release.lock, release.released_at, release.key) == ("0.2.0", LOCK, AT, PUBLISHER.public.text)
    assert release.runners["cpython-3.11.7-linux-x86_64"] == RUNNER
    statement = json.loads(PAYLOAD)
    assert (statement["_type"], statement["predicateType"]) == ("https://in-toto.io/Statement/v1", "https://sealrig.dev/release/v1")
    assert set(statement["predicate"]) == {"version", "lock", "releasedAt"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("predicate", "version"), "0.3.0"),
        (("predicate", "lock"), "sha256:" + "9" * 64),
        (("predicate", "releasedAt"), "2027-01-01T00:00:00.000Z"),
        (("subject", 0, "name"), "cpython-3.12.0-linux-x86_64"),
        (("subject", 0, "digest", "sha256"), "9" * 64),
        (("predicateType",), "https://sealrig.dev/sanitization/v1"),
    ],
)
def test_each_field_is_signed(place, value):
    tree = json.loads(PAYLOAD)
    *path, last = place
    part = tree
    for name in path:
        part = part[name]
    assert part[last] != value
    part[last] = value
    envelope = json.loads(signed())
    other = json.loads(signed(canonical_json(tree), OTHER_KEY))
    with pytest.raises(SignatureError):
        verify_release(canonical_json(other | {"signatures": envelope["signatures"]}), [PUBLISHER.public])


def test_another_key_or_kind_is_refused_with_the_way_out():
    for raw in (signed(key=OTHER_KEY), signed(kind="application/vnd.sealrig.evidence+json")):
        with pytest.raises(SignatureError) as caught:
            verify_release(raw, [PUBLISHER.public])
        details = caught.value.details
        assert PUBLISHER.public.key_id in details["wanted"]
        assert "releases.keys" in details["fix"]
        assert details["seen"]
    with pytest.raises(SignatureError):
        verify_release(signed(), [])


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", signed()[:-1], signed(b"{}"), signed(PAYLOAD + b" ")])
def test_what_is_no_release_is_refused(raw):
    with pytest.raises(AttestationError):
        verify_release(raw, [PUBLISHER.public])


def test_one_kind_of_machine_is_named_once():
    tree = json.loads(PAYLOAD)
    tree["subject"][1]["name"] = tree["subject"][0]["name"]
    with pytest.raises(FormatError, match="twice"):
        verify_release(signed(canonical_json(tree)), [PUBLISHER.public])


def test_evidence_needs_a_runner_of_an_accepted_release():
    def verify(rules, made=None):
        envelope = collect(made or evidence(), NODE_KEY)
        return verify_evidence(envelope, trust=rules, expected=expected(), at=AT + timedelta(seconds=1))

    assert verify(trust(releases=accepted()))
    assert verify(trust(runners=[RUNNER], releases={"keys": [PUBLISHER.public.text]}))
    for rules in (
        trust(releases=accepted(runners={"cpython-3.11.7-linux-x86_64": "sha256:" + "3" * 64})),
        trust(releases={"keys": [PUBLISHER.public.text]}),
        trust(runners=["sha256:" + "3" * 64], releases={"keys": [PUBLISHER.public.text]}),
    ):
        assert failed(lambda rules=rules: verify(rules)) == ["runner"]


def test_a_release_whose_key_is_not_listed_any_more_is_an_error():
    with pytest.raises(FormatError, match=r"0\.2\.0 was signed by a key that is not in 'keys'"):
        trust(releases=accepted() | {"keys": [OTHER_KEY.public.text]})
    with pytest.raises(FormatError):
        trust(releases={"accepted": accepted()["accepted"]})
