"""The job that a customer writes, signs and submits. Pure: parsing and checks, no I/O.

A job is public to the operator; secrets belong into a bundle. The signed form (``JobStatement``) carries the lease id that
the customer chose, so that a signed job can start one lease and no more, and the digest of the policy the customer saw.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from policies.errors import PolicyError
from policies.shape import place_of, shape, unknown_key
from policies.strictyaml import load_yaml, nearest
from policies.units import parse_duration, parse_size
from sandbox.errors import JobError
from sandbox.model import BundleDigest, LeaseId, Sha256Digest, TenantName, UtcTime

JOB_MAX_BYTES = 64 * 1024
JOB_PAYLOAD_TYPE = "application/vnd.sealrig.job+json"
MAX_INPUTS = 64
SHM = 256 * 2**20
SHM_A_GPU = 512 * 2**20
"""Bytes of /dev/shm where a job does not say: for one GPU or none, and for each of several."""
MAX_EGRESS = 64
MAX_IMAGE_SIGNATURES = 16

Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0, le=2**50)]
"""Bytes; in YAML a number or ``512Mi``, ``4Gi``, ``2G``."""
Seconds = Annotated[int, BeforeValidator(parse_duration), Field(ge=1, le=366 * 86400)]
"""Seconds; in YAML a number or ``90s``, ``30m``, ``24h``, ``7d``."""

_TMP = "/tmp"  # noqa: S108  (a path inside the container: its own scratch)
ImageSignature = Annotated[str, Field(pattern=r"^(?:ed25519|cosign):[A-Za-z0-9+/=:]{1,8000}$")]

_IMAGE = re.compile(r"(?:[a-z0-9][a-z0-9._:/-]{0,250}@)?sha256:[0-9a-f]{64}")
_EGRESS = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?:\d{1,5}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET_NAME = re.compile(r"(?i)(secret|passw|token|api_?key|credential|private|access_?key)")
_SECRET_VALUE = re.compile(r"(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|-----BEGIN )")


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, strict=False, hide_input_in_errors=True
    )


def _container_path(text: object) -> str:
    if not isinstance(text, str) or not text.startswith("/") or text == "/" or "\0" in text or len(text) > 255:
        msg = "an absolute path below / is wanted"
        raise ValueError(msg)
    path = PurePosixPath(text)
    if ".." in path.parts or str(path) != text:
        msg = "a plain absolute path is wanted, without '..', '//' or a trailing '/'"
        raise ValueError(msg)
    if path.parts[1] in {"proc", "sys", "dev", "etc", "usr", "bin", "sbin", "lib", "lib64"}:
        msg = f"/{path.parts[1]} belongs to the image or the kernel; use a path such as /in/{path.name}"
        raise ValueError(msg)
    return text


ContainerPath = Annotated[str, BeforeValidator(_container_path)]


class Metadata(_Model):
    """What a job is called."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class JobInput(_Model):
    """One sealed bundle and where its files appear, read-only, inside the container."""

    bundle: BundleDigest
    path: ContainerPath
    access: Literal["copy", "lazy"] = "copy"


class Output(_Model):
    """Where results are written inside the container and how large they may become, in bytes."""

    path: ContainerPath = "/out"
    max_size: Size = 2 * 2**30


def _shared_memory(known: dict[str, Any]) -> int:
    """Return the size of /dev/shm that a job gets without asking: NCCL passes data between GPUs of one job through it."""
    gpus = known.get("gpus", 0)
    return SHM_A_GPU * gpus if gpus > 1 else SHM


class Resources(_Model):
    """What the container may use. Sizes in bytes; ``cpus`` in cores. ``shm`` grows with the GPUs where the job does not say."""

    gpus: Annotated[int, Field(ge=0, le=64, strict=True)] = 0
    gpu_memory: Size = 0
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1
    memory: Size = 2**30
    scratch: Size = 4 * 2**30
    shm: Size = Field(default_factory=_shared_memory)
    pids: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 256

    @model_validator(mode="after")
    def _floors(self) -> Self:
        for name, floor in (("memory", 16 * 2**20), ("scratch", 2**20), ("shm", 2**16)):
            if getattr(self, name) < floor:
                msg = f"{name}: {getattr(self, name)} bytes is under the least that works, {floor}"
                raise ValueError(msg)
        return self


class LeaseTerms(_Model):
    """How long the lease may run, in seconds from the start of the container."""

    duration: Seconds = 1800


class Egress(_Model):
    """Hosts and ports that the job may reach; all others are closed."""

    egress: Annotated[tuple[str, ...], Field(max_length=MAX_EGRESS)]

    @model_validator(mode="after")
    def _targets(self) -> Self:
        for target in self.egress:
            if not _EGRESS.fullmatch(target) or not 0 < int(target.rpartition(":")[2]) < 65536:
                msg = f"{target!r} is not host:port (lower case, port 1 to 65535)"
                raise ValueError(msg)
        return self


class AttestationWish(_Model):
    """The least assurance level under which the customer's agent would release keys."""

    minimum: Literal["software", "measured", "confidential", "confidential-gpu"] = "software"


