import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PolicyError, PolicyLimitError
from policies.loader import POLICY_MAX_BYTES, PROFILES, load_policy, load_profile

HEAD = "apiVersion: sealrig/v1\nkind: Policy\nmetadata: {name: mine}\n"


def load(spec):
    return load_policy(f"{HEAD}spec: {spec}\n".encode())


def test_the_digest_is_over_the_raw_bytes():
    raw = f"{HEAD}# a comment counts\n".encode()
    assert load_policy(raw).digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert load_policy(raw).raw == raw
    assert load_policy(raw + b"\n").digest != load_policy(raw).digest


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_load_and_carry_their_name(name):
    assert load_profile(name).name == name


def test_an_unknown_profile_names_the_nearest():
    with pytest.raises(PolicyError) as caught:
        load_profile("strikt")
    assert caught.value.details["fix"] == "did you mean 'strict'?"


@pytest.mark.parametrize(
    ("spec", "place", "fix"),
    [
        ("{imagez: {}}", "spec.imagez", "did you mean 'images'?"),
        ("{lease: {maxDurations: 1h}}", "spec.lease.maxDurations", "did you mean 'maxDuration'?"),
        ("{resources: {gpus: {maximum: 1}}}", "spec.resources.gpus.maximum", "did you mean 'max'?"),
        ("{network: {egress: {alow: []}}}", "spec.network.egress.alow", "did you mean 'allow'?"),
        ("{rules: [{name: a, expresion: 'true', message: m}]}", "spec.rules.0.expression", ""),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(spec, place, fix):
    with pytest.raises(PolicyError) as caught:
        load(spec)
    assert any(place in problem["message"] and fix in problem["fix"] for problem in caught.value.details["problems"])


def test_all_problems_are_named_at_once():
    with pytest.raises(PolicyError) as caught:
        load("{imagez: 1, lease: {maxDuration: soon}, attestation: {minimum: total}}")
    assert len(caught.value.details["problems"]) == 3
    with pytest.raises(PolicyError) as caught:
        load("{rules: [{name: a, expression: 'jb == 1', message: m}, {name: b, expression: 'job.x', message: m}]}")
    assert [problem["message"].split(":")[0] for problem in caught.value.details["problems"]] == ["spec.rules.a", "spec.rules.b"]


@pytest.mark.parametrize(
    "spec",
    [
        "{images: {allow: ['team/app:latest']}}",
        "{images: {signatures: {keys: []}}}",
        "{images: {signatures: {keys: ['ed25519:AAAA']}}}",
        "{network: {egress: {allow: ['169.254.169.254:80']}}}",
        "{resources: {memory: {max: 5 gigs}}}",
        "{resources: {memory: {max: -1}}}",
        "{resources: {gpus: {max: 1.5}}}",
        "{resources: {cpus: {max: .inf}}}",
        "{resources: {cpus: {max: .nan}}}",
        "{rules: [{name: a, expression: 'true', message: m}, {name: a, expression: 'true', message: m}]}",
        "{posture: {require: ['Swap Off']}}",
        "{lease: {maxDuration: 1h}, lease: {maxDuration: 2h}}",
        "{wipe: {vram: skip}}",
        "{wipe: {verify: false}}",
        "{network: {egress: {allow: ['*:443']}}}",
    ],
)
def test_bad_values_are_refused_with_details(spec):
    with pytest.raises(PolicyError) as caught:
        load(spec)
    assert {"rule", "seen", "wanted", "fix"} <= set(caught.value.details)


def test_unsafe_settings_need_to_be_said_aloud():
    assert load("{unsafeDevelopment: true, network: {egress: {allow: ['*:443']}}}").policy.spec.unsafe_development


def test_not_even_a_development_policy_can_switch_the_wipe_off():
    for wipe in ("{verify: false}", "{vram: never}"):
        with pytest.raises(PolicyError):
            load(f"{{unsafeDevelopment: true, wipe: {wipe}}}")


def test_a_policy_that_is_too_large_is_refused():
    with pytest.raises(PolicyLimitError):
        load_policy(HEAD.encode() + b"#" * POLICY_MAX_BYTES)


def test_only_development_is_unsafe():
    assert [name for name in PROFILES if load_profile(name).policy.spec.unsafe_development] == ["development"]


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: (HEAD + text).encode()))
def test_any_bytes_load_or_are_refused(raw):
    with suppress(PolicyError):
        assert load_policy(raw).digest == "sha256:" + hashlib.sha256(raw).hexdigest()
