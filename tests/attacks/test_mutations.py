"""Each control of the launch profile taken away in turn, from a raw container: a named probe must notice, and so must the drift comparison.

A control whose removal nothing notices is either not a control or not tested. The containers are made with the engine's plain create
call, from the same plan as a lease's container but for the one thing that is taken away.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.cli.demo.image import ensure_image
from sandbox.job import parse_job
from sandbox.node import drift
from sandbox.node.engine import Engine
from sandbox.node.layout import NodeFolder
from sandbox.node.plan import Bind, HostFacts, LaunchPlan, make_plan
from sandbox.node.scratch import kernel
from sandbox.node.scratch.tmpfs import TmpfsScratch
from sandbox.node.seccomp import shipped_profile
from tests.attacks import inside
from tests.attacks.conftest import PYTHON
from tests.node.rig import docker_url

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow]
LEASE = "lease-" + "a" * 32
CANARY = "canary-of-the-log-4f0c"
SPEC = """\
apiVersion: sealrig/v1
kind: Job
metadata: {{name: mutation}}
spec:
  image: {image}
  command: [{python}, /in/code/inside.py]
  inputs: [{{bundle: "blake3:{zeros}", path: /in/code}}]
  resources: {{memory: 128Mi, scratch: 64Mi, shm: 32Mi, pids: 64, cpus: 1}}
  lease: {{duration: 1m}}