class JobSpec(_Model):
    """What to run, on what, for how long.

    ``image_signatures`` are for policies that demand them (``policies.signatures`` has the forms).
    """

    image: str
    image_signatures: Annotated[tuple[ImageSignature, ...], Field(max_length=MAX_IMAGE_SIGNATURES)] = ()
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)]
    env: Annotated[dict[str, str], Field(max_length=128)] = {}
    inputs: Annotated[tuple[JobInput, ...], Field(max_length=MAX_INPUTS)] = ()
    output: Output = Output()
    resources: Resources = Resources()
    lease: LeaseTerms = LeaseTerms()
    network: Literal["none"] | Egress = "none"
    isolation: Literal["container", "gvisor"] = "container"
    attestation: AttestationWish = AttestationWish()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not _IMAGE.fullmatch(self.image):
            msg = f"image: {self.image!r} is not pinned; a tag can be moved, so write sha256:… or repository@sha256:…"
            raise ValueError(msg)
        for name, value in self.env.items():
            if not _ENV_NAME.fullmatch(name) or "\0" in value or len(value) > 32768:
                msg = f"env: {name!r} is not a usable name, or its value is too long"
                raise ValueError(msg)
        for word in self.command:
            if "\0" in word or len(word) > 32768:
                msg = "command: a word has a NUL byte or more than 32768 characters"
                raise ValueError(msg)
        places = [PurePosixPath(item.path) for item in self.inputs] + [PurePosixPath(self.output.path), PurePosixPath(_TMP)]
        for index, place in enumerate(places):
            for other in places[index + 1 :]:
                if place == other or place in other.parents or other in place.parents:
                    msg = f"paths {place} and {other} overlap; each input, the output and /tmp need their own folder"
                    raise ValueError(msg)
        return self


class Job(_Model):
    """A job as written in YAML (``apiVersion: sealrig/v1``, ``kind: Job``)."""

    api_version: Literal["sealrig/v1"]
    kind: Literal["Job"]
    metadata: Metadata
    spec: JobSpec


class JobStatement(_Model):
    """What the customer signs: the payload of the DSSE envelope of type ``JOB_PAYLOAD_TYPE``."""

    v: Literal[1] = 1
    lease: LeaseId
    tenant: TenantName
    customer: str
    """The customer's public identity, as ``IdentityPublic.text``; results are sealed to it and it verifies the envelope."""
    policy_digest: Sha256Digest
    submitted_at: UtcTime
    job: Job


def parse_job(raw: bytes) -> Job:
    """Parse a job file.

    Raises ``JobError`` with the place, the value seen and, for an unknown key, the nearest valid one.
    """
    try:
        tree = load_yaml(raw, max_bytes=JOB_MAX_BYTES)
    except PolicyError as error:
        raise JobError(error.message, **error.details) from error
    return job_from_tree(tree)


def job_from_tree(tree: object) -> Job:
    """Build a job from parsed YAML or JSON. Raises ``JobError`` as ``parse_job`` does."""
    try:
        return Job.model_validate(tree)
    except ValidationError as error:
        raise _job_error(error) from None  # the cause would show keys and values


def parse_statement(payload: bytes) -> JobStatement:
    """Parse the verified payload of a signed job. Raises ``JobError``."""
    try:
        return JobStatement.model_validate_json(payload)
    except ValidationError as error:
        raise _job_error(error) from None  # the cause would show keys and values


def _job_error(error: ValidationError) -> JobError:
    # A union reports the failure of each branch; the one that says something of the value itself comes first.
    first = min(error.errors(include_url=False), key=lambda item: item["type"] not in {"value_error", "extra_forbidden"})
    loc = [part for part in first["loc"] if part != "Egress" and not str(part).startswith("literal[")]
    place = place_of(JobStatement, loc) or "the document"
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = _keys_at(first["loc"][:-1])
        seen, place = unknown_key(key, known), place_of(JobStatement, loc, nearly=known)
        return JobError(f"{place}: unknown key", rule="job-schema", seen=seen, wanted="a key of the job format", fix=nearest(key, known))
    return JobError(f"{place}: {text}", rule="job-schema", seen=shape(first["input"]), wanted=text, fix=f"correct {place} in the job file")


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Job
    inside: dict[str, type[BaseModel]] = {
        "metadata": Metadata, "spec": JobSpec, "inputs": JobInput, "output": Output, "resources": Resources,
        "lease": LeaseTerms, "network": Egress, "attestation": AttestationWish,
    }  # fmt: skip
    for part in place:
        model = inside.get(str(part), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def secret_warnings(job: Job) -> list[str]:
    """Name each ``env`` entry or command word that looks like a secret; a job is readable to the operator."""
    fix = "put it into a bundle: the operator can read a job, and env shows in 'docker inspect'"
    found = [
        f"env {name} looks like a secret; {fix}"
        for name, value in job.spec.env.items()
        if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value)
    ]
    found += [
        f"command word {index} looks like a secret; {fix}" for index, word in enumerate(job.spec.command) if _SECRET_VALUE.search(word)
    ]
    return found
