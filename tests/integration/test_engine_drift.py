"""What the engine made is compared with the plan before the start: every field that could differ is refused. On the real engine."""

from __future__ import annotations

import copy

import pytest

from sandbox.errors import DriftError
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import drift
from sandbox.node.drift import check, create_request, differences

pytestmark = [pytest.mark.docker, pytest.mark.root]


@pytest.fixture(scope="module")
def made(tmp_path_factory, busybox_image):
    """A plan and the engine's inspect of what it made of it."""
    from tests.node.rig import NodeRig

    rig = NodeRig(tmp_path_factory.mktemp("drift") / "node", busybox_image)
    seen = {}
    real = drift.check

    def spy(plan, inspected, *, network_mode):
        seen.update(plan=plan, inspected=inspected)
        return real(plan, inspected, network_mode=network_mode)

    drift.check = spy
    try:
        with rig.running():
            assert rig.run("true").state is LeaseState.CLOSED
    finally:
        drift.check = real
    return seen["plan"], seen["inspected"]


def test_what_the_engine_makes_of_a_plan_is_the_plan(made):
    plan, inspected = made
    assert differences(plan, inspected, network_mode="none") == []
    assert check(plan, inspected, network_mode="none").startswith(b"{")


def _other(value):
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "x" if value else "host"
    if isinstance(value, list):
        return [*value, "SYS_ADMIN"] if not value or isinstance(value[0], str) else value[:-1]
    if isinstance(value, dict):
        return {**value, "x": "y"}
    return "x"


def test_every_field_that_the_engine_shows_is_compared(made):
    plan, inspected = made
    missed = []
    for part in ("Config", "HostConfig"):
        for name, value in inspected[part].items():
            changed = copy.deepcopy(inspected)
            changed[part][name] = _other(value)
            if not differences(plan, changed, network_mode="none"):
                missed.append(f"{part}.{name}")
    assert missed == []


def test_every_field_of_the_request_is_compared_when_it_is_missing(made):
    plan, inspected = made
    request = create_request(plan, network_mode="none")
    host = request.pop("HostConfig")
    for part, wanted in (("Config", request), ("HostConfig", host)):
        for name, value in wanted.items():
            if drift._is_empty(value):
                continue
            changed = copy.deepcopy(inspected)
            changed[part].pop(name, None)
            assert differences(plan, changed, network_mode="none"), f"{part}.{name}"


@pytest.mark.parametrize("field", ["Image", "Name", "Path", "Args", "AppArmorProfile", "Mounts"])
def test_other_parts_of_the_inspect_are_compared(made, field):
    plan, inspected = made
    changed = copy.deepcopy(inspected)
    changed[field] = "other"
    assert field in {item.place for item in differences(plan, changed, network_mode="none")}


def test_an_anonymous_volume_is_drift(made):
    plan, inspected = made
    changed = copy.deepcopy(inspected)
    changed["Mounts"].append(
        {"Type": "volume", "Name": "v", "Source": "/var/lib/docker/volumes/v/_data", "Destination": "/more", "RW": True}
    )
    with pytest.raises(DriftError, match="Mounts"):
        check(plan, changed, network_mode="none")


def test_a_field_of_a_newer_engine_that_is_filled_is_drift(made):
    plan, inspected = made
    changed = copy.deepcopy(inspected)
    changed["HostConfig"]["Annotations"] = {"run.oci.keep_original_groups": "1"}
    (found,) = differences(plan, changed, network_mode="none")
    assert found.place == "HostConfig.Annotations"


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("HostConfig", "Privileged", True),
        ("HostConfig", "CapAdd", ["SYS_ADMIN"]),
        ("HostConfig", "CapDrop", []),
        ("HostConfig", "ReadonlyRootfs", False),
        ("HostConfig", "NetworkMode", "bridge"),
        ("HostConfig", "PidsLimit", 0),
        ("HostConfig", "MemorySwap", -1),
        ("HostConfig", "LogConfig", {"Type": "json-file", "Config": {}}),
        ("HostConfig", "SecurityOpt", ["seccomp=unconfined"]),
        ("HostConfig", "Runtime", "nvidia"),
        ("HostConfig", "IpcMode", "host"),
        ("HostConfig", "PidMode", "host"),
    ],
)
def test_a_daemon_that_changes_a_control_refuses_to_start(node_rig, monkeypatch, part, name, value):
    real = drift.create_request

    def changed(plan, *, network_mode):
        request = real(plan, network_mode=network_mode)
        request["HostConfig"][name] = value
        return request

    # The engine is asked for something else than the plan, as a daemon with other defaults would do by itself.
    import sandbox.node.engine as engine_module

    class Changed:
        create_request = staticmethod(changed)
        check = staticmethod(drift.check)

    monkeypatch.setattr(engine_module, "drift", Changed)
    with node_rig.running():
        lease = node_rig.run("echo never")
    assert lease.outcome is Outcome.NODE_FAILURE
    assert name in lease.detail or "Docker could not create" in lease.detail
    assert lease.logs == {}
    assert lease.state is LeaseState.CLOSED
    assert node_rig.leftovers() == []
