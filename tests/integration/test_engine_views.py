"""Lazy inputs inside real containers: decrypted on demand, and gone with the lease."""

from __future__ import annotations

import os
import signal

import pytest

from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import views
from tests.node.rig import view_servers

pytestmark = [pytest.mark.docker, pytest.mark.root]


@pytest.fixture(autouse=True)
def _needs_fuse():
    if not views.available():
        pytest.skip("needs FUSE and the mount extra")


def _lazy(rig, place, files):
    digest, key = rig.bundle(place, files)
    return digest, {"keys": {digest: key}, "inputs": [{"bundle": digest, "path": "/in/a", "access": "lazy"}]}


def test_a_view_is_read_only_and_is_gone_after_the_lease(node_rig, tmp_path):
    _, job = _lazy(node_rig, tmp_path, {"w.txt": "weights\n", "d/x": "deep\n"})
    with node_rig.running():
        lease = node_rig.run("cat /in/a/w.txt /in/a/d/x; touch /in/a/no 2>&1; grep /in/a /proc/self/mountinfo", **job)
    text = node_rig.output(lease)
    assert lease.outcome is Outcome.SUCCEEDED, lease.detail
    assert "weights\ndeep\n" in text
    assert "Read-only file system" in text
    assert "fuse" in text
    step = next(step for step in node_rig.wipe(lease).steps if step.step == "views")
    assert step.ok
    assert step.seen == "none of 1 processes left"
    assert view_servers(node_rig.root) == set()
    assert node_rig.leftovers() == []


def test_a_view_needs_no_room_in_scratch(node_rig, tmp_path):
    _, job = _lazy(node_rig, tmp_path, {"big": "x" * 3_000_000})
    with node_rig.running():
        lease = node_rig.run("wc -c /in/a/big", resources={"scratch": "1Mi"}, **job)
    assert lease.outcome is Outcome.SUCCEEDED
    assert "3000000" in node_rig.output(lease)


def test_a_key_for_another_bundle_opens_nothing(node_rig, tmp_path):
    digest, job = _lazy(node_rig, tmp_path, {"w": "weights"})
    job["keys"] = {digest: os.urandom(32)}
    with node_rig.running():
        lease = node_rig.run("cat /in/a/w", **job)
    assert lease.outcome is Outcome.NODE_FAILURE
    assert lease.state is LeaseState.CLOSED
    assert node_rig.leftovers() == []


def test_a_server_that_was_killed_gives_errors_and_is_still_wiped(node_rig, tmp_path):
    _, job = _lazy(node_rig, tmp_path, {"w": "weights"})
    keys = job.pop("keys")
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("sleep 3; cat /in/a/w && exit 0; exit 9", **job), keys)
        node_rig.control.wait(lease, LeaseState.RUNNING)
        (server,) = view_servers(node_rig.root)
        os.kill(server, signal.SIGKILL)
        node_rig.control.wait(lease)
    assert (lease.outcome, lease.exit_code) == (Outcome.FAILED, 9)
    assert lease.state is LeaseState.CLOSED
    assert node_rig.leftovers() == []


def test_ending_a_process_that_is_not_ours_does_nothing():
    assert views.end(views.Server(os.getpid(), "1"))
    assert views.end(views.Server(2**22 + 1, "1"))
    assert views.end(views.Server(os.getpid(), views._stat(os.getpid())[1]))


@pytest.mark.parametrize("rows", [None, "x", [1], [[1]], [["1", "2"]], [[1, 2]]])
def test_damaged_words_on_views_are_left_out(rows):
    assert views.servers(rows) == ()
