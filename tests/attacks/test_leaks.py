"""A canary in every place that a job can write to, searched for on the whole host while leases run and after they have ended.

What the customer keeps (sources, identity, job files) lies on a tmpfs of its own that is not searched: it is the customer's machine. Every
canary has a number for its lease and a word for its place, so that a sighting says where it leaked from.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from policies.loader import load_profile
from sandbox.node.engine import Engine
from sandbox.node.scratch import kernel
from tests.attacks import half_wiper, leaky
from tests.attacks.conftest import PYTHON, House
from tests.attacks.host_scan import HOST_PLACES, Sighting, _scan_file, mounts, scan
from tests.attacks.results import write_results
from tests.node.rig import docker_url
from tests.rig import Person

# Alone: the search opens every file of the machine, and a scratch with an open file cannot be wiped.
pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(400)]
HOLD_SECONDS = 25
ENGINE_NOTES = "meta.db"
"""Where containerd keeps its notes of containers; what it deletes there stays in the file until it is written over."""
KINDS = ("tmpfs", "fscrypt")
KILLED_TWICE = "the node killed, then killed again in the wipe"
ENDS = ("its own abort()", "the OOM killer", "the time limit", KILLED_TWICE)
"""How leases end, each once with every kind of scratch: lease 1 is the first end with the first kind, lease 2 with the second."""


def _new_prefix() -> bytes:
    return f"leak{secrets.token_hex(12)}-".encode()


@dataclass
class Leaks:
    """What was found, when."""

    house: House
    customers: Path
    prefix: bytes = field(default_factory=_new_prefix)
    since: float = field(default_factory=lambda: time.time() - 1)
    ends: dict[int, dict[str, Any]] = field(default_factory=dict)
    open: set[Sighting] = field(default_factory=set)
    during: set[Sighting] = field(default_factory=set)
    after: set[Sighting] = field(default_factory=set)
    images: list[Path] = field(default_factory=list)

    @property
    def leases(self) -> Path:
        return self.house.rig.folder / "node" / "leases"

    def search(self, *, outside_ram: bool) -> set[Sighting]:
        """Search the host but for the customers' own folder and the mounts through which the kernel decrypts for a running job."""
        engine = Engine(docker_url())
        # The engine's and Sealrig's own folders first, while the jobs surely run; then everything else.
        near = [Path(engine._api.info()["DockerRootDir"]), self.house.rig.folder]
        engine.close()
        views = [Path(point) for point in mounts() if point.startswith(f"{self.leases}/")] if outside_ram else []
        hidden = [self.customers, *views]
        found = scan(self.prefix, near, outside_ram=outside_ram, without=hidden, since=self.since)
        far = [root for root in map(Path, HOST_PLACES) if root.exists()]
        return found | scan(self.prefix, far, outside_ram=outside_ram, without=[*hidden, *near], since=self.since)

    def customer(self, kind: str) -> Person:
        """Return a customer whose policy pins the kind of scratch."""
        rig = self.house.rig
        person = Person(self.customers / kind, rig.url).login(rig.token("customer", f"leaky-{kind}"))
        policy = self.customers / f"{kind}.yaml"
        policy.write_bytes(load_profile("development").raw + f"  scratch: {{kind: {kind}}}\n".encode())
        rig.operator.run("policy", "apply", policy, "--tenant", f"leaky-{kind}").ok()
        person.run("key", "new", person.key).ok()
        person.run("trust", "init", "-o", person.trust).ok()
        rig.agent(person)
        return person

    def submit(self, person: Person, number: int, how: str, *, duration: str = "2m") -> str:
        """Submit the leaky job; return the lease."""
        seed = self.prefix + str(number).encode()
        folder = self.customers / f"job-{number}"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(leaky.canary(seed, "weights") * 5000)
        (folder / "dataset.bin").write_bytes(leaky.canary(seed, "dataset") * 5000)
        inputs = []
        for name, source in (("weights", folder / "weights.bin"), ("dataset", folder / "dataset.bin"), ("code", Path(leaky.__file__))):
            sealed = folder / f"{name}.sealed"
            person.json("seal", source, "-o", sealed, "--key", person.key)
            inputs.append({"bundle": person.json("push", sealed)["digest"], "path": f"/in/{name}"})
        spec = {
            "image": self.house.image, "command": [PYTHON, "/in/code/leaky.py", how, str(HOLD_SECONDS if how == "hold" else 600)],
            "inputs": inputs, "env": {"CANARY": leaky.canary(seed, "env").decode()}, "output": {"maxSize": "32Mi"},
            "lease": {"duration": duration},
            "resources": {"memory": "128Mi", "scratch": "64Mi", "shm": "16Mi", "pids": 64, "cpus": 1},
        }  # fmt: skip
        job = folder / "job.yaml"
        job.write_text(json.dumps({"apiVersion": "sealrig/v1", "kind": "Job", "metadata": {"name": "leaky"}, "spec": spec}))
        return str(person.json("job", "submit", job)["lease"])

    def ready(self, person: Person, lease: str) -> None:
        """Wait until a job has planted everything."""

        def planted() -> bool:
            info = person.json("lease", "show", lease)
            assert info["state"] not in {"denied", "wiping", "closed", "quarantined"}, info
            return info["state"] == "running" and b"ready" in person.run("lease", "logs", lease).raw

        self.house.rig.wait_state(person, lease, "running", "denied", "wiping", "closed", "quarantined")
        self.house.rig.wait_for(planted, f"{lease} to plant its canaries")


