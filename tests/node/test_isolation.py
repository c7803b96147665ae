"""What a node's runtimes cannot give is found before anything of the lease is prepared."""

from __future__ import annotations

import pytest

from policies.model import NodeFacts
from sandbox.job import JobSpec
from sandbox.node.isolation import lacking

EGRESS = {"egress": ["a.example:443"]}
WORDS = {"runtime": "no runtime runsc", "network": "--network=none", "gpu": "--nvproxy", "": ""}


def _lacks(isolation: str, wanted: dict[str, object], runsc: str | None) -> str:
    spec = JobSpec(image="sha256:" + "0" * 64, command=("x",), isolation=isolation, **wanted)
    known = ("container",) if runsc is None else ("container", "gvisor")
    return lacking(spec, NodeFacts(node="node-" + "0" * 32, level=0, isolation=known, scratch=(), engine={"runsc": runsc or ""}))


@pytest.mark.parametrize(
    ("wanted", "runsc", "lacks"),
    [
        ({}, None, "runtime"),
        ({}, "", ""),
        ({"network": EGRESS}, "--platform=ptrace --network=none", "network"),
        ({"network": EGRESS}, "--platform=ptrace", ""),
        ({"resources": {"gpus": 1}}, "--platform=ptrace", "gpu"),
        ({"resources": {"gpus": 1}}, "--nvproxy=false", "gpu"),
        ({"resources": {"gpus": 1}}, "--nvproxy-docker --x=--nvproxy", "gpu"),
        ({"resources": {"gpus": 1}}, "--platform=systrap --nvproxy", ""),
        ({"resources": {"gpus": 1}}, "-nvproxy=true", ""),
    ],
)
def test_gvisor_needs_its_runtime_and_what_the_job_wants_of_it(wanted, runsc, lacks):
    said = _lacks("gvisor", wanted, runsc)
    assert (WORDS[lacks] in said, bool(said)) == (True, bool(lacks))
    assert _lacks("container", wanted, runsc) == ""
