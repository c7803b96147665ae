"""The launch plan: everything about a container that Sealrig decides, as pure data. No I/O, no clock.

A plan is made before any key is released, its digest is bound into the evidence, and its exact bytes go to the customer. The
engine turns it into one create request with every field explicit (nothing is left to a daemon's default), and what the engine
then really made is compared with it field by field (``drift.py``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from attestation.canonical import canonical_json, sha256_digest
from sandbox.errors import JobError
from sandbox.node.layout import LEASE_LABEL, NODE_LABEL, ROLE_LABEL, LeaseFolder, container_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sandbox.job import Job

UID = GID = 65532
"""Nobody on any distribution: a container's user must own nothing on the host."""
HOSTNAME = "sealrig"
CONTAINER_TMP = "/tmp"  # noqa: S108  (inside the container, where it is the lease's own scratch)
SHADOW_BYTES = 64 * 2**20
"""Size of the tmpfs that stands where an image declares a VOLUME."""
NOFILE = 65536
"""The most open files of a process; less where the host itself has less."""
STOP_SECONDS = 5
MAX_SCRATCH_INODES = 4_000_000
GVISOR_THREADS = 512
GVISOR_MEMORY = 64 * 2**20
"""What gVisor's own kernel, a process on the host, needs beside the job under the same control group."""
ScratchKind = Literal["tmpfs", "dm-crypt", "fscrypt"]

# Names that steer the dynamic loader or a GPU container hook; the hook runs on the host with the container's environment.
_FORBIDDEN_ENV_PREFIXES = ("NVIDIA_", "CUDA_", "LD_")

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class ImageFacts:
    """What the engine says of an image, by its content digest."""

    id: str
    env: tuple[str, ...]
    volumes: tuple[str, ...]
    labels: Mapping[str, str]
    exposed_ports: tuple[str, ...]
    architecture: str


@dataclass(frozen=True)
class Bind:
    """One folder of the host inside the container."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Tmpfs:
    """An empty file system in memory inside the container, nosuid, nodev and noexec. ``size`` in bytes."""

    target: str
    size: int
    mode: int = 0o1777


@dataclass(frozen=True)
class EgressRule:
    """One host and TCP port that the job may reach, with the addresses its name had when the plan was made."""

    host: str
    port: int
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class HostFacts:
    """What a plan has to know of its host: paths of the lease, the scratch kind, and what the engine can do."""

    node: str
    folder: LeaseFolder
    scratch_kind: ScratchKind
    seccomp: str
    apparmor: str
    devices: tuple[str, ...] = ()
    cdi: tuple[str, ...] = ()
    nofile: int = NOFILE
    egress: tuple[EgressRule, ...] = ()
    views: bool = False
    """Whether inputs with lazy access are decrypted on demand; otherwise they are unpacked like all others."""


@dataclass(frozen=True)
class LaunchPlan:
    """All of it. Sizes in bytes, ``nano_cpus`` in billionths of a core, ``lease_seconds`` from the container's start."""

    lease: str
    node: str
    container: str
    image: str
    image_reference: str
    command: tuple[str, ...]
    env: tuple[str, ...]
    labels: Mapping[str, str]
    exposed_ports: tuple[str, ...]
    binds: tuple[Bind, ...]
    tmpfs: tuple[Tmpfs, ...]
    memory: int
    nano_cpus: int
    pids: int
    shm: int
    scratch_kind: ScratchKind
    scratch: int
    output_max_size: int
    lease_seconds: int
    seccomp: str
    seccomp_digest: str
    apparmor: str
    runtime: str
    network: str
    egress: tuple[EgressRule, ...]
    devices: tuple[str, ...]
    cdi: tuple[str, ...]
    user: str = f"{UID}:{GID}"
    working_dir: str = CONTAINER_TMP
    hostname: str = HOSTNAME
    cap_drop: tuple[str, ...] = ("ALL",)
    no_new_privileges: bool = True
    read_only: bool = True
    ipc: str = "private"
    pid: str = ""
    uts: str = ""
    cgroupns: str = "private"
    nofile: int = NOFILE
    core: int = 0
    log_driver: str = "none"
    restart: str = "no"
    stop_signal: str = "SIGTERM"
    stop_seconds: int = STOP_SECONDS
    extra_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    masked_paths: tuple[str, ...] = field(default=MASKED_PATHS)
    readonly_paths: tuple[str, ...] = field(default=READONLY_PATHS)

    def tree(self) -> dict[str, Any]:
        """Return the plan as JSON values. The seccomp profile stands in it as its digest."""
        tree: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "seccomp":
                continue
            if item.name in ("binds", "tmpfs", "egress"):
                tree[item.name] = [asdict(part) for part in value]
            elif isinstance(value, tuple):
                tree[item.name] = list(value)
            elif item.name == "labels":
                tree[item.name] = dict(value)
            else:
                tree[item.name] = value
        return tree

    def to_bytes(self) -> bytes:
        """Return the plan's canonical bytes; the customer gets exactly these."""
        return canonical_json({"v": 1, "plan": self.tree()})

    @property
    def digest(self) -> str:
        """``sha256:…`` over ``to_bytes()``."""
        return sha256_digest(self.to_bytes())


