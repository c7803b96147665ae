"""A node on the real engine with a control plane in memory: for tests that want whole leases without a server."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from attestation.signing import Envelope
from attestation.wipe import WipeReport
from sandbox.node import start
from sandbox.node.client import ControlClient
from sandbox.node.engine import DEFAULT_SOCKET
from sandbox.node.init import init_node
from sandbox.node.supervisor import Supervisor
from sandbox.sealing.bundle import data_key, open_bundle, read_header, seal
from sandbox.sealing.keys import Identity
from sandbox.sealing.logs import LogOpener
from tests.node.fake_control import FakeControl
from tests.node.http_control import served
from tests.patience import LONG, PATIENCE

APPLETS = (
    *(
        "sh",
        "cat",
        "echo",
        "ls",
        "id",
        "sleep",
        "dd",
        "mount",
        "env",
        "true",
        "false",
        "head",
        "tail",
        "grep",
        "touch",
        "mkdir",
        "ln",
        "mkfifo",
    ),
    *("kill", "wc", "stat", "readlink", "yes", "nc", "hostname", "find", "nslookup", "timeout", "chmod"),
)
DOCKERFILE_CHANGES = (
    "VOLUME /data",
    "ENV LD_PRELOAD=/evil.so LD_LIBRARY_PATH=/evil NVIDIA_VISIBLE_DEVICES=all CUDA_VISIBLE_DEVICES=0 KEPT=yes",
    'ENTRYPOINT ["/bin/echo", "the image\'s entrypoint"]',
    "LABEL maker=test",
    "EXPOSE 80",
    "USER 0",
    "WORKDIR /usr",
    "HEALTHCHECK CMD true",
)


def busybox() -> str | None:
    """Return a static busybox, or None where the machine has none."""
    path = shutil.which("busybox")
    if path is None:
        return None
    dynamic = subprocess.run(["ldd", path], capture_output=True, check=False).returncode == 0
    return None if dynamic else path


def make_image(docker_url: str) -> str:
    """Import a small image with everything in its configuration that a launch must undo; return its id."""
    program = busybox()
    assert program is not None
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        for folder in ("bin", "etc", "tmp", "usr", "data", "proc", "sys", "dev"):
            (root / folder).mkdir(parents=True)
        shutil.copy(program, root / "bin" / "busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        archive = Path(place) / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(root, arcname=".", filter=_fixed)
        command = ["docker", "-H", docker_url, "import"]
        for change in DOCKERFILE_CHANGES:
            command += ["-c", change]
        done = subprocess.run([*command, str(archive), "sealrig-test/busybox:node"], capture_output=True, check=True, text=True)
    return done.stdout.strip()


def _fixed(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.mtime = 0
    return info


class NodeRig:
    """One node in this process, its control plane, and one customer."""

    def __init__(self, root: Path, image: str) -> None:
        self.root, self.image = root, image
        self.customer = Identity.generate()
        self.control = FakeControl(self.customer)
        init_node(root, server="http://control", token="token")
        self.node, _, self.capacity = start.make_node(root)
        self.supervisor: Supervisor | None = None

    @contextmanager
    def running(self):
        """Run the node while the block runs, over real HTTP, as views need it; afterwards every lease has ended."""
        with served(self.control) as address:
            self.node = dataclasses.replace(self.node, client=ControlClient(address, "token", self.node.id))
            try:
                yield from self._run()
            finally:
                for thread in [each for each in threading.enumerate() if each.name == "poll"]:
                    thread.join(LONG)
                self.node.client.close()

    def _run(self):
        self.supervisor = Supervisor(self.node, self.capacity, cache_bytes=2**30, poll_seconds=0.1)
        thread = threading.Thread(target=self.supervisor.run)
        thread.start()
        try:
            yield self
        finally:
            self.supervisor.stop()
            thread.join(60 * PATIENCE)
            assert not thread.is_alive()

    def bundle(self, place: Path, files: dict[str, str]) -> tuple[str, bytes]:
        """Seal files and put the bundle on the control plane; return its digest and data key."""
        source = place / "source"
        for name, text in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(text)
        made = seal([source], place / "bundle", recipients=[self.customer.public], signer=self.customer.signing_key)
        raw = (place / "bundle").read_bytes()
        self.control.bundles[made.digest] = raw
        return made.digest, data_key(read_header(raw), self.customer).raw

    def spec(self, script: str, **changes):
        """Return a job that runs a shell script."""
        resources = {"memory": "64Mi", "scratch": "32Mi", "shm": "1Mi", "pids": 64, **changes.pop("resources", {})}
        usual = {"image": self.image, "command": ["/bin/sh", "-c", script], "lease": {"duration": f"{30 * PATIENCE:.0f}s"}}
        return {**usual, **changes, "resources": resources}

    def run(self, script: str, *, keys=None, seconds: float = 40, **changes):
        """Run one job to its end."""
        lease = self.control.submit(self.spec(script, **changes), keys)
        self.control.wait(lease, seconds=seconds)
        return lease

    def output(self, lease) -> str:
        """Open a lease's sealed log."""
        opener = LogOpener(lease.id, self.customer)
        text = b"".join(opener.open(seq, lease.logs[seq]) for seq in sorted(lease.logs))
        assert opener.finished
        return text.decode(errors="replace")

    def result(self, lease, place: Path) -> Path:
        """Open a lease's sealed result."""
        raw = place / "result.sealed"
        raw.write_bytes(self.control.bundles[lease.result])
        open_bundle(raw, place / "result", key=self.customer, signers=[self.node.key.public])
        return place / "result"

    def wipe(self, lease) -> WipeReport:
        """Return a lease's wipe report."""
        return WipeReport.from_payload(Envelope.from_bytes(lease.documents["wipe"]).payload)

    def leftovers(self) -> list[str]:
        """Return everything of any lease that is still on this machine."""
        found = [f"container {item.name}" for item in self.node.engine.containers(node=self.node.id)]
        return found + host_leftovers(self.root)


def host_leftovers(root: Path) -> list[str]:
    """Return mounts, loop devices and lease folders below a node's data folder."""
    real = str(root.resolve())
    found = [
        f"mount {line.split()[4]}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4].startswith(real + "/")
    ]
    found += [f"loop {entry}" for entry in Path("/sys/block").glob("loop*/loop/backing_file") if entry.read_text().startswith(real + "/")]
    found += [f"folder {path}" for path in (root / "leases").glob("*")]
    return found


def view_servers(root: Path) -> set[int]:
    """Return the processes that serve a view of a bundle below a node's data folder: other nodes' views on this machine are not ours."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"sandbox.sealing.viewer" in (place / "cmdline").read_bytes():
                held = [str(entry.readlink()) for entry in (place / "fd").iterdir()]
                found |= {int(place.name)} if any(path.startswith(f"{root.resolve()}/") for path in held) else set()
        except OSError:
            continue
    return found


def docker_url() -> str:
    """Return the engine that tests use."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
