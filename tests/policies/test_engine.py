import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.engine import evaluate, rule_names
from policies.errors import PolicyError
from policies.loader import load_policy, load_profile
from policies.model import LaunchRequest, NodeFacts
from policies.rules import REQUEST_RULES

A = "sha256:" + "a" * 64
NODE = NodeFacts(node="node-1", level=3, gpus=({"uuid": "GPU-1"},), isolation=("container", "gvisor"), scratch=("fscrypt",),
                 posture={"swap-off": "pass"})  # fmt: skip


def policy(spec):
    return load_policy(f"apiVersion: sealrig/v1\nkind: Policy\nmetadata: {{name: mine}}\nspec: {spec}\n".encode())


def ask(**changes):
    return LaunchRequest(**({"tenant": "acme", "name": "job", "image": A} | changes))


OPEN = policy(f"{{images: {{allow: ['{A}']}}}}")


PROFILES = {name: load_profile(name) for name in ("strict", "standard", "development")}


def rules_of(decision):
    return [reason.rule for reason in decision.reasons]


def test_an_empty_policy_denies():
    decision = evaluate(policy("{}"), ask(), NODE)
    assert not decision.allowed
    assert rules_of(decision) == ["image-allowed"]


def test_the_default_profile_denies_every_image():
    assert "image-allowed" in rules_of(evaluate(load_profile("strict"), ask(), NODE))


def test_what_is_allowed_is_allowed():
    decision = evaluate(OPEN, ask(), NODE)
    assert decision.allowed
    assert decision.checked == rule_names(OPEN)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"image": "sha256:" + "b" * 64}, "image-allowed"),
        ({"gpus": 1}, "gpus-max"),
        ({"gpu_memory": 1}, "gpu-memory-max"),
        ({"cpus": 1.5}, "cpus-max"),
        ({"cpus": float("nan")}, "cpus-max"),
        ({"memory": 2**30 + 1}, "memory-max"),
        ({"scratch": 2**40}, "scratch-max"),
        ({"shm": 2**40}, "shm-max"),
        ({"pids": 257}, "pids-max"),
        ({"output_max_size": 2**40}, "output-max"),
        ({"inputs": (("blake3:x", "copy"),) * 17}, "inputs-max"),
        ({"lease_seconds": 1801}, "lease-duration"),
        ({"egress": ("example.org:443",)}, "egress-allowed"),
    ],
)
def test_each_limit_denies_alone_and_says_all(change, rule):
    (reason,) = evaluate(OPEN, ask(**change), NODE).reasons
    assert reason.rule == rule
    assert all(dataclasses.astuple(reason))


def test_limits_are_inclusive():
    at_limit = ask(memory=2**30, scratch=4 * 2**30, shm=256 * 2**20, pids=256, output_max_size=2 * 2**30, lease_seconds=1800, cpus=1)
    assert evaluate(OPEN, at_limit, NODE).allowed


def test_all_reasons_come_at_once():
    decision = evaluate(policy("{}"), ask(gpus=9, lease_seconds=9999, egress=("a.example:1", "b.example:2")), NODE)
    assert rules_of(decision) == ["image-allowed", "gpus-max", "lease-duration", "egress-allowed", "egress-allowed", "node-gpus"]


@pytest.mark.parametrize(
    ("spec", "request_changes", "node_changes", "rule"),
    [
        ("attestation: {minimum: measured}", {}, {"level": 0}, "attestation-minimum"),
        ("attestation: {minimum: software}", {"attestation_minimum": "confidential"}, {"level": 1}, "attestation-minimum"),
        ("posture: {require: [init-on-free]}", {}, {}, "posture-required"),
        ("posture: {require: [swap-off]}", {}, {"posture": {"swap-off": "unknown"}}, "posture-required"),
        ("posture: {require: [swap-off]}", {}, {"posture": {"swap-off": "fail"}}, "posture-required"),
        ("scratch: {kind: dm-crypt}", {}, {}, "node-scratch"),
        ("isolation: {minimum: container}", {"isolation": "gvisor"}, {"isolation": ("container",)}, "node-isolation"),
        ("resources: {gpus: {max: 8}}", {"gpus": 2}, {}, "node-gpus"),
    ],
)
def test_node_rules_wait_for_the_node_and_then_deny(spec, request_changes, node_changes, rule):
    loaded = policy(f"{{images: {{allow: ['{A}']}}, {spec}}}")
    early = evaluate(loaded, ask(**request_changes), None)
    assert early.allowed
    assert rule in early.deferred
    late = evaluate(loaded, ask(**request_changes), NODE.model_copy(update=node_changes))
    assert rules_of(late) == [rule]
    assert late.deferred == ()


