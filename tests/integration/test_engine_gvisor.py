"""``isolation: gvisor`` on the same code path, on the real engine with the runtime runsc."""

from __future__ import annotations

import dataclasses

import pytest

from sandbox.lifecycle import LeaseState, Outcome

pytestmark = [pytest.mark.docker, pytest.mark.root]
GVISOR = {"isolation": "gvisor", "resources": {"memory": "128Mi"}}


@pytest.fixture
def gvisor(node_rig):
    if "gvisor" not in node_rig.node.facts.isolation:
        pytest.skip("needs an engine with the runtime runsc")
    return node_rig


def test_the_kernel_is_gvisors_and_the_result_comes_back(gvisor, tmp_path):
    with gvisor.running():
        lease = gvisor.run("cat /proc/version; id; touch /x 2>&1; echo r > /out/r; exit 3", **GVISOR)
    text = gvisor.output(lease)
    assert (lease.outcome, lease.exit_code) == (Outcome.FAILED, 3)
    assert "Linux version 4.4.0 #1 SMP Sun Jan 10" in text
    assert "uid=65532 gid=65532" in text
    assert "Permission denied" in text
    assert (gvisor.result(lease, tmp_path) / "r").read_text() == "r\n"
    assert gvisor.leftovers() == []


@pytest.mark.parametrize("kind", ["tmpfs", "fscrypt"])
def test_disk(gvisor, kind):
    gvisor.control.policy += f"  scratch: {{kind: {kind}}}\n".encode()
    with gvisor.running():
        lease = gvisor.run("dd if=/dev/zero of=/out/big bs=1M count=100", **GVISOR)
    assert lease.outcome is Outcome.DISK_LIMIT
    assert gvisor.leftovers() == []


def test_memory_and_time(gvisor):
    with gvisor.running():
        memory = gvisor.run("dd if=/dev/zero of=/dev/null bs=900M count=1", **GVISOR)
        time = gvisor.run("sleep 100", lease={"duration": "3s"}, **GVISOR)
    assert memory.outcome is Outcome.MEMORY_LIMIT
    assert time.outcome is Outcome.TIME_LIMIT
    assert gvisor.leftovers() == []


def test_a_network_that_the_runtime_does_not_give_is_refused(gvisor):
    if "--network=none" not in gvisor.node.facts.engine["runsc"]:
        pytest.skip("this engine's runsc has a network")
    gvisor.control.policy += b"  network: {egress: {allow: ['172.17.200.1:7000']}}\n"
    with gvisor.running():
        lease = gvisor.run("true", network={"egress": ["172.17.200.1:7000"]}, **GVISOR)
    assert lease.outcome is Outcome.NODE_FAILURE
    assert "--network=none" in lease.detail


def test_a_node_without_the_runtime_says_so(node_rig):
    facts = node_rig.node.facts.model_copy(update={"isolation": ("container",)})
    node_rig.node = dataclasses.replace(node_rig.node, facts=facts)
    with node_rig.running():
        lease = node_rig.run("true", **GVISOR)
    assert lease.outcome in (Outcome.NODE_FAILURE, Outcome.DENIED)
    assert lease.state in (LeaseState.CLOSED, LeaseState.DENIED)
    assert "gvisor" in lease.detail
    assert lease.logs == {}