"""
CHANGES = "VOLUME /data\nENV NVIDIA_VISIBLE_DEVICES=all\nENV LD_LIBRARY_PATH=/evil\nENV KEPT=yes"
Request = dict[str, Any]


@dataclass(frozen=True)
class Mutation:
    """One control taken away: ``plan`` changes the plan, ``request`` the create call. ``noticed_by`` names probes of ``inside``."""

    name: str
    noticed_by: tuple[str, ...]
    plan: Callable[[LaunchPlan], LaunchPlan] = lambda plan: plan
    request: Callable[[Request], Any] = lambda request: None


def _fields(name: str, *noticed_by: str, **changes: Any) -> Mutation:
    return Mutation(name, noticed_by, plan=lambda plan: replace(plan, **changes))


def _host(name: str, *noticed_by: str, **changes: Any) -> Mutation:
    return Mutation(name, noticed_by, request=lambda request: request["HostConfig"].update(changes))


def _bare_names(plan: LaunchPlan) -> LaunchPlan:
    return replace(plan, env=tuple(entry for entry in plan.env if "=" in entry))


def _scratch_on_disk(plan: LaunchPlan) -> LaunchPlan:
    plain = Path(plan.binds[0].source).parent
    ours = {"/tmp": plain / "tmp", "/out": plain / "out"}
    for place in ours.values():
        place.mkdir(exist_ok=True)
        place.chmod(0o777)
    return replace(plan, binds=tuple(replace(bind, source=str(ours.get(bind.target, bind.source))) for bind in plan.binds))


def _bound(source: str, target: str) -> Callable[[LaunchPlan], LaunchPlan]:
    return lambda plan: replace(plan, binds=(*plan.binds, Bind(source, target, read_only=True)))


SYSCALLS = (
    "call_ptrace", "call_process_vm_writev", "call_name_to_handle_at", "call_io_uring", "call_userfaultfd", "call_keyctl", "call_add_key",
    "call_bpf", "call_perf_event_open", "call_unshare_user", "clone_user_namespace", "vsock_socket", "socket_high_bits",
)  # fmt: skip
"""What only the filter stops: an unprivileged program on this kernel gets through to each."""
MUTATIONS = [
    _fields("keep the default capabilities", "no_capabilities", cap_drop=()),
    _host("give one capability back", "no_capabilities", CapAdd=["SYS_ADMIN"]),
    _fields("run as root", "uid_is_not_root", user="0:0"),
    _fields("allow new privileges", "no_new_privileges", no_new_privileges=False),
    _fields("no seccomp filter", "seccomp_filter", "call_i386", "call_process_vm_readv", *SYSCALLS, seccomp="unconfined"),
    _fields("the engine's own seccomp filter", "call_i386", seccomp=""),
    _fields("a writable root file system", "write_root", read_only=False),
    _fields("as many processes as it likes", "process_limit", pids=0),
    _fields("as much memory as it likes", "memory_limit", memory=0),
    _fields("as much processor as it likes", "cpu_limit", nano_cpus=0),
    _fields("shared memory of the engine's size", "shared_memory_size", shm=0),
    _fields("core dumps", "core_dump", "raise_limits", core=-1),
    _fields("the host's network", "network_interfaces", network="host"),
    _fields("the engine's bridge", "network_interfaces", "network_gateway", network="bridge"),
    _fields("the host's IPC", "namespace ipc", ipc="host"),
    _fields("the host's processes", "other_processes", "namespace pid", pid="host"),
    _fields("the host's name", "namespace uts", uts="host", hostname=""),
    _fields("the host's control groups", "namespace cgroup", cgroupns="host"),
    _fields("the image's volume on disk", "writable_mounts", tmpfs=()),
    _fields("nothing masked", "masked_files", masked_paths=()),
    _fields("nothing of /proc read-only", "read_only_proc", readonly_paths=()),
    Mutation("the image's environment", ("secrets_in_sight",), plan=_bare_names),
    Mutation("scratch on a plain folder of the disk", ("execute_tmp", "scratch_flags"), plan=_scratch_on_disk),
    Mutation("inputs writable", ("write_inputs",), plan=lambda plan: replace(
        plan, binds=tuple(replace(bind, read_only=False) for bind in plan.binds))),
    Mutation("a key's file inside", ("keys_in_mounts",), plan=_bound("/dev/null", "/run/node.key")),
    Mutation("the engine's socket inside", ("engine_socket",), plan=_bound("/dev/null", "/run/docker.sock")),
    _fields("a device node", "device_nodes", devices=("/dev/kmsg",)),
    Mutation("a GPU's device node", ("device_nodes", "gpu_nodes"), request=lambda request: request["HostConfig"].update(
        Devices=[{"PathOnHost": "/dev/null", "PathInContainer": "/dev/nvidia1", "CgroupPermissions": "rw"}])),
    _host("privileged", "device_nodes", "no_capabilities", Privileged=True),
    _fields("the engine keeps the output", "log on disk", log_driver="json-file"),
]  # fmt: skip
DRIFT_ALONE = [
    _fields("another runtime", runtime="runsc"),
    _fields("another AppArmor profile", apparmor="sealrig"),
    _host("swap", MemorySwap=-1),
    _host("no OOM killer", OomKillDisable=True),
    _host("a group of the host", GroupAdd=["0"]),
    _host("a device rule", DeviceCgroupRules=["a *:* rwm"]),
    _host("a system setting", Sysctls={"net.ipv4.ip_unprivileged_port_start": "0"}),
    _host("published ports", PublishAllPorts=True),
    _fields("started again by the engine", restart="always"),
    _fields("the engine's resolver", dns=("8.8.8.8",)),
    _fields("a host name pinned elsewhere", extra_hosts=("registry:10.0.0.1",)),
    _fields("another working folder", working_dir="/proc/self/fd/8"),
    _fields("another number of open files", nofile=512),
    _fields("another command", command=("/bin/busybox", "true")),
    _fields("another label", labels={}),
    _fields("a signal that does not end it", stop_signal="SIGCONT"),
]


class Bench:
    """A plan with real scratch below it, and raw containers made from it."""

    def __init__(self, folder: Path, image: str, engine: Engine) -> None:
        self.engine, self.lease = engine, NodeFolder(folder).lease(LEASE)
        code = folder / "code"
        code.mkdir(parents=True, exist_ok=True)
        shutil.copy(inside.__file__, code / "inside.py")
        for place in (folder, *folder.parents[:2]):
            place.chmod(place.stat().st_mode | 0o011)
        code.chmod(0o777)
        TmpfsScratch().open(self.lease, 64 * 2**20)
        job = parse_job(SPEC.format(image=image, python=PYTHON, zeros="0" * 64).encode())
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        node = "node-" + "b" * 32
        host = HostFacts(node=node, folder=self.lease, scratch_kind="tmpfs", seccomp=shipped_profile(), apparmor="", nofile=most)
        plan = make_plan(LEASE, job, engine.image(image), host)
        self.plan = replace(plan, binds=(Bind(str(code), "/in/code", read_only=True), *plan.binds[1:]))

    def run(self, mutation: Mutation | None, *, start: bool = True) -> tuple[dict[str, str], list[drift.Difference]]:
        """Make and run one container; return what its probes got, by name, and the drift from the plan."""
        names = mutation.noticed_by if mutation else tuple(name for each in MUTATIONS for name in each.noticed_by)
        probes = sorted({"uid_is_not_root", *(name for name in names if name in inside.PROBES)})
        plan = mutation.plan(self.plan) if mutation else self.plan
        command = (*plan.command, *probes) if start else plan.command
        request = drift.create_request(replace(plan, command=command), network_mode=plan.network)
        if mutation:
            mutation.request(request)
        api = self.engine._api
        container = api.create_container_from_config(request, plan.container)["Id"]
        try:
            inspected = api.inspect_container(container)
            found = drift.differences(replace(self.plan, command=command if start else self.plan.command), inspected, network_mode="none")
            return (self._probe(container, probes) if start else {}), found
        finally:
            self.engine.remove(container)

    def _probe(self, container: str, probes: list[str]) -> dict[str, str]:
        with self.engine.attached(container) as frames:
            self.engine.start(container)
            text = b"".join(frames).decode()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        reported = {line["probe"]: line for line in lines if "probe" in line}
        assert sorted(reported) == probes, text
        got = {name: str(line["happened"]) for name, line in reported.items() if not line["blocked"]}
        for name, inode in lines[0]["namespaces"].items():
            if Path(f"/proc/self/ns/{name}").readlink() == Path(inode) and name not in {"user", "time", "time_for_children"}:
                got[f"namespace {name}"] = inode
        if self._on_disk(container, lines[0]["kernel"].encode()):
            got["log on disk"] = container
        return got

    def _on_disk(self, container: str, words: bytes) -> bool:
        """Say whether the engine has kept what the container wrote to its standard output."""
        place = Path(self.engine._api.info()["DockerRootDir"]) / "containers" / container
        return any(words in path.read_bytes() for path in place.rglob("*-json.log*"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    engine = Engine(docker_url())
    image = _hostile_image(engine)
    made = Bench(tmp_path_factory.mktemp("mutations") / "node", image, engine)
    try:
        yield made
    finally:
        for item in kernel.mounts_under(made.lease.data):
            kernel.unmount(item.point)
        engine._api.remove_image(image, force=True)
        engine.close()


def _hostile_image(engine: Engine) -> str:
    """Return the id of an image that asks for what a launch must undo: a volume that all may write to, and variables for hooks."""
    script = "import os; os.mkdir('/data'); os.chmod('/data', 0o1777)"
    made = engine._api.create_container(ensure_image(engine), [PYTHON, "-c", script], user="0", network_disabled=True)["Id"]
    try:
        engine.start(made)
        ended = engine.wait(made, 30)
        assert ended is not None
        assert ended.exit_code == 0
        return str(engine._api.commit(made, repository="sealrig-test/hostile", tag="mutations", changes=CHANGES)["Id"])
    finally:
        engine.remove(made)


def test_with_every_control_in_place_no_probe_gets_anything(bench: Bench) -> None:
    got, found = bench.run(None)
    assert got == {}
    assert found == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_probe_notices(bench: Bench, mutation: Mutation) -> None:
    got, found = bench.run(mutation)
    assert set(mutation.noticed_by) <= set(got), got
    assert found, "the comparison with the plan saw nothing"


@pytest.mark.parametrize("mutation", DRIFT_ALONE, ids=lambda mutation: mutation.name)
def test_the_comparison_notices(bench: Bench, mutation: Mutation) -> None:
    _, found = bench.run(mutation, start=False)
    assert found


def test_every_field_of_a_plan_is_taken_away_here_or_needs_no_container(bench: Bench) -> None:
    changed = set()
    for mutation in (*MUTATIONS, *DRIFT_ALONE):
        plan = mutation.plan(bench.plan)
        changed |= {name for name in vars(plan) if getattr(plan, name) != getattr(bench.plan, name)}
    described = {
        "lease", "node", "container", "image", "image_reference", "exposed_ports", "egress", "cdi", "stop_seconds",
        "scratch_kind", "scratch", "output_max_size", "lease_seconds", "seccomp_digest",
    }  # fmt: skip
    assert set(vars(bench.plan)) - changed == described
