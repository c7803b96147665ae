"""What a policy says, what it is asked about and what it answers. Frozen values; no I/O, no clock.

A policy allows; what it does not mention is allowed only as far as the job format's own defaults go: no GPU, no network, one
core, 1 GiB of memory, half an hour. An empty list of images allows none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from policies.patterns import check_egress_pattern, check_image_pattern
from policies.signatures import check_public_key
from policies.units import parse_duration, parse_size

MAX_RULES = 64
MAX_PATTERNS = 512
EXPRESSION_MAX_CHARS = 1024

Isolation = Literal["container", "gvisor"]
LevelName = Literal["software", "measured", "confidential", "confidential-gpu"]
LEVELS: tuple[LevelName, ...] = ("software", "measured", "confidential", "confidential-gpu")
"""Assurance levels, weakest first; the index is the number that rules see."""
ISOLATIONS: tuple[Isolation, ...] = ("container", "gvisor")
"""Kinds of isolation, weakest first."""

Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=2**60)]
Seconds = Annotated[int, BeforeValidator(parse_duration), Field(ge=1, le=366 * 86400)]
Count = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
ImagePattern = Annotated[str, AfterValidator(check_image_pattern)]
EgressPattern = Annotated[str, AfterValidator(check_egress_pattern)]
PublicKeyText = Annotated[str, Field(max_length=1000), AfterValidator(check_public_key)]
PostureId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True)


# ---- the policy


class Metadata(_Model):
    """What a policy is called and what it is for."""

    name: Name
    description: Annotated[str, Field(max_length=2000)] = ""


class ImageSignatures(_Model):
    """The public keys (``ed25519:…`` or a PEM of P-256) of which one must have signed the image's digest."""

    keys: Annotated[tuple[PublicKeyText, ...], Field(min_length=1, max_length=32)]


class Images(_Model):
    """Which images may run: digests, or patterns of repositories; nothing listed is nothing allowed."""

    allow: Annotated[tuple[ImagePattern, ...], Field(max_length=MAX_PATTERNS)] = ()
    signatures: ImageSignatures | None = None


class MaxCount(_Model):
    """A number that may not be exceeded."""

    max: Count


class MaxCores(_Model):
    """Cores that may not be exceeded; fractions are accepted."""

    max: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class MaxSize(_Model):
    """Bytes that may not be exceeded."""

    max: Size


class ResourceLimits(_Model):
    """The most that one job may ask for. Sizes in bytes, ``gpu_memory`` of each GPU, ``inputs`` in bundles."""

    gpus: MaxCount = MaxCount(max=0)
    gpu_memory: MaxSize = MaxSize(max=0)
    cpus: MaxCores = MaxCores(max=1)
    memory: MaxSize = MaxSize(max=2**30)
    scratch: MaxSize = MaxSize(max=4 * 2**30)
    shm: MaxSize = MaxSize(max=256 * 2**20)
    pids: MaxCount = MaxCount(max=256)
    output: MaxSize = MaxSize(max=2 * 2**30)
    inputs: MaxCount = MaxCount(max=16)


class LeaseLimits(_Model):
    """The longest a lease may run, in seconds."""

    max_duration: Seconds = 1800


class EgressRules(_Model):
    """Targets a job may reach, as ``host:port``; ``*.`` stands for one label, port ``*`` for any port."""

    allow: Annotated[tuple[EgressPattern, ...], Field(max_length=MAX_PATTERNS)] = ()


class Network(_Model):
    """What a job may reach; nothing by default."""

    egress: EgressRules = EgressRules()


class IsolationRules(_Model):
    """The weakest isolation that is accepted."""

    minimum: Isolation = "container"


class AttestationRules(_Model):
    """The weakest assurance of a node that is accepted."""

    minimum: LevelName = "software"


class PostureRules(_Model):
    """Checks of ``sealrig node doctor`` that must say ``pass`` on the node."""

    require: Annotated[tuple[PostureId, ...], Field(max_length=128)] = ()


