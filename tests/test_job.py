"""Job files: what is accepted, and that every refusal names place, value and fix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import JobError
from sandbox.job import JOB_MAX_BYTES, parse_job, parse_statement, secret_warnings

IMAGE = "sha256:" + "a" * 64
BUNDLE = "blake3:" + "b" * 64


def job(spec: str = "", *, image: str = IMAGE, head: str = "apiVersion: sealrig/v1\nkind: Job\nmetadata: {name: one}\n") -> bytes:
    return f"{head}spec:\n  image: {image}\n  command: [run]\n{spec}".encode()


def test_defaults_are_the_documented_ones() -> None:
    spec = parse_job(job()).spec
    assert (spec.network, spec.isolation, spec.attestation.minimum) == ("none", "container", "software")
    assert (spec.output.path, spec.output.max_size) == ("/out", 2 * 2**30)
    assert spec.resources.model_dump() == {
        "gpus": 0, "gpu_memory": 0, "cpus": 1, "memory": 2**30, "scratch": 4 * 2**30, "shm": 256 * 2**20, "pids": 256,
    }  # fmt: skip
    assert spec.lease.duration == 1800


@pytest.mark.parametrize(("gpus", "size"), [(0, 256 * 2**20), (1, 256 * 2**20), (2, 2**30), (8, 4 * 2**30)])
def test_shared_memory_grows_with_the_gpus_that_pass_data_through_it(gpus: int, size: int) -> None:
    assert parse_job(job(f"  resources: {{gpus: {gpus}}}\n")).spec.resources.shm == size
    assert parse_job(job(f"  resources: {{gpus: {gpus}, shm: 64Mi}}\n")).spec.resources.shm == 64 * 2**20


def test_units_and_inputs_are_read() -> None:
    spec = parse_job(
        job(f"""\
  inputs:
    - {{bundle: "{BUNDLE}", path: /in/weights, access: lazy}}
    - {{bundle: "{BUNDLE}", path: /in/code}}
  output: {{path: /results, maxSize: 1.5Gi}}
  resources: {{memory: 512Mi, pids: 10, gpuMemory: 80G}}
  lease: {{duration: 90s}}
  network: {{egress: ["example.org:443"]}}
""")
    ).spec
    assert [item.access for item in spec.inputs] == ["lazy", "copy"]
    assert spec.output.max_size == 3 * 2**29
    assert spec.resources.memory == 2**29
    assert spec.resources.gpu_memory == 80 * 10**9
    assert spec.lease.duration == 90
    assert spec.network != "none"


@pytest.mark.parametrize(
    ("raw", "place", "part"),
    [
        (job("  comand: [x]\n"), "comand", "did you mean 'command'"),
        (job("  resources: {memry: 1Gi}\n"), "memry", "did you mean 'memory'"),
        (job("  command: [y]\n"), "stands twice", "remove one"),
        (job("  resources: {memory: 5 parrots}\n"), "resources.memory", ""),
        (job("  resources: {memory: 1Mi}\n"), "memory", ""),
        (job("  resources: {memory: 99999999Ti}\n"), "memory", ""),
        (job("  resources: {pids: 1e99}\n"), "pids", ""),
        (job("  resources: {pids: true}\n"), "pids", ""),
        (job("  resources: {cpus: -1}\n"), "cpus", ""),
        (job("  lease: {duration: 10 years}\n"), "duration", ""),
        (job("  lease: {duration: 0}\n"), "duration", ""),
        (job(image="python:3.12"), "not pinned", ""),
        (job(image="sha256:abc"), "not pinned", ""),
        (job("  output: {path: /out/../etc}\n"), "output.path", ""),
        (job("  output: {path: /proc/x}\n"), "belongs to the image", ""),
        (job("  output: {path: /}\n"), "output.path", ""),
        (job(f"  inputs: [{{bundle: '{BUNDLE}', path: /out/in}}]\n"), "overlap", ""),
        (job(f"  inputs: [{{bundle: '{BUNDLE}', path: /tmp}}]\n"), "overlap", ""),
        (job("  inputs: [{bundle: sha256:00, path: /in/x}]\n"), "bundle", ""),
        (job("  network: {egress: ['EXAMPLE.org:443']}\n"), "host:port", ""),
        (job("  network: {egress: ['example.org:99999']}\n"), "host:port", ""),
        (job("  network: host\n"), "network", ""),
        (job("  isolation: none\n"), "isolation", ""),
        (job("  env: {'A B': x}\n"), "env", ""),
        (job(head="apiVersion: sealrig/v2\nkind: Job\nmetadata: {name: one}\n"), "apiVersion", ""),
        (job(head="apiVersion: sealrig/v1\nkind: Job\nmetadata: {name: ../up}\n"), "metadata.name", ""),
        (b"[]", "the document", ""),
        (b"", "the document", ""),
        (b"\xff\xfe", "UTF-8", ""),
        (b"a: [", "not valid YAML", ""),
        (b"a: &x 1\nb: *x\n", "alias", ""),
        (b"x" * (JOB_MAX_BYTES + 1), "too large", ""),
        (b"a: " + b"[" * 40, "too deep", ""),
    ],
)  # fmt: skip
def test_a_bad_job_names_the_place_and_the_fix(raw: bytes, place: str, part: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_job(raw)
    assert place in caught.value.message
    assert {"rule", "seen", "wanted", "fix"} <= set(caught.value.details)
    assert part in str(caught.value.details["fix"])


def test_what_looks_like_a_secret_is_pointed_out_and_the_rest_is_not() -> None:
    found = secret_warnings(parse_job(job("  env: {DB_PASSWORD: x, BATCH: '8', PLAIN: ghp_0123456789012345678901234567890123}\n")))
    assert [line.split()[1] for line in found] == ["DB_PASSWORD", "PLAIN"]
    assert not any("ghp_0123" in line for line in found)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_job_or_a_job_error(raw: bytes) -> None:
    for parse in (parse_job, parse_statement):
        with pytest.raises(JobError):
            parse(raw)
