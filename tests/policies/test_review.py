import pytest

from policies.loader import PROFILES, load_policy, load_profile
from policies.review import remarks

TIGHT = "images: {allow: ['sha256:" + "a" * 64 + "']}, posture: {require: [swap-off]}, attestation: {minimum: measured}"


def of(spec):
    return remarks(load_policy(f"apiVersion: sealrig/v1\nkind: Policy\nmetadata: {{name: x}}\nspec: {{{spec}}}\n".encode()))


def test_a_tight_policy_draws_no_remark():
    assert of(TIGHT) == ()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("images: {allow: ['sha256:" + "a" * 64 + "']}", "images: {allow: []}"), "every job is denied"),
        (("images: {allow: ['sha256:" + "a" * 64 + "']}", "images: {allow: ['**@sha256:*']}"), "any image"),
        (("[swap-off]", "[]"), "posture.require is empty"),
        (("measured", "software"), "root user"),
        (("attestation", "lease: {maxDuration: 8d}, attestation"), "over a week"),
        (("attestation", "network: {egress: {allow: ['*.example.org:443']}}, attestation"), "wildcard"),
        (("attestation", "unsafeDevelopment: true, attestation"), "--unsafe-development"),
    ],
)
def test_each_opening_draws_its_remark(change, word):
    (remark,) = of(TIGHT.replace(*change))
    assert word in remark


def test_unsafe_openings_draw_theirs():
    found = " ".join(of(TIGHT + ", unsafeDevelopment: true, network: {egress: {allow: ['*:*']}}"))
    assert "any host" in found


def test_every_profile_says_what_it_leaves_open():
    assert all(remarks(load_profile(name)) for name in PROFILES)
