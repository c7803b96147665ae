"""Every probe of ``inside.py``, run as a real job under each isolation: none may get anything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.attacks import inside
from tests.attacks.conftest import House
from tests.attacks.results import write_results
from tests.patience import PATIENCE
from tests.rig import Person

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow]
Outcome = dict[str, dict[str, Any]]
SENTRY = "answered by gVisor's own kernel in user space, which the host's kernel never sees"
CONTAINED_BY_GVISOR = {
    "call_chroot": SENTRY,
    "call_i386": SENTRY,
    "call_io_uring": SENTRY,
    "call_ptrace": SENTRY,
    "call_syslog": f"{SENTRY}; the messages are gVisor's own",
    "call_unshare_mount": SENTRY,
    "call_unshare_user": SENTRY,
    "clone_user_namespace": SENTRY,
    "cpu_limit": "gVisor shows no control groups; the host's holds for all of it",
    "device_nodes": "gVisor shows a /dev/fuse of its own",
    "execute_tmp": "this gVisor does not know noexec; what runs, runs inside it",
    "no_capabilities": "this gVisor does not show capabilities in /proc; the plan gives it none",
    "packet_socket": f"{SENTRY}; it has no network",
    "raw_socket": f"{SENTRY}; it has no network",
    "read_only_proc": "this gVisor makes /proc itself and cannot say how it is mounted",
    "renice": SENTRY,
    "scratch_flags": "this gVisor does not show the flags; the host's mounts carry them",
    "seccomp_filter": "gVisor filters its own process; inside it there is no filter to see",
    "shared_memory": "this gVisor has no /proc/sysvipc",
    "write_root": "this gVisor asks for the folder's mode before the mount's; no write got through",
}
"""What gVisor lets a program do to gVisor. Each is a thing that a host's kernel must refuse and that is harmless behind another kernel."""


GREEDY = ("process_limit", "memory_limit")
"""Behind gVisor each of these ends the whole sandbox: they get leases of their own, beside that of all others."""


def run_probes(house: House, person: Person, isolation: str) -> Outcome:
    """Run all probes; those that a probe before them has kept from running get another lease."""
    found: Outcome = {}
    waiting = [[name] for name in GREEDY] + [[name for name in inside.PROBES if name not in GREEDY]]
    while waiting:
        leases = [(names, _submit(house, person, isolation, names)) for names in waiting]
        waiting = []
        for names, lease in leases:
            info = house.finish(person, lease)
            assert info["state"] == "closed", info
            lines = [json.loads(line) for line in house.output(person, lease).splitlines() if line.startswith("{") and line.endswith("}")]
            assert lines[0]["gvisor"] == (isolation == "gvisor"), lines[0]
            found |= {line["probe"]: line for line in lines if "probe" in line}
            if info["outcome"] != "succeeded":
                fatal = next(name for name in inside.ordered(names) if name not in found)
                happened = f"the sandbox ended itself: {info['outcome']}, {info['detail']}"
                found[fatal] = {"tried": inside.PROBES[fatal][0], "blocked": isolation == "gvisor", "happened": happened}
            if missing := [name for name in names if name not in found]:
                waiting.append(missing)
    return {name: contained(name, found[name]) if isolation == "gvisor" else found[name] for name in inside.PROBES}


def _submit(house: House, person: Person, isolation: str, names: list[str]) -> str:
    seconds = f"{60 * PATIENCE:.0f}s"
    return house.submit(person, f"probe-{isolation}", Path(inside.__file__), *names, isolation=isolation, duration=seconds)


def contained(name: str, line: dict[str, Any]) -> dict[str, Any]:
    if line["blocked"] or name not in CONTAINED_BY_GVISOR:
        return line
    return {**line, "blocked": True, "happened": f"{line['happened']}: {CONTAINED_BY_GVISOR[name]}"}


@pytest.fixture(scope="session", params=["container", "gvisor"])
def outcome(request: pytest.FixtureRequest, house: House, mallory: Person) -> Outcome:
    isolation = request.param
    nodes = house.rig.operator.json("node", "list")
    if isolation not in nodes[0]["capacity"]["isolation"]:
        pytest.skip(f"the engine has no runtime for isolation {isolation}")
    found = run_probes(house, mallory, isolation)
    if os.environ.get("SEALRIG_WRITE_RESULTS"):
        write_results(isolation, found)
    return found


@pytest.mark.parametrize("name", sorted(inside.PROBES))
def test_the_probe_gets_nothing(outcome: Outcome, name: str) -> None:
    assert name in outcome, "the probe did not report: it may have ended the program"
    assert outcome[name]["blocked"], outcome[name]["happened"]
