"""The leak hunt, ``python -m bench.leak [--device UUID] [--json]``: what one user of a GPU finds of the last.

A victim (a process of its own, or a container) fills global memory, local memory and registers with a canary and ends: by itself, by
SIGKILL, or by its container's kill. A listener (a new process, or a new container) then looks for the canary: it allocates all memory and
reads before it writes, and it reads local memory that nobody of its kernel has written (LeftoverLocals, CVE-2023-4969). Each round is done
twice: with the driver alone between the two, and with our wipe.

The rows say how many words of the canary were found, and how much was planted and looked at: less than 99 % of the memory, or than all
multiprocessors, is no hunt and has missed its goal. With the wipe between there must be no word, or the exit code is 1; with the driver
alone there is no goal for what is found: it is what it is. On PoCL (a processor) this runs the code path: its global memory is the
process's own and ends with it, so that nothing is found there between processes, and its local memory is ordinary memory of the process
too.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.leak import containers
from bench.report import Row, main
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.erase import LEAST_COVERAGE, share
from sandbox.node.gpu.vram import list_devices, wipe_device

ENDS = ("ends by itself", "is killed (SIGKILL)", "its container is killed")
_PLANT_SECONDS = 120.0
_SETTLE_SECONDS = 1.0
"""What a driver does after a process has ended, it may do a moment later."""


@dataclass(frozen=True)
class Found:
    """Words of the canary that a party planted or found, the words that it reached, and the multiprocessors, with how many there are."""

    memory: int
    memory_words: int
    memory_in_all: int
    local: int
    local_words: int
    units: int
    units_in_all: int


def measure(wanted: str | None = None) -> list[Row]:
    """Hunt on every device, or on the one called ``wanted``."""
    devices = list_devices("auto") or list_devices("opencl")
    rows: list[Row] = []
    for facts in devices:
        if wanted in (None, facts.uuid):
            for way in ENDS:
                rows += _rows(facts, way)
    return rows or [Row("devices to hunt on", 0, "")]


def _rows(facts: DeviceFacts, way: str) -> list[Row]:
    if way == ENDS[2] and (why := containers.missing(facts)):
        return [Row(f"{facts.name}: victim {way}: left out, {why}", 0, "words")]
    rows = []
    for wiped in (False, True):
        canary = secrets.token_hex(8)  # another in each round: what is found is of this victim
        planted = _victim(facts, way, canary)
        time.sleep(_SETTLE_SECONDS)
        between = "after our wipe" if wiped else "the driver alone"
        if wiped:
            report = wipe_device(facts)
            rows.append(Row(f"{facts.name}: victim {way}: the wipe between was proven", float(report.ok), "", at_least=1))
        found = _listener(facts, canary, in_container=way == ENDS[2])
        goal = 0.0 if wiped else None
        name = f"{facts.name}: victim {way}, {between}"
        rows += [
            Row(f"{name}: global memory", found.memory, "words", "words planted", planted.memory, at_most=goal),
            Row(f"{name}: local memory", found.local, "words", "words planted", planted.local, at_most=goal),
            # A listener that looked at little would find little, and so would one whose victim planted little.
            Row(f"{name}: share planted", share(planted.memory, planted.memory_in_all), "", at_least=LEAST_COVERAGE),
            Row(f"{name}: share looked at", share(found.memory_words, found.memory_in_all), "", at_least=LEAST_COVERAGE),
            Row(f"{name}: multiprocessors planted", planted.units, "", at_least=planted.units_in_all),
            Row(f"{name}: multiprocessors looked at", found.units, "", at_least=found.units_in_all),
        ]
    return rows


def _victim(facts: DeviceFacts, way: str, canary: str) -> Found:
    """Let a victim plant and end; return what it planted."""
    if way == ENDS[2]:
        return Found(**json.loads(containers.plant_and_kill(facts, canary)))
    argv = [sys.executable, "-m", "bench.leak.party", "plant", facts.backend, facts.uuid, canary, *(["stay"] if way == ENDS[1] else [])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        line = victim.stdout.readline()
        if way == ENDS[1]:
            victim.send_signal(signal.SIGKILL)
        victim.wait(_PLANT_SECONDS)
    return Found(**json.loads(line))


def _listener(facts: DeviceFacts, canary: str, *, in_container: bool) -> Found:
    if in_container:
        return Found(**json.loads(containers.listen(facts, canary)))
    argv = [sys.executable, "-m", "bench.leak.party", "listen", facts.backend, facts.uuid, canary]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=True, timeout=_PLANT_SECONDS)
    return Found(**json.loads(done.stdout))


def _wanted(words: Sequence[str]) -> str | None:
    return words[words.index("--device") + 1] if "--device" in words[:-1] else None


if __name__ == "__main__":
    raise SystemExit(main("leak", lambda: measure(_wanted(sys.argv[1:])), sys.argv[1:], about=__doc__))
