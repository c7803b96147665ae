"""Lazy inputs inside real containers: decrypted on demand, and gone with the lease."""

from __future__ import annotations

import os
import signal

import pytest

from attestation.run import RunRecord
from attestation.signing import Envelope
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import views
from sandbox.node.layout import LeaseFolder
from sandbox.node.scratch import kernel
from sandbox.sealing.bundle import read_header
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


def test_a_job_starts_before_its_bundle_was_fetched_and_fetches_what_it_reads(node_rig, tmp_path):
    digest, job = _lazy(node_rig, tmp_path, {"big": "0123456789abcdef" * 2**20, "w": "weights\n"})
    with node_rig.running():
        lease = node_rig.run("cat /in/a/w; dd if=/in/a/big bs=16 skip=500000 count=1 2>/dev/null", **job)
    assert lease.outcome is Outcome.SUCCEEDED, lease.detail
    assert node_rig.output(lease) == "weights\n0123456789abcdef"
    assert not node_rig.node.folder.cache.joinpath(digest.removeprefix("blake3:")).exists()
    spans = [[int(part) for part in asked.removeprefix("bytes=").split("-")] for asked in node_rig.control.asked]
    assert sum(last - first + 1 for first, last in spans) < 12 * 2**20
    steps = {step.step: step for step in node_rig.wipe(lease).steps}
    assert (steps["view-pages"].ok, steps["view-pages"].seen) == (True, "gone, with its pages")
    assert (steps["fetched"].ok, steps["fetched"].seen) == (True, "0 cached pages, gone")
    assert node_rig.leftovers() == []


def test_what_is_fetched_already_is_not_fetched_again(node_rig, tmp_path):
    digest, job = _lazy(node_rig, tmp_path, {"w": "weights\n"})
    job["inputs"].append({"bundle": digest, "path": "/in/b"})
    with node_rig.running():
        lease = node_rig.run("cat /in/a/w /in/b/w", **job)
    assert node_rig.output(lease) == "weights\nweights\n"
    assert node_rig.control.asked == [""]


def test_a_segment_that_was_changed_is_an_error_for_the_job_and_an_incident(node_rig, tmp_path):
    digest, job = _lazy(node_rig, tmp_path, {"big": "0123456789abcdef" * 2**18, "w": "weights\n"})
    raw = bytearray(node_rig.control.bundles[digest])
    node_rig.control.headers[digest] = read_header(bytes(raw[:65536])).digest
    raw[2 * 2**20 + 5000] ^= 1
    node_rig.control.bundles[digest] = bytes(raw)
    with node_rig.running():
        lease = node_rig.run("cat /in/a/w; cat /in/a/big > /dev/null && exit 0; exit 9", **job)
    assert (lease.outcome, lease.exit_code) == (Outcome.FAILED, 9)
    assert "weights" in node_rig.output(lease)
    assert "Input/output error" in node_rig.output(lease) or "I/O error" in node_rig.output(lease)
    assert {(each.bundle, each.segment, each.code) for each in lease.incidents} == {(digest, 2, "bundle-tampered")}
    assert RunRecord.from_payload(Envelope.from_bytes(lease.documents["run"]).payload).incidents == len(lease.incidents)
    assert node_rig.leftovers() == []


def test_a_bundle_with_another_header_than_the_agent_saw_is_not_shown(node_rig, tmp_path):
    digest, job = _lazy(node_rig, tmp_path, {"w": "weights"})
    node_rig.control.headers[digest] = "sha256:" + "0" * 64
    with node_rig.running():
        lease = node_rig.run("cat /in/a/w", **job)
    assert lease.outcome is Outcome.NODE_FAILURE
    assert "another bundle" in lease.detail
    assert node_rig.leftovers() == []


def test_a_file_system_that_is_still_held_is_not_said_to_be_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "GONE_SECONDS", 0.1)
    (tmp_path / "place").mkdir()
    kernel.mount("sealrig-view-4194305", tmp_path / "place", "tmpfs", 0)
    try:
        found = list(views.drop_pages((views.Server(4194305, "1", "0:0"),), LeaseFolder(tmp_path)))
    finally:
        kernel.unmount(tmp_path / "place")
    assert [proof.ok for proof in found] == [False]
    assert "mounted for process" in found[0].seen


def test_ending_a_process_that_is_not_ours_does_nothing():
    assert views.end(views.Server(os.getpid(), "1"))
    assert views.end(views.Server(2**22 + 1, "1"))
    assert views.end(views.Server(os.getpid(), views._stat(os.getpid())[1]))


@pytest.mark.parametrize("rows", [None, "x", [1], [[1]], [["1", "2"]], [[1, 2]]])
def test_damaged_words_on_views_are_left_out(rows):
    assert views.servers(rows) == ()