class ScratchRules(_Model):
    """Which kind of scratch a node must use; ``auto`` leaves it to the node."""

    kind: Literal["auto", "tmpfs", "fscrypt", "dm-crypt"] = "auto"


class WipeRules(_Model):
    """How a node wipes after a lease. There is no weaker choice: every node wipes and verifies, and a policy may say so."""

    vram: Literal["required-if-gpu"] = "required-if-gpu"
    verify: Literal[True] = True


class Rule(_Model):
    """One CEL expression over ``job`` and ``node`` that must be true, and what to tell people when it is not."""

    name: Name
    expression: Annotated[str, Field(min_length=1, max_length=EXPRESSION_MAX_CHARS)]
    message: Annotated[str, Field(min_length=1, max_length=500)]
    fix: Annotated[str, Field(max_length=500)] = ""


class PolicySpec(_Model):
    """All that a policy can say."""

    images: Images = Images()
    resources: ResourceLimits = ResourceLimits()
    lease: LeaseLimits = LeaseLimits()
    network: Network = Network()
    isolation: IsolationRules = IsolationRules()
    attestation: AttestationRules = AttestationRules()
    posture: PostureRules = PostureRules()
    scratch: ScratchRules = ScratchRules()
    wipe: WipeRules = WipeRules()
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = ()
    unsafe_development: bool = False
    """Says aloud that this policy is no protection; a server refuses it unless started with ``--unsafe-development``."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"rules: the name {twice[0]!r} stands twice; each rule needs its own"
            raise ValueError(msg)
        if not self.unsafe_development and any(target.startswith("*:") for target in self.network.egress.allow):
            msg = "network.egress.allow with any host needs unsafeDevelopment: true beside it"
            raise ValueError(msg)
        return self


class Policy(_Model):
    """A policy as written in YAML (``apiVersion: sealrig/v1``, ``kind: Policy``)."""

    api_version: Literal["sealrig/v1"]
    kind: Literal["Policy"]
    metadata: Metadata
    spec: PolicySpec = PolicySpec()


# ---- what it is asked about


class LaunchRequest(_Model):
    """A job, reduced to what policies decide on. Sizes in bytes; ``inputs`` are (bundle digest, access)."""

    tenant: str
    name: str
    image: str
    image_signatures: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    inputs: tuple[tuple[str, str], ...] = ()
    output_max_size: int = 0
    gpus: int = 0
    gpu_memory: int = 0
    cpus: float = 1
    memory: int = 2**30
    scratch: int = 4 * 2**30
    shm: int = 256 * 2**20
    pids: int = 256
    lease_seconds: int = 1800
    egress: tuple[str, ...] = ()
    isolation: Isolation = "container"
    attestation_minimum: LevelName = "software"


class NodeFacts(_Model):
    """What is known of the node that a job would run on. ``level`` indexes ``LEVELS``; ``posture`` is check id → result."""

    node: str
    level: Annotated[int, Field(ge=0, lt=len(LEVELS), strict=True)]
    posture: Annotated[dict[str, Literal["pass", "fail", "unknown"]], Field(max_length=256)] = {}
    gpus: Annotated[tuple[dict[str, Any], ...], Field(max_length=64)] = ()
    isolation: tuple[Isolation, ...] = ("container",)
    scratch: tuple[str, ...] = ()
    engine: Annotated[dict[str, str], Field(max_length=64)] = {}


# ---- what it answers


@dataclass(frozen=True)
class Reason:
    """One reason of a denial, complete enough to act on."""

    rule: str
    seen: str
    wanted: str
    fix: str


@dataclass(frozen=True)
class Decision:
    """The answer. ``deferred`` rules need node facts and were not decided; ``checked`` rules were."""

    allowed: bool
    reasons: tuple[Reason, ...]
    deferred: tuple[str, ...]
    checked: tuple[str, ...] = ()