def make_plan(lease: str, job: Job, image: ImageFacts, host: HostFacts) -> LaunchPlan:
    """Make the plan of a lease. The same arguments always give the same bytes. Raises ``JobError`` for what cannot be launched safely."""
    spec = job.spec
    resources = spec.resources
    folder = host.folder
    binds = [
        Bind(str(input_folder(folder, number, view=host.views and item.access == "lazy")), item.path, read_only=True)
        for number, item in enumerate(spec.inputs)
    ]
    binds += [Bind(str(folder.out), spec.output.path, read_only=False), Bind(str(folder.tmp), CONTAINER_TMP, read_only=False)]
    taken = {bind.target for bind in binds}
    shadows = [Tmpfs(target, SHADOW_BYTES) for target in sorted(set(image.volumes)) if target.rstrip("/") not in taken]
    # On tmpfs what a job writes is charged to the container's memory as well, so that the limit must cover both.
    memory = resources.memory + (resources.scratch if host.scratch_kind == "tmpfs" else 0)
    gvisor = spec.isolation == "gvisor"
    return LaunchPlan(
        lease=lease,
        node=host.node,
        container=container_name(lease),
        image=image.id,
        image_reference=spec.image,
        command=spec.command,
        env=_environment(image, spec.env),
        labels={**image.labels, LEASE_LABEL: lease, NODE_LABEL: host.node, ROLE_LABEL: "job"},
        exposed_ports=image.exposed_ports,
        binds=tuple(binds),
        tmpfs=tuple(shadows),
        memory=memory + (GVISOR_MEMORY if gvisor else 0),
        nano_cpus=round(resources.cpus * 1_000_000_000),
        pids=resources.pids + (GVISOR_THREADS if gvisor else 0),
        shm=resources.shm,
        scratch_kind=host.scratch_kind,
        scratch=resources.scratch,
        output_max_size=spec.output.max_size,
        lease_seconds=spec.lease.duration,
        seccomp=host.seccomp,
        seccomp_digest=sha256_digest(host.seccomp.encode()),
        apparmor=host.apparmor,
        runtime="runsc" if gvisor else "runc",
        network="egress" if host.egress else "none",
        egress=host.egress,
        devices=host.devices,
        cdi=host.cdi,
        nofile=min(NOFILE, host.nofile),
    )


def input_folder(folder: LeaseFolder, number: int, *, view: bool) -> Path:
    """Return where the files of input ``number`` stand on the host: unpacked in scratch, or in a view that decrypts on demand."""
    return (folder.views if view else folder.inputs) / str(number)


def forbidden_env(name: str) -> bool:
    """Say whether an environment variable could steer the loader or a GPU hook."""
    return name.startswith(_FORBIDDEN_ENV_PREFIXES)


def _environment(image: ImageFacts, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """Return every variable explicitly. A bare name tells the engine to leave the image's value out."""
    for name in wanted:
        if forbidden_env(name):
            raise JobError(
                f"env {name} is not accepted: it can steer the dynamic loader or a GPU hook on the host",
                rule="env",
                seen=name,
                wanted="no LD_*, NVIDIA_* or CUDA_* variable",
                fix=f"set it in the command instead: [env, {name}=…, program]",
            )
    chosen = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": CONTAINER_TMP}
    dropped = []
    for entry in image.env:
        name, _, value = entry.partition("=")
        if forbidden_env(name):
            dropped.append(name)
        else:
            chosen[name] = value
    chosen["HOME"] = CONTAINER_TMP
    chosen.update(wanted)
    return (*sorted(set(dropped)), *(f"{name}={value}" for name, value in sorted(chosen.items())))
