"""The launch plan is pure and whole: the same input, the same bytes; nothing unsafe gets through."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.canonical import sha256_digest
from sandbox.errors import InputError, JobError
from sandbox.job import job_from_tree
from sandbox.node.drift import create_request, security_options
from sandbox.node.layout import NodeFolder, container_name
from sandbox.node.plan import HostFacts, ImageFacts, forbidden_env, make_plan

LEASE = "lease-" + "1" * 32
IMAGE = ImageFacts(
    "sha256:" + "a" * 64, ("PATH=/bin", "LD_PRELOAD=/x", "NVIDIA_VISIBLE_DEVICES=all", "K=v"), ("/data",), {"a": "b"}, ("80/tcp",), "amd64"
)
HOST = HostFacts(
    node="node-" + "2" * 32, folder=NodeFolder(Path("/n")).lease(LEASE), scratch_kind="fscrypt", seccomp='{"x": 1}', apparmor=""
)


def _job(**spec):
    tree = {"image": "sha256:" + "a" * 64, "command": ["/bin/true"], **spec}
    return job_from_tree({"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "t"}, "spec": tree})


def test_same_input_same_bytes():
    first, second = (make_plan(LEASE, _job(env={"B": "1", "A": "2"}), IMAGE, HOST) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    assert first.digest == sha256_digest(first.to_bytes())


def test_every_field_is_in_the_bytes_that_the_customer_gets():
    plan = make_plan(LEASE, _job(), IMAGE, HOST)
    tree = json.loads(plan.to_bytes())["plan"]
    names = {item.name for item in dataclasses.fields(plan)} - {"seccomp"}
    assert set(tree) == names
    assert tree["seccomp_digest"] == sha256_digest(b'{"x": 1}')


def test_any_change_of_the_plan_changes_its_digest():
    plan = make_plan(LEASE, _job(), IMAGE, HOST)
    for item in dataclasses.fields(plan):
        if item.name in ("seccomp", "binds", "tmpfs", "egress", "labels"):
            continue
        value = getattr(plan, item.name)
        other = (
            (*value, "x")
            if isinstance(value, tuple)
            else (not value)
            if isinstance(value, bool)
            else value + 1
            if isinstance(value, int)
            else f"{value}x"
        )
        assert dataclasses.replace(plan, **{item.name: other}).digest != plan.digest, item.name


def test_the_images_environment_is_decided_name_by_name():
    env = make_plan(LEASE, _job(env={"MINE": "1"}), IMAGE, HOST).env
    assert env == ("LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES", "HOME=/tmp", "K=v", "MINE=1", "PATH=/bin")


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_a_job_may_not_steer_loader_or_hooks(name):
    assert forbidden_env(name)
    with pytest.raises(JobError) as caught:
        make_plan(LEASE, _job(env={name: "x"}), IMAGE, HOST)
    assert "env" in caught.value.details["fix"]


def test_volumes_are_shadowed_unless_something_stands_there():
    image = dataclasses.replace(IMAGE, volumes=("/data", "/out", "/tmp/"))
    assert [item.target for item in make_plan(LEASE, _job(), image, HOST).tmpfs] == ["/data"]


def test_memory_covers_what_is_written_to_memory():
    job = _job(resources={"memory": "64Mi", "scratch": "32Mi"})
    assert make_plan(LEASE, job, IMAGE, HOST).memory == 64 * 2**20
    assert make_plan(LEASE, job, IMAGE, dataclasses.replace(HOST, scratch_kind="tmpfs")).memory == 96 * 2**20


def test_the_request_leaves_nothing_to_the_daemon():
    plan = make_plan(LEASE, _job(), IMAGE, HOST)
    request = create_request(plan, network_mode="none")
    host = request["HostConfig"]
    assert host["MemorySwap"] == host["Memory"]
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"]
    assert request["Entrypoint"] == []
    assert request["Healthcheck"] == {"Test": ["NONE"]}
    assert host["LogConfig"]["Type"] == "none"
    assert security_options(plan)[:2] == ["no-new-privileges:true", 'seccomp={"x": 1}']


def test_hosts_with_fewer_files_give_fewer():
    assert make_plan(LEASE, _job(), IMAGE, dataclasses.replace(HOST, nofile=1024)).nofile == 1024


@given(st.text(max_size=60))
def test_only_lease_ids_become_names(text):
    if text == LEASE:
        return
    try:
        assert container_name(text) == f"sealrig-{text}"
    except InputError:
        return
    assert text.startswith("lease-")
    assert len(text) == 38
    assert set(text[6:]) <= set("0123456789abcdef")


@pytest.mark.parametrize("bad", ["", "lease-", LEASE + "\n", "../" + LEASE, LEASE.upper(), LEASE[:-1] + "/"])
def test_bad_lease_ids(bad):
    with pytest.raises(InputError):
        container_name(bad)