@pytest.fixture(scope="module")
def leaks(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leaks]:
    customers = tmp_path_factory.mktemp("customers")
    kernel.mount("customers", customers, "tmpfs", 0, "size=256m,mode=0700")
    try:
        made = Leaks(house, customers)
        people = {kind: made.customer(kind) for kind in KINDS}
        _ends_of_their_own(made, people)
        _the_node_is_killed(made, people)
        made.after = made.search(outside_ram=False)
        if os.environ.get("SEALRIG_WRITE_RESULTS"):
            write_results("leaks", {f"leak_{place}": _result(made, place) for place in leaky.PLACES})
        yield made
    finally:
        subprocess.run(["umount", "--lazy", str(customers)], check=True)


def _ends_of_their_own(made: Leaks, people: dict[str, Person]) -> None:
    # All at once; the holds last, so that the search begins as soon as they have planted everything.
    ended = [(person, made.submit(person, number, "hog")) for number, person in enumerate(people.values(), 3)]
    ended += [(person, made.submit(person, number, "sleep", duration="3s")) for number, person in enumerate(people.values(), 5)]
    holds = {kind: made.submit(person, number, "hold") for number, (kind, person) in enumerate(people.items(), 1)}
    for kind, lease in holds.items():
        made.ready(people[kind], lease)
    made.open = scan(made.prefix, [made.leases], outside_ram=False)
    # An open descriptor keeps the blocks of the backing file for us after it was unlinked: that is what the disk's free space then holds.
    image = os.open(made.leases / holds["fscrypt"] / "data" / "scratch.img", os.O_RDONLY)
    made.images.append(Path(f"/proc/self/fd/{image}"))
    made.during = made.search(outside_ram=True)
    for number, (person, lease) in enumerate([*((people[kind], lease) for kind, lease in holds.items()), *ended], 1):
        made.ends[number] = made.house.finish(person, lease)


def _the_node_is_killed(made: Leaks, people: dict[str, Person]) -> None:
    rig = made.house.rig
    leases = {kind: made.submit(person, number, "sleep") for number, (kind, person) in enumerate(people.items(), 7)}
    for kind, lease in leases.items():
        made.ready(people[kind], lease)
    rig.nodes["node"].kill()
    command = [sys.executable, "-m", "tests.attacks.half_wiper", str(rig.folder / "node")]
    dead = subprocess.run(command, cwd=Path(half_wiper.__file__).parents[2], capture_output=True, timeout=60, check=False)
    assert dead.returncode == -signal.SIGKILL, dead.stderr.decode()[-2000:]
    assert list(made.leases.iterdir()), "the wipe was not interrupted"
    rig.start_node()
    for number, (kind, lease) in enumerate(leases.items(), 7):
        made.ends[number] = made.house.finish(people[kind], lease)


def _places(found: set[Sighting], place: str) -> list[str]:
    return sorted(f"{item.tail}: {item.place}" for item in found if item.tail.endswith(f"-{place}"))


def _result(made: Leaks, place: str) -> dict[str, Any]:
    seen = [
        line
        for line in _places(made.after, place)
        if place != "env" or not (str(made.house.rig.data) in line or line.endswith(ENGINE_NOTES))
    ]
    told = (
        "during: in Docker's container file and in the signed job; after: in the signed job, and at times in containerd's file"
        if place == "env"
        else "nothing outside RAM"
    )
    blocked = not seen and (place == "env" or not _places(made.during, place))
    return {"tried": f"find the {place} canary on the host", "blocked": blocked, "happened": told if blocked else str(seen)}


def test_the_leases_ended_as_planned(leaks: Leaks) -> None:
    assert {info["state"] for info in leaks.ends.values()} == {"closed"}
    outcomes = [leaks.ends[number]["outcome"] for number in range(1, len(ENDS) * len(KINDS) + 1)]
    assert outcomes == [each for each in ("failed", "memory-limit", "time-limit", "node-failure") for _ in KINDS]


def test_the_search_finds_what_is_there(leaks: Leaks) -> None:
    found = {item.tail for item in leaks.open}
    assert {"1-out", "1-tmp", "1-name", "1-weights", "1-dataset", "2-out", "2-tmp", "2-name"} <= found
    held = {item.tail for item in leaks.during if "containers" in item.place}
    assert {"1-env", "2-env"} <= held, "Docker keeps the environment of a running container"


@pytest.mark.parametrize("place", [place for place in leaky.PLACES if place != "env"])
def test_during_the_lease_there_is_no_plaintext_outside_ram(leaks: Leaks, place: str) -> None:
    assert _places(leaks.during, place) == []


@pytest.mark.parametrize("place", [place for place in leaky.PLACES if place != "env"])
def test_after_the_lease_there_is_none_at_all(leaks: Leaks, place: str) -> None:
    assert _places(leaks.after, place) == [], ENDS


def test_the_environment_is_left_where_the_documentation_says(leaks: Leaks) -> None:
    server = f"{leaks.house.rig.data}/"
    found = [item for item in leaks.after if item.tail.endswith("-env")]
    left = [item for item in found if not item.place.startswith(server) and Path(item.place).name != ENGINE_NOTES]
    assert left == []


def test_what_the_disk_keeps_of_encrypted_scratch_is_ciphertext(leaks: Leaks) -> None:
    (image,) = leaks.images
    assert str(image.readlink()).endswith("scratch.img (deleted)")
    raw = image.read_bytes()
    assert sum(any(raw[start : start + 4096]) for start in range(0, len(raw), 4096)) > 100, "nothing had reached the disk"
    assert _scan_file(image, leaks.prefix) == set()
