"""A whole house to attack: server, node, two tenants, and an image with a Python in it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox.cli.demo.image import ensure_image
from sandbox.node.engine import Engine
from tests.node.rig import docker_url
from tests.rig import Person, Rig

SLOTS = 6
PYTHON = "/usr/local/bin/python3"
JOB = """\
apiVersion: sealrig/v1
kind: Job
metadata: {{name: {name}}}
spec:
  image: {image}
  command: {command}
  inputs: [{{bundle: "{bundle}", path: /in/code}}]
  output: {{maxSize: {output}}}
  resources: {{memory: {memory}, scratch: 128Mi, shm: 32Mi, pids: 64, cpus: 1}}
  lease: {{duration: {duration}}}
  isolation: {isolation}
"""


@dataclass
class House:
    """The rig and how to run a hostile job on it."""

    rig: Rig
    image: str
    folder: Path
    submitted: Iterator[int] = field(default_factory=itertools.count)

    def submit(self, person: Person, name: str, program: Path, *words: str, duration: str = "60s", isolation: str = "container",
               memory: str = "256Mi", output: str = "32Mi") -> str:  # fmt: skip
        """Seal a program, push it and submit a job that runs it; return the lease."""
        folder = self.folder / f"{name}-{next(self.submitted)}"
        folder.mkdir()
        shutil.copy(program, folder / "attack.py")
        sealed = folder.with_suffix(".sealed")
        person.json("seal", folder / "attack.py", "-o", sealed, "--key", person.key)
        bundle = person.json("push", sealed)["digest"]
        job = folder.with_suffix(".yaml")
        command = json.dumps([PYTHON, "/in/code/attack.py", *words])
        job.write_text(JOB.format(name=name, image=self.image, command=command, bundle=bundle, duration=duration, isolation=isolation,
                                  memory=memory, output=output))  # fmt: skip
        return str(person.json("job", "submit", job)["lease"])

    def finish(self, person: Person, lease: str, *, seconds: float = 120) -> dict[str, Any]:
        """Wait until a lease has ended and return it."""
        return self.rig.wait_state(person, lease, "closed", "quarantined", "denied", "cancelled", "expired", seconds=seconds)

    def output(self, person: Person, lease: str) -> str:
        """Return what the job has written to its standard output."""
        return person.run("lease", "logs", lease).ok().out


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("attacks")
    engine = Engine(docker_url())
    image = ensure_image(engine)
    engine.close()
    with Rig(folder, docker_host=docker_url()) as rig:
        # More processors than most machines have, so that jobs run side by side: what they attack is not the sharing of processors.
        rig.add_node(slots=SLOTS, cpus=SLOTS)
        yield House(rig, image, folder)


@pytest.fixture(scope="session")
def mallory(house: House) -> Person:
    """A hostile customer whose release agent runs."""
    return ready(house, "mallory")


@pytest.fixture(scope="session")
def victim(house: House) -> Person:
    """A customer of another tenant."""
    return ready(house, "victim")


def ready(house: House, name: str) -> Person:
    person = house.rig.person(name)
    person.run("trust", "init", "-o", person.trust).ok()
    house.rig.agent(person)
    return person
