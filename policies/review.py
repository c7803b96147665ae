"""What a careful reader would remark on a policy that loads: not errors, but things to know before it goes live. Pure."""

from __future__ import annotations

from policies.loader import LoadedPolicy

_WEEK = 7 * 86400


def remarks(loaded: LoadedPolicy) -> tuple[str, ...]:
    """Return one sentence for each thing that is unusually open, or that denies everything."""
    spec = loaded.policy.spec
    found: list[str] = []
    if spec.unsafe_development:
        found.append("unsafeDevelopment is set: a server refuses this policy unless it was started with --unsafe-development")
    if not spec.images.allow:
        found.append("images.allow is empty: every job is denied until an image is named")
    if any(pattern in {"sha256:*", "**@sha256:*"} for pattern in spec.images.allow):
        found.append("images.allow accepts any image that is pinned by digest; the image's content is then the tenant's choice alone")
    if any(target.startswith("*:") for target in spec.network.egress.allow):
        found.append("network.egress.allow accepts any host name: results and inputs can be sent anywhere")
    if any(target.startswith("*.") for target in spec.network.egress.allow):
        found.append("network.egress.allow has a wildcard: whoever can register a name there can receive data")
    if not spec.posture.require:
        found.append("posture.require is empty: nodes that swap job memory to disk or write core dumps are accepted")
    if spec.attestation.minimum == "software":
        found.append("attestation.minimum is software: nothing is proven against the node's own root user")
    if spec.lease.max_duration > _WEEK:
        found.append("lease.maxDuration is over a week: limits and node posture are not looked at again in that time")
    return tuple(found)
