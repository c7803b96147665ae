"""Jobs that take all they can get, beside a second tenant's job: the node stays healthy, the neighbour does not notice.

Limits of single jobs are proven one by one in the integration tests; here they are attacked at once, over the real server.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.attacks import greedy
from tests.attacks.conftest import House
from tests.attacks.results import write_results
from tests.patience import LONG
from tests.rig import Person

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]
STEADY_SECONDS = 25
MOST_GAP_SECONDS = 5.0
EXPECTED = {
    "fork_bomb": {"succeeded", "time-limit", "failed", "memory-limit"},
    "memory_hog": {"memory-limit"},
    "disk_filler": {"disk-limit"},
    "inode_filler": {"memory-limit", "disk-limit", "output-limit", "time-limit"},
    "log_flood": {"time-limit", "succeeded"},
    "output_bomb": {"output-limit"},
    "many_files": {"output-limit"},
    "tricks": {"succeeded"},
}
TRIED = {
    "fork_bomb": "fork without end", "memory_hog": "take memory without end", "disk_filler": "fill the disk",
    "inode_filler": "fill the disk with names", "log_flood": "write to standard output as fast as it can, for 7 s",
    "output_bomb": "leave a file of 1 TiB of holes in /out", "many_files": "leave 50,000 empty files in /out",
    "tricks": "leave links to the host's files, a pipe, a device, endless folders and names for terminals in /out",
}  # fmt: skip


def node_memory(house: House) -> int:
    """Return the resident memory of the node's process, in bytes."""
    status = Path(f"/proc/{house.rig.nodes['node'].process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


@pytest.fixture(scope="module")
def ended(house: House, mallory: Person, victim: Person) -> dict[str, dict[str, Any]]:
    """Submit every attack at once beside the neighbour, run as the node has cores for, and return how the leases ended."""
    program = Path(greedy.__file__)
    before = node_memory(house)
    neighbour = house.submit(victim, "steady", program, "steady", str(STEADY_SECONDS), duration="2m")
    house.rig.wait_state(victim, neighbour, "running")
    leases = {
        name: house.submit(
            mallory,
            name.replace("_", "-"),
            program,
            name,
            duration="7s",
            memory="512Mi" if name in {"many_files", "inode_filler"} else "64Mi",
        )
        for name in EXPECTED
    }
    found = {name: {**house.finish(mallory, lease), "lease": lease} for name, lease in leases.items()}
    found["steady"] = {**house.finish(victim, neighbour), "gap": float(house.output(victim, neighbour).split()[-1])}
    found["node"] = {"grown": node_memory(house) - before}
    if os.environ.get("SEALRIG_WRITE_RESULTS"):
        write_results("resources", {name: _result(name, found[name]) for name in EXPECTED})
    return found


def _result(name: str, info: dict[str, Any]) -> dict[str, Any]:
    fine = info["state"] == "closed" and info["outcome"] in EXPECTED[name]
    return {
        "tried": TRIED[name],
        "blocked": fine,
        "happened": f"{info['outcome']}: {info['detail']}" if info["detail"] else info["outcome"],
    }


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_attacker_is_ended_with_the_right_word_and_a_proven_wipe(ended: dict[str, dict[str, Any]], name: str) -> None:
    assert ended[name]["state"] == "closed", ended[name]
    assert ended[name]["outcome"] in EXPECTED[name], ended[name]["detail"]


def test_the_neighbour_is_undisturbed(ended: dict[str, dict[str, Any]]) -> None:
    assert (ended["steady"]["state"], ended["steady"]["outcome"], ended["steady"]["exit_code"]) == ("closed", "succeeded", 0)
    assert ended["steady"]["gap"] < MOST_GAP_SECONDS


def test_the_node_is_healthy_and_has_not_grown(house: House, mallory: Person, ended: dict[str, dict[str, Any]]) -> None:
    (node,) = house.rig.operator.json("node", "list")
    assert node["state"] == "ready"
    assert ended["node"]["grown"] < 300 * 2**20
    started = time.monotonic()
    lease = house.submit(mallory, "after", Path(greedy.__file__), "steady", "0")
    assert house.finish(mallory, lease)["outcome"] == "succeeded"
    assert time.monotonic() - started < LONG


def test_the_flood_is_bounded_and_said(house: House, mallory: Person, ended: dict[str, dict[str, Any]]) -> None:
    text = house.output(mallory, ended["log_flood"]["lease"])
    assert len(text) < 33 * 2**20
    assert re.search(r"\[sealrig: \d+ bytes of output beyond 33554432 were dropped\]", text[-200:])


def test_nothing_of_the_host_is_in_a_result(house: House, mallory: Person, ended: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    mallory.run("lease", "results", ended["tricks"]["lease"], "-o", tmp_path / "result").ok()
    kept = {path for path in (tmp_path / "result").rglob("*") if len(path.name) < 100}
    names = {os.fsencode(path.name) for path in kept}
    assert {b"good", b"hard"} <= names
    assert not names & {b"shadow", b"root", b"environ", b"climb", b"pipe", b"disk"}
    assert {path.read_bytes() for path in kept if path.is_file()} <= {b"good", b"name that is no text", b"name that writes to terminals"}
