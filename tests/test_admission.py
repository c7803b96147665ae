import pytest

from sandbox.admission import launch_request
from sandbox.job import JobStatement, parse_job

JOB = b"""
apiVersion: sealrig/v1
kind: Job
metadata: {name: read-invoices}
spec:
  image: "reg.example/app@sha256:%s"
  imageSignatures: ["ed25519:AAAA"]
  command: [python3, run.py]
  env: {BATCH: "8"}
  inputs: [{bundle: "blake3:%s", path: /in/weights, access: lazy}]
  output: {maxSize: 3Gi}
  resources: {gpus: 2, gpuMemory: 40Gi, cpus: 1.5, memory: 5Gi, scratch: 6Gi, shm: 300Mi, pids: 99}
  lease: {duration: 45m}
  network: {egress: ["api.example.org:443"]}
  isolation: gvisor
  attestation: {minimum: measured}
""" % (b"a" * 64, b"b" * 64)


@pytest.mark.parametrize("signed", [False, True])
def test_every_field_of_a_job_reaches_the_policy(signed):
    job = parse_job(JOB)
    if signed:
        job = JobStatement(lease="lease-" + "0" * 32, tenant="claimed", customer="x", policy_digest="sha256:" + "c" * 64,
                           submitted_at="2026-01-01T00:00:00Z", job=job)  # fmt: skip
    request = launch_request(job, "acme")
    assert request.model_dump() == {
        "tenant": "acme",
        "name": "read-invoices",
        "image": "reg.example/app@sha256:" + "a" * 64,
        "image_signatures": ("ed25519:AAAA",),
        "command": ("python3", "run.py"),
        "env": {"BATCH": "8"},
        "inputs": (("blake3:" + "b" * 64, "lazy"),),
        "output_max_size": 3 * 2**30,
        "gpus": 2,
        "gpu_memory": 40 * 2**30,
        "cpus": 1.5,
        "memory": 5 * 2**30,
        "scratch": 6 * 2**30,
        "shm": 300 * 2**20,
        "pids": 99,
        "lease_seconds": 2700,
        "egress": ("api.example.org:443",),
        "isolation": "gvisor",
        "attestation_minimum": "measured",
    }


def test_no_network_is_no_target():
    assert launch_request(parse_job(JOB.replace(b'{egress: ["api.example.org:443"]}', b"none")), "acme").egress == ()
