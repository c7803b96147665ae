from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.canonical import canonical_json
from attestation.steps import Steps
from sandbox.customer.planned import check_plan
from tests.customer.fakes import plan_bytes, plan_tree, statement

BUNDLE = "blake3:" + "1" * 64


@pytest.fixture(scope="module")
def job(identity):
    return statement(identity, (BUNDLE,), network={"egress": ["b.example:443", "a.example:443"]}, isolation="gvisor")


def good(job):
    return plan_tree(job, runtime="runsc", egress=["a.example:443", "b.example:443"])


def failed(raw, job):
    steps = Steps("the plan")
    check_plan(raw, job, steps)
    return {step.step for step in steps.all if not step.ok}


def plan(job, **changes):
    return canonical_json({"v": 1, "plan": good(job) | changes})


def test_the_job_as_planned_holds(job):
    assert failed(plan(job), job) == set()


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({"lease": "lease-" + "0" * 32}, "plan-lease"),
        ({"image_reference": "sha256:" + "0" * 64}, "plan-image"),
        ({"command": ["/bin/true"]}, "plan-command"),
        ({"env": ["PATH=/bin"]}, "plan-env"),
        ({"env": ["BATCH=8", "BATCH=9"]}, "plan-env"),
        ({"egress": ["a.example:443", "b.example:443", "evil.example:443"]}, "plan-network"),
        ({"egress": []}, "plan-network"),
        ({"network": "none"}, "plan-network"),
        ({"runtime": "runc"}, "plan-isolation"),
        ({"lease_seconds": 10**6}, "plan-time"),
        ({"read_only": False}, "plan-hardening"),
        ({"read_only": 1}, "plan-hardening"),
        ({"no_new_privileges": False}, "plan-hardening"),
        ({"cap_drop": ["NET_RAW"]}, "plan-hardening"),
        ({"log_driver": "json-file"}, "plan-hardening"),
        ({"ipc": "host"}, "plan-hardening"),
        ({"pid": "host"}, "plan-hardening"),
        ({"core": 1}, "plan-hardening"),
    ],
)
def test_each_difference_fails_its_own_step(job, change, step):
    assert failed(plan(job, **change), job) == {step}


NEEDED = (
    *("lease", "image_reference", "command", "env", "binds", "network", "runtime", "lease_seconds", "read_only", "no_new_privileges"),
    *("cap_drop", "log_driver", "ipc", "pid", "core"),
)


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_missing_fails(job, name):
    tree = good(job)
    del tree[name]
    assert failed(canonical_json({"v": 1, "plan": tree}), job)


@pytest.mark.parametrize(
    "change",
    [
        lambda binds: [*binds, {"source": "/", "target": "/host", "read_only": True}],
        lambda binds: binds[1:],
        lambda binds: [{**binds[0], "read_only": False}, *binds[1:]],
        lambda binds: [{**binds[0], "read_only": "true"}, *binds[1:]],
        lambda binds: [*binds, binds[0]],
        lambda _: None,
    ],
)
def test_a_folder_too_many_too_few_or_writable_fails(job, change):
    assert failed(plan(job, binds=change(good(job)["binds"])), job) == {"plan-paths"}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"v": 2, "plan": {}}', b'{"v": 1, "plan": []}', b"\xff"])
def test_what_is_no_plan_fails(job, raw):
    assert failed(raw, job) == {"plan-format"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["lease", "command", "env", "binds", "egress", "network", "cap_drop", "read_only"]), json_values, min_size=1
    )
)
def test_no_value_crashes_the_check_and_only_equal_ones_pass(job, changes):
    unequal = {name for name, value in changes.items() if good(job)[name] != value and name not in {"env", "binds", "egress"}}
    found = failed(json.dumps({"v": 1, "plan": good(job) | changes}).encode(), job)
    assert bool(found) or not unequal


def test_the_plan_that_a_node_makes_holds(job, identity):
    plain = statement(identity, (BUNDLE,))
    assert failed(plan_bytes(plain), plain) == set()
