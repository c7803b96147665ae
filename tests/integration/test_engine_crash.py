"""The node is killed at every event of a lease's journal; the next start wipes, reports, and leaves nothing. On the real engine."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from pathlib import Path

import pytest

from attestation.certificate import verify_certificate
from attestation.signing import Envelope
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import start, views
from sandbox.node.init import init_node
from sandbox.node.supervisor import Supervisor
from sandbox.sealing.bundle import data_key, read_header, seal
from sandbox.sealing.keys import Identity
from tests.node.crashing_node import run_until_killed
from tests.node.fake_control import POLICY, FakeControl
from tests.node.http_control import served
from tests.node.rig import host_leftovers, view_servers

pytestmark = [pytest.mark.docker, pytest.mark.root]

EVENTS = [
    "state:placed", "state:attested", "state:unlocked", "scratch", "create", "state:running", "ended", "state:collecting", "state:wiping",
    "wiped", "last:closed", "reported:closed",
]  # fmt: skip


@pytest.fixture(scope="module")
def forks():
    """Processes that start fast, with everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.node.crashing_node"])
    return context


class Case:
    """One node folder and its control plane, over several lives of the node."""

    def __init__(self, root: Path, image: str, kind: str, url: str, control: FakeControl, *, view: bool = False) -> None:
        self.root, self.control = root, control
        control.policy = POLICY + f"  scratch: {{kind: {kind}}}\n".encode()
        init_node(root, server=url, token="token")
        spec, keys = {}, {}
        if view:
            (root / "source").mkdir()
            (root / "source" / "w").write_text("weights")
            made = seal([root / "source"], root / "bundle", recipients=[control.customer.public], signer=control.customer.signing_key)
            raw = (root / "bundle").read_bytes()
            control.bundles[made.digest] = raw
            keys = {made.digest: data_key(read_header(raw), control.customer).raw}
            spec = {"inputs": [{"bundle": made.digest, "path": "/in/a", "access": "lazy"}]}
        self.lease = control.submit(
            spec
            | {
                "image": image,
                "command": ["/bin/sh", "-c", "echo secret > /out/x; echo secret > /tmp/y; sleep 0.3"],
                "lease": {"duration": "30s"},
                "resources": {"scratch": "16Mi", "memory": "64Mi"},
            },
            keys,
        )

    def live_and_die(self, forks, event: str, when: str) -> None:
        process = forks.Process(target=run_until_killed, args=(self.root, event, when))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"the node was not killed at {event}: {process.exitcode}"

    def live_again(self) -> None:
        node, settings, capacity = start.make_node(self.root)
        supervisor = Supervisor(node, capacity, cache_bytes=settings.cache, poll_seconds=0.1)
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        try:
            self.control.wait(self.lease)
        finally:
            supervisor.stop()
            thread.join(60)
        assert [item.name for item in node.engine.containers(node=node.id)] == []
        assert host_leftovers(self.root) == []
        node.client.close()


@pytest.fixture
def case(tmp_path, busybox_image):
    control = FakeControl(Identity.generate())
    with served(control) as url:
        yield lambda kind, **more: Case(tmp_path / "node", busybox_image, kind, url, control, **more)


@pytest.mark.parametrize("when", ["after", "torn"])
@pytest.mark.parametrize("event", EVENTS)
def test_killed_at(case, forks, event, when):
    walk = case("fscrypt")
    walk.live_and_die(forks, event, when)
    walk.live_again()
    lease = walk.lease
    assert lease.state is LeaseState.CLOSED
    if event not in ("state:wiping", "wiped", "last:closed", "reported:closed"):
        assert lease.outcome is Outcome.NODE_FAILURE
        assert lease.result is None
    else:
        assert lease.outcome is Outcome.SUCCEEDED
    certificate = verify_certificate(Envelope.from_bytes(lease.documents["certificate"]), walk.control.node_key)
    assert certificate.predicate.result == "sanitized"
    assert not any(path.is_file() and b"secret" in path.read_bytes() for path in walk.root.rglob("*"))


@pytest.mark.parametrize("event", ["create", "state:running", "state:wiping"])
def test_killed_with_scratch_in_memory(case, forks, event):
    walk = case("tmpfs")
    walk.live_and_die(forks, event, "after")
    walk.live_again()
    assert walk.lease.state is LeaseState.CLOSED


@pytest.mark.parametrize(("event", "when"), [("view", "after"), ("create", "after"), ("state:running", "after"), ("ended", "torn")])
def test_killed_while_a_view_is_served(case, forks, event, when):
    if not views.available():
        pytest.skip("needs FUSE and the mount extra")
    walk = case("tmpfs", view=True)
    walk.live_and_die(forks, event, when)
    walk.live_again()
    assert walk.lease.state is LeaseState.CLOSED
    assert view_servers(walk.root) == set()


def test_killed_twice_and_in_the_wipe(case, forks):
    walk = case("fscrypt")
    walk.live_and_die(forks, "state:running", "after")
    walk.live_and_die(forks, "state:wiping", "after")
    walk.live_and_die(forks, "wiped", "torn")
    walk.live_again()
    assert walk.lease.outcome is Outcome.NODE_FAILURE


def test_the_journal_is_gone_altogether(case, forks):
    walk = case("fscrypt")
    walk.live_and_die(forks, "ended", "torn")
    (folder,) = (walk.root / "leases").iterdir()
    (folder / "journal").unlink()
    walk.live_again()
    assert walk.lease.state is LeaseState.CLOSED


def test_a_container_without_any_folder_is_found_by_its_label(case, forks):
    walk = case("tmpfs")
    walk.live_and_die(forks, "create", "after")
    import shutil
    import subprocess

    (folder,) = (walk.root / "leases").iterdir()
    for name in ("work", "scratch"):
        subprocess.run(["umount", str(folder / "data" / name)], check=True)
    shutil.rmtree(folder / "data")
    (folder / "journal").unlink()
    walk.live_again()
