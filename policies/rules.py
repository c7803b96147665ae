"""The rules of a policy, one function a rule: each returns the reasons why a request is denied, none if it is not. Pure.

A rule in ``NODE_RULES`` needs facts of the node; without them it is deferred to the moment before the keys are released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from policies.model import ISOLATIONS, LEVELS, LaunchRequest, NodeFacts, PolicySpec, Reason
from policies.patterns import egress_matches, image_matches
from policies.signatures import signed_by_any
from policies.units import format_duration, format_size

RequestRule = Callable[[PolicySpec, LaunchRequest], Iterator[Reason]]
NodeRule = Callable[[PolicySpec, LaunchRequest, NodeFacts], Iterator[Reason]]
_ASK = "or ask the operator to allow more"


def _image_allowed(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    if not any(image_matches(pattern, request.image) for pattern in spec.images.allow):
        wanted = ", ".join(spec.images.allow[:5]) + (" …" if len(spec.images.allow) > 5 else "")
        yield Reason("image-allowed", request.image, wanted or "an image on the list; the list is empty, so none is",
                     "use an allowed image, or ask the operator to add this digest to images.allow")  # fmt: skip


def _image_signed(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    wanted = spec.images.signatures
    if wanted is None:
        return
    digest = request.image.rpartition("@")[2]
    if not signed_by_any(digest, request.image_signatures, wanted.keys):
        yield Reason("image-signed", f"{len(request.image_signatures)} signatures, none that verifies for {digest}",
                     f"a signature over the digest by one of {len(wanted.keys)} keys of the policy",
                     "have the image signed by a key of images.signatures.keys and put the signature into the job")  # fmt: skip


def _count(rule: str, seen: float, limit: float, what: str) -> Iterator[Reason]:
    if not seen <= limit:
        yield Reason(rule, f"{seen:g} {what}", f"≤ {limit:g} {what}", f"ask for at most {limit:g}, {_ASK}")


def _size(rule: str, seen: int, limit: int) -> Iterator[Reason]:
    if not seen <= limit:
        yield Reason(rule, f"{format_size(seen)} ({seen} bytes)", f"≤ {format_size(limit)} ({limit} bytes)",
                     f"ask for at most {format_size(limit)}, {_ASK}")  # fmt: skip


def _gpus(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _count("gpus-max", request.gpus, spec.resources.gpus.max, "GPUs")


def _gpu_memory(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _size("gpu-memory-max", request.gpu_memory, spec.resources.gpu_memory.max)


def _cpus(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _count("cpus-max", request.cpus, spec.resources.cpus.max, "cores")


def _memory(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _size("memory-max", request.memory, spec.resources.memory.max)


def _scratch(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _size("scratch-max", request.scratch, spec.resources.scratch.max)


def _shm(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _size("shm-max", request.shm, spec.resources.shm.max)


def _pids(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _count("pids-max", request.pids, spec.resources.pids.max, "processes")


def _output(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _size("output-max", request.output_max_size, spec.resources.output.max)


def _inputs(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    return _count("inputs-max", len(request.inputs), spec.resources.inputs.max, "bundles")


def _lease_duration(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    limit = spec.lease.max_duration
    if not request.lease_seconds <= limit:
        yield Reason("lease-duration", format_duration(request.lease_seconds), f"≤ {format_duration(limit)}",
                     f"set lease.duration to at most {format_duration(limit)}, {_ASK}")  # fmt: skip


def _egress(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    allowed = spec.network.egress.allow
    for target in request.egress:
        if not any(egress_matches(pattern, target) for pattern in allowed):
            yield Reason("egress-allowed", target, ", ".join(allowed[:5]) + (" …" if len(allowed) > 5 else "") or "no network at all",
                         f"remove {target} from the job, or ask the operator to add it to network.egress.allow")  # fmt: skip


def _isolation(spec: PolicySpec, request: LaunchRequest) -> Iterator[Reason]:
    if ISOLATIONS.index(request.isolation) < ISOLATIONS.index(spec.isolation.minimum):
        yield Reason("isolation-minimum", request.isolation, f"{spec.isolation.minimum} or stronger",
                     f"set isolation: {spec.isolation.minimum} in the job")  # fmt: skip


def _attestation(spec: PolicySpec, request: LaunchRequest, node: NodeFacts) -> Iterator[Reason]:
    wanted = max(LEVELS.index(spec.attestation.minimum), LEVELS.index(request.attestation_minimum))
    if node.level < wanted:
        yield Reason("attestation-minimum", LEVELS[node.level], f"{LEVELS[wanted]} or stronger",
                     "run it on a node with stronger evidence, or lower the minimum where that is acceptable")  # fmt: skip


def _posture(spec: PolicySpec, request: LaunchRequest, node: NodeFacts) -> Iterator[Reason]:
    del request
    for check in spec.posture.require:
        result = node.posture.get(check, "unknown")
        if result != "pass":
            yield Reason("posture-required", f"{check}: {result}", f"{check}: pass",
                         f"on the node, 'sealrig node doctor' says how to fix {check}")  # fmt: skip


def _node_isolation(spec: PolicySpec, request: LaunchRequest, node: NodeFacts) -> Iterator[Reason]:
    del spec
    if request.isolation not in node.isolation:
        yield Reason("node-isolation", ", ".join(node.isolation) or "none", request.isolation,
                     f"run it on a node that offers {request.isolation}")  # fmt: skip


def _node_scratch(spec: PolicySpec, request: LaunchRequest, node: NodeFacts) -> Iterator[Reason]:
    del request
    kind = spec.scratch.kind
    if kind != "auto" and kind not in node.scratch:
        yield Reason("node-scratch", ", ".join(node.scratch) or "none", kind,
                     f"run it on a node that offers {kind}, or set scratch.kind: auto")  # fmt: skip


def _node_gpus(spec: PolicySpec, request: LaunchRequest, node: NodeFacts) -> Iterator[Reason]:
    del spec
    if request.gpus > len(node.gpus):
        yield Reason("node-gpus", f"{len(node.gpus)} GPUs", f"≥ {request.gpus} GPUs", "run it on a node with enough GPUs")


REQUEST_RULES: dict[str, RequestRule] = {
    "image-allowed": _image_allowed,
    "image-signed": _image_signed,
    "gpus-max": _gpus,
    "gpu-memory-max": _gpu_memory,
    "cpus-max": _cpus,
    "memory-max": _memory,
    "scratch-max": _scratch,
    "shm-max": _shm,
    "pids-max": _pids,
    "output-max": _output,
    "inputs-max": _inputs,
    "lease-duration": _lease_duration,
    "egress-allowed": _egress,
    "isolation-minimum": _isolation,
}
NODE_RULES: dict[str, NodeRule] = {
    "attestation-minimum": _attestation,
    "posture-required": _posture,
    "node-isolation": _node_isolation,
    "node-scratch": _node_scratch,
    "node-gpus": _node_gpus,
}
