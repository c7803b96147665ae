"""The workload of ``deploy/images/job``: on the processor, through cuda-bindings, and on a real GPU inside the hardened container."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.lifecycle import Outcome
from sandbox.node.gpu.inventory import inventory
from tests.node.gpu.fixtures import driver_libraries, machine
from tests.node.gpu.machine import MIB

__all__ = ["driver_libraries", "machine"]
ROOT = Path(__file__).resolve().parents[2]
IMAGE = "sealrig/cuda:latest"


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "job"
    shutil.copytree(ROOT / "deploy/images/job", folder)
    shutil.copy(ROOT / "sandbox/node/gpu/matmul.ptx", folder)
    return folder / "multiply.py"


def run(job, *words):
    done = subprocess.run([sys.executable, job, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_computes_on_the_processor(job):
    assert run(job, "cpu", "256")["wrong"] == 0


def test_it_computes_through_the_drivers_bindings(job, machine):
    machine.card(memory=17 * MIB)
    assert run(job, "cuda", "256") == {"device": "NVIDIA Stand-in", "n": 256, "wrong": 0, "seconds": pytest.approx(1, abs=60)}


@pytest.mark.docker
@pytest.mark.root
def test_it_computes_on_a_gpu_inside_the_hardened_container(node_rig, job, tmp_path):
    if not any(gpu.backend == "cuda" for gpu in inventory().gpus):
        pytest.skip("needs an NVIDIA GPU")
    if not node_rig.node.engine.facts().cdi:
        pytest.skip("needs a Docker Engine with CDI (25 or newer)")
    image = subprocess.run(["docker", "image", "inspect", "--format", "{{.Id}}", IMAGE], capture_output=True, text=True, check=False)
    if image.returncode:
        pytest.skip(f"needs the image {IMAGE} (deploy/images/README.md)")
    node_rig.image = image.stdout.strip()
    node_rig.control.policy = node_rig.control.policy.replace(b"resources: {", b"resources: {gpus: {max: 1}, gpuMemory: {max: 1Ti}, ")
    files = {"multiply.py": job.read_text(), "matmul.ptx": (job.parent / "matmul.ptx").read_text()}
    digest, key = node_rig.bundle(tmp_path / "code", files)
    with node_rig.running():
        lease = node_rig.run(
            "python3 /in/code/multiply.py cuda 2048", keys={digest: key}, seconds=300,
            inputs=[{"bundle": digest, "path": "/in/code"}], resources={"gpus": 1, "memory": "4Gi", "pids": 512},
        )  # fmt: skip
        assert lease.outcome is Outcome.SUCCEEDED
        said = json.loads(node_rig.output(lease))
        assert said["wrong"] == 0
        assert all(card.ok for card in node_rig.wipe(lease).gpus)
