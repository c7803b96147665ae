"""A process under strace: which file calls it makes, and a fault put into any one of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.patience import LONG

ROOT = Path(__file__).resolve().parents[2]
EVERY = "trace=%file,%desc"
"""Whatever takes a path or a file descriptor."""
# Every call that names one of the files is struck, whichever call it is, less these (a pattern over name and arguments).
CANNOT_MATTER = (
    r"ioctl\(",  # asks whether a file is a terminal: the answer is an error in any case
    r"fcntl\(.*l_type=F_UNLCK",  # lets go of a lock: the kernel cannot fail to, and SQLite waits ten seconds if it is told so
)
# Between two calls that change the disk a kill finds the same disk: these only look, lock, or let go, as the end of the process does.
LOOKS = {
    *("access", "close", "faccessat", "faccessat2", "fcntl", "flock", "fstat", "getdents64", "lseek", "lstat", "mmap", "newfstatat"),
    *("pread64", "read", "readlink", "readlinkat", "stat", "statx"),
}
Point = tuple[str, int]
"""A call, and which of its name: strace counts them in each thread by itself."""
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_ANSWER = re.compile(r"\d+(?=<)|\{st_.*?\}|\) += .*| <unfinished.*")
_PATH = re.compile(r'"([^"]*)"|\d+<([^>]*)>')


@dataclass(frozen=True)
class Call:
    """One call: which of its thread's of this name it is (from 1, as strace counts), the paths that it names, all that strace says."""

    name: str
    number: int
    paths: tuple[str, ...]
    text: str

    @property
    def point(self) -> Point:
        """Where a fault strikes it."""
        return self.name, self.number

    @property
    def way(self) -> str:
        """What it is asked to do, without the file's descriptor and without the answer."""
        return _ANSWER.sub("", self.text.partition("(")[2])


@contextlib.contextmanager
def scratch(paths: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder in RAM where there is one: the calls are the same there, and a thousand runs need not wait for the disk."""
    ram = Path("/dev/shm")
    if not os.access(ram, os.W_OK):
        yield paths.mktemp("faults")
        return
    with TemporaryDirectory(prefix="sealrig-faults-", dir=ram) as name:
        yield Path(name)


class Driver:
    """The process that does what a line asks for, each in a fresh child (see ``fault_driver``)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fault_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )

    def close(self) -> None:
        self._process.communicate(timeout=LONG)

    def run(self, order: dict[str, object], *strace: str) -> dict:
        """Let a child do ``order``, under strace with these words if there are any; return what became of it."""
        pid = self._ask(order)
        if not strace:
            return self._ask("go")
        tracer = subprocess.Popen(["strace", "-f", "-qq", "-p", str(pid), *strace], stderr=subprocess.DEVNULL)
        try:
            _wait_for_tracer(pid, tracer)
            return self._ask("go")
        finally:
            tracer.wait(timeout=LONG)

    def trace(self, order: dict[str, object], folder: Path) -> list[Call]:
        """Return the calls on files in ``folder``, in their order. Leaves the test out where strace may not attach to a process."""
        trace = folder.parent / "trace"
        answer = self.run(order, "-y", "-s", "0", "-e", EVERY, "-o", str(trace))
        assert answer["status"] == 0, answer
        text = trace.read_text()
        if not text:
            pytest.skip("strace cannot attach to a process here")
        return calls_in(text, folder)

    def _ask(self, order: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def points_of(calls: Iterable[Call], alike: Callable[[Call], object] | None = None) -> list[Point]:
    """Return where a fault can strike; with ``alike`` only at the first of those calls that it gives the same answer for.

    A fault strikes the call of its number in every thread, so what cannot matter in one thread is not struck in another either.
    """
    told = list(calls)
    spared = {call.point for call in told if re.search("|".join(CANNOT_MATTER), call.text)}
    seen: set[object] = set()
    points = set()
    for call in told:
        mark = call.point if alike is None else (call.name, alike(call))
        if call.point not in spared and mark not in seen:
            seen.add(mark)
            points.add(call.point)
    return sorted(points)


def strike(names: str, fault: str, number: int | str) -> tuple[str, ...]:
    """Return strace's words for a fault (``error=EIO``, ``signal=SIGKILL``) in the ``number``-th of each of these calls."""
    return ("-e", f"trace={names}", "-e", f"inject={names}:{fault}:when={number}", "-o", "/dev/null")


def calls_in(text: str, folder: Path) -> list[Call]:
    """Read what strace wrote (``-f -y``)."""
    counts: Counter[tuple[str, str]] = Counter()
    calls = []
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue  # the end of a call that another thread's interrupted, or a signal
        pid, name, rest = found.groups()
        counts[pid, name] += 1
        paths = tuple(path or described for path, described in _PATH.findall(rest))
        if any(path.startswith(str(folder)) for path in paths):
            calls.append(Call(name, counts[pid, name], paths, line))
    return calls


def _wait_for_tracer(pid: int, tracer: subprocess.Popen) -> None:
    until = time.monotonic() + LONG
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > until:
            return  # the fault struck already, or strace may not attach here: an empty trace tells the two apart
        time.sleep(0.002)