@pytest.mark.parametrize(
    ("rule", "gpu", "allowed"),
    [
        ("gpu.ecc", {"ecc": True}, True),
        ("gpu.ecc", {}, False),  # a rule that reads what the driver did not tell denies
        ("!has(gpu.repair_failed) || !gpu.repair_failed", {}, True),
        ("!has(gpu.repair_failed) || !gpu.repair_failed", {"repair_failed": True}, False),
    ],
)
def test_rules_ask_for_what_drivers_tell_of_gpus(rule, gpu, allowed):
    loaded = policy(f"{{images: {{allow: ['{A}']}}, rules: [{{name: a, expression: 'node.gpus.all(gpu, {rule})', message: m}}]}}")
    assert evaluate(loaded, ask(), NODE.model_copy(update={"gpus": ({"uuid": "GPU-1", **gpu},)})).allowed is allowed


def test_weaker_isolation_than_wanted_is_denied():
    loaded = policy(f"{{images: {{allow: ['{A}']}}, isolation: {{minimum: gvisor}}}}")
    assert rules_of(evaluate(loaded, ask(), None)) == ["isolation-minimum"]
    assert evaluate(loaded, ask(isolation="gvisor"), None).allowed


def with_rule(expression):
    return policy(f"{{images: {{allow: ['{A}']}}, rules: [{{name: mine, expression: \"{expression}\", message: because, fix: do this}}]}}")


def test_written_rules_deny_with_their_message():
    (reason,) = evaluate(with_rule("job.lease.seconds <= 60"), ask(), NODE).reasons
    assert (reason.rule, reason.fix) == ("rules.mine", "do this")
    assert "because" in reason.wanted
    assert evaluate(with_rule("job.lease.seconds <= 60"), ask(lease_seconds=60), NODE).allowed


def test_written_rules_about_nodes_are_deferred():
    loaded = with_rule("node.attestation.level >= 3")
    assert "rules.mine" in evaluate(loaded, ask(), None).deferred
    assert evaluate(loaded, ask(), NODE).allowed
    assert not evaluate(loaded, ask(), NODE.model_copy(update={"level": 2})).allowed


@pytest.mark.parametrize("expression", ["job.env.MISSING == 'x'", "job.name", "job.name > 3", "node.posture['absent'] == 'pass'"])
def test_a_rule_that_fails_denies(expression):
    (reason,) = evaluate(with_rule(expression), ask(), NODE).reasons
    assert reason.rule == "rules.mine"


def test_a_crash_in_a_rule_denies(monkeypatch):
    def crash(*_):
        raise MemoryError

    monkeypatch.setitem(REQUEST_RULES, "gpus-max", crash)
    (reason,) = evaluate(OPEN, ask(), NODE).reasons
    assert reason.rule == "gpus-max"
    assert "MemoryError" in reason.seen


@given(
    st.builds(
        LaunchRequest,
        tenant=st.text(max_size=5), name=st.text(max_size=5), image=st.sampled_from([A, "sha256:*", f"x@{A}", "", "@", "*"]),
        gpus=st.integers(-1, 3), cpus=st.floats(allow_nan=True), memory=st.integers(), egress=st.tuples(st.text(max_size=8)),
        isolation=st.sampled_from(["container", "gvisor"]), attestation_minimum=st.sampled_from(["software", "measured"]),
        image_signatures=st.tuples(st.text(max_size=20)),
    ),
    st.sampled_from(sorted(PROFILES)),
    st.sampled_from([None, NODE]),
)  # fmt: skip
def test_evaluate_never_raises_and_allows_only_without_reasons(request, profile, node):
    decision = evaluate(PROFILES[profile], request, node)
    assert decision.allowed == (not decision.reasons)
    assert set(decision.checked) | set(decision.deferred) == set(rule_names(PROFILES[profile]))
    if request.image in {"sha256:*", "", "@", "*"} and profile == "strict":
        assert not decision.allowed


def test_every_policy_problem_is_a_policy_error():
    with pytest.raises(PolicyError):
        policy("[]")
