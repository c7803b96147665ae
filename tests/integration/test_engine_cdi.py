"""A lease with GPUs on an engine that knows CDI: exactly the leased device nodes are inside, and no other can be opened.

The cards are made up: device nodes of this machine that do no harm (``fuse``, ``loop-control``) under the names of graphics cards,
described to the engine by our own generator. Everything else is a whole lease.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
from pathlib import Path

import pytest

from attestation.wipe import GpuWipe
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node.engine import Engine
from sandbox.node.gpu import cdi
from sandbox.node.gpu.inventory import Gpu, Inventory
from sandbox.node.gpu.pool import GpuPool
from tests.node.rig import docker_url

pytestmark = [pytest.mark.docker, pytest.mark.root]
DRIVER = "580.178.04"
NULL, FUSE, LOOP_CONTROL = (1, 3), (10, 229), (10, 237)
CARDS = {
    "GPU-955ef018-3bd9-5f27-80b3-fa20ee8d19c5": (200, FUSE),
    "GPU-0a1b2c3d-0000-1111-2222-333344445555": (201, LOOP_CONTROL),
}
"""UUID → the card's number, far from any real card's, and the device that stands for it."""
SHARED = ("/dev/nvidiactl", "/dev/nvidia-uvm")
LOOK = """
ls /dev | grep nvidia
for n in nvidia200 nvidia201 nvidiactl nvidia-uvm; do (: < /dev/$n) 2>/dev/null && echo opened $n; done
ls /usr/lib/x86_64-linux-gnu
echo x 2>/dev/null > /usr/lib/x86_64-linux-gnu/libcuda.so.1 && echo wrote
env
"""


class Wiper:
    """Says of each card that it was wiped."""

    def wipe(self, uuids):
        return tuple(
            GpuWipe(
                uuid=uuid, name="card", backend="none", total_bytes=1, reserved_bytes=0, written_bytes=1, verified_bytes=1, mismatches=0,
                residue_words_before=0, local_memory_scrubbed=True, seconds=0.0, ok=True,
            )
            for uuid in uuids
        )  # fmt: skip


@pytest.fixture(scope="module")
def spec_folder():
    """Return the folder where this engine looks for descriptions."""
    engine = Engine(docker_url())
    try:
        facts, info = engine.facts(), engine._api.info()
    finally:
        engine.close()
    if not facts.cdi:
        pytest.skip("the engine knows no CDI: that takes Docker Engine 25, and before 28.3 the feature 'cdi' in daemon.json")
    folder = Path(info["CDISpecDirs"][-1])
    if (folder / cdi.SPEC_NAME).exists():
        pytest.skip("a node on this machine has described its real GPUs to the engine")
    return folder


@pytest.fixture
def cards(spec_folder, tmp_path):
    """Make the device nodes, describe them to the engine, and take all away again."""
    made = []
    nodes = {**{f"/dev/nvidia{number}": device for number, device in CARDS.values()}, **dict.fromkeys(SHARED, NULL)}
    for name, device in nodes.items():
        if not Path(name).exists():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(*device))
            Path(name).chmod(0o666)
            made.append(Path(name))
    gpus = tuple(Gpu(uuid, "card", 2**30, 0, driver=DRIVER, minor=number) for uuid, (number, _) in CARDS.items())
    library = tmp_path / "libcuda.so.1"
    library.write_text("a library")
    spec = cdi.write_specification(cdi.specification(gpus, {"libcuda.so.1": library}), spec_folder)
    yield gpus
    spec.unlink()
    for path in made:
        path.unlink()


@pytest.fixture
def gpu_rig(node_rig, cards):
    """Return a node that has the cards."""
    rows = tuple({"uuid": gpu.uuid, "name": gpu.name, "memory": gpu.memory} for gpu in cards)
    facts = node_rig.node.facts.model_copy(update={"gpus": rows})
    pool = GpuPool(Inventory(cards, len(cards), "made up"), cdi=node_rig.node.engine.facts().cdi)
    node_rig.control.policy = node_rig.control.policy.replace(b"resources: {", b"resources: {gpus: {max: 2}, ")
    node_rig.node = dataclasses.replace(node_rig.node, gpus=pool, gpu_wiper=Wiper(), facts=facts)
    return node_rig


def test_only_the_leased_cards_are_inside(gpu_rig):
    with gpu_rig.running():
        one = gpu_rig.run(LOOK, resources={"gpus": 1})
        both = gpu_rig.run(LOOK, resources={"gpus": 2})
        none = gpu_rig.run(LOOK)
    for lease in (one, both, none):
        assert (lease.state, lease.outcome) == (LeaseState.CLOSED, Outcome.SUCCEEDED), lease.detail
        assert "wrote" not in gpu_rig.output(lease)
        assert "NVIDIA" not in gpu_rig.output(lease)
    shared = {"nvidiactl", "nvidia-uvm"}
    assert _inside(gpu_rig, one) == shared | {"nvidia200"}
    assert _inside(gpu_rig, both) == shared | {"nvidia200", "nvidia201"}
    assert _inside(gpu_rig, none) == set()
    assert "libcuda.so.1" in gpu_rig.output(one)
    assert "libcuda.so.1" not in gpu_rig.output(none)
    assert [gpu.uuid for gpu in gpu_rig.wipe(one).gpus] == [next(iter(CARDS))]
    assert gpu_rig.leftovers() == []


def _inside(rig, lease) -> set[str]:
    """Return the cards' nodes that the job saw, each of which it could open."""
    lines = rig.output(lease).splitlines()
    seen = {line for line in lines if line.startswith("nvidia")}
    assert {line.removeprefix("opened ") for line in lines if line.startswith("opened ")} == seen
    return seen


def test_another_card_cannot_be_opened_even_with_every_capability(gpu_rig):
    """The kernel's device control group refuses its number, whoever asks inside: what an escape from the job's user would meet."""
    with gpu_rig.running():
        lease = gpu_rig.control.submit(gpu_rig.spec("sleep 100", resources={"gpus": 1}))
        gpu_rig.control.wait(lease, LeaseState.RUNNING)
        pid = gpu_rig.node.engine.pid(f"sealrig-{lease.id}")
        opened = {device: _opens(pid, device) for device in (FUSE, LOOP_CONTROL)}
        lease.end = Outcome.CANCELLED
        gpu_rig.control.wait(lease)
    assert opened == {FUSE: True, LOOP_CONTROL: False}
    assert gpu_rig.leftovers() == []


def _opens(pid: int, device: tuple[int, int]) -> bool:
    """Say whether root of the host, put into the job's control groups and mounts, can open a device by number."""
    joined = "".join(f"echo 0 > {place}/cgroup.procs\n" for place in _groups(pid))
    script = f"{joined}exec nsenter -t {pid} -m /bin/busybox sh -c 'busybox mknod /dev/probe c {device[0]} {device[1]} && : < /dev/probe'"
    done = subprocess.run(["sh", "-ec", script], capture_output=True, check=False, text=True)
    subprocess.run(["nsenter", "-t", str(pid), "-m", "/bin/busybox", "rm", "-f", "/dev/probe"], capture_output=True, check=False)
    assert done.returncode == 0 or "not permitted" in done.stderr, done.stderr
    return done.returncode == 0


def _groups(pid: int) -> list[str]:
    """Return the folders of a process's control groups that bound devices: the unified one, or version 1's ``devices``."""
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "devices":
            found.append(f"/sys/fs/cgroup/devices{path}")
        elif not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            found.append(f"/sys/fs/cgroup{path}")
    return found
