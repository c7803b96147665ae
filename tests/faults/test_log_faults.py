"""The log under faults at every file system call of its appends: killed, or told of a broken or full disk.

After each fault the log is opened again. Either it opens, the whole tree verifies and no acknowledged entry is lost, or the
start is refused with the reason. strace puts the faults into a live process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from attestation.log.errors import LogFencedError, LogStoreError
from attestation.log.leaf import Leaf
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from tests.attestation.log.logs import NOW, VERIFIER, leaf, make_log, open_log

ROOT = Path(__file__).resolve().parents[2]
# Between two calls that change the disk, a kill finds the same disk: those that only look need no kill of their own.
CHANGES = ("openat", "mkdir", "rename", "unlink", "unlinkat", "rmdir", "write", "pwrite64", "fsync", "fdatasync", "ftruncate")
LOOKS = ("newfstatat", "pread64", "read", "flock", "getdents64")
SPACE = ("openat", "mkdir", "rename", "write", "pwrite64", "fsync", "fdatasync", "ftruncate")
START = 250

pytestmark = pytest.mark.slow


class Rig:
    """The driver process, the log that every run starts from, and the batches that it appends (they fill a tile)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leaves = make_log(folder / "base", START)
        self.batches = [[leaf(number) for number in range(count)] for count in (3, 5, 2)]
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.log_driver"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT
        )

    def close(self) -> None:
        self._driver.communicate(timeout=20)

    def run(self, *strace: str) -> tuple[Path, dict]:
        """Append the batches to a fresh copy of the log under strace; return the copy and what the driver saw."""
        data = self.folder / "run"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(self.folder / "base", data)
        pid = self._ask({"data": str(data), "batches": [[raw.decode() for raw in batch] for batch in self.batches]})
        tracer = subprocess.Popen(["strace", "-f", "-qq", "-p", str(pid), *strace], stderr=subprocess.DEVNULL)
        try:
            self._wait_for_tracer(pid, tracer)
            answer = self._ask("go")
        finally:
            tracer.wait(timeout=30)
        return data, answer

    def check(self, data: Path, answer: dict) -> None:
        """Open the log again: everything that was acknowledged must be there, and the tree must hold."""
        wanted = list(self.leaves)
        for batch in self.batches[: answer["acked"]]:
            wanted += batch
        # Not acknowledged is not lost: the next try may have been committed.
        with open_log(data) as writer:
            after = [raw for _, raw in LogReader.from_dir(data).entries(0, 10**6)]
            assert after[: len(wanted)] == wanted
            flat = self.leaves + [raw for batch in self.batches for raw in batch]
            assert after == flat[: len(after)]
            for batch in self.batches:
                writer.append(batch)
        assert verify_log(LogReader.from_dir(data), VERIFIER).checkpoint.size == len(flat)

    def _ask(self, order: object) -> object:
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps(order) + "\n")
        self._driver.stdin.flush()
        return json.loads(self._driver.stdout.readline())

    @staticmethod
    def _wait_for_tracer(pid: int, tracer: subprocess.Popen) -> None:
        until = time.monotonic() + 10
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            if tracer.poll() is not None or time.monotonic() > until:
                return  # the fault struck already, or strace may not attach here: ``points`` tells the two apart
            time.sleep(0.002)


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Rig]]:
    """A few rigs at once: most of a run is waiting for the disk and for strace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    rigs = [Rig(tmp_path_factory.mktemp("faults")) for _ in range(3)]
    yield rigs
    for rig in rigs:
        rig.close()


@pytest.fixture(scope="module")
def points(rigs: list[Rig]) -> dict[str, int]:
    """For each call, how often the thread that makes it most makes it; strace counts a call in each thread by itself."""
    rig = rigs[0]
    trace, calls = rig.folder / "trace", CHANGES + LOOKS
    data, answer = rig.run("-e", f"trace={','.join(calls)}", "-o", str(trace))
    assert answer["acked"] == len(rig.batches)
    rig.check(data, answer)
    if not trace.read_text():
        pytest.skip("strace cannot attach to a process here")
    words = [line.split()[:2] for line in trace.read_text().splitlines()]
    counts = Counter((pid, call.partition("(")[0]) for pid, call in words)
    return {
        call: max(count for (_, name), count in counts.items() if name == call) for call in calls if any(name == call for _, name in counts)
    }


def _each(rigs: list[Rig], points: dict[str, int], calls: tuple[str, ...], fault: str) -> list[dict]:
    """Put the fault into each of the calls, one run each; check the log after each."""
    faults = [(call, number) for call in calls for number in range(1, points.get(call, 0) + 1)]
    with ThreadPoolExecutor(len(rigs)) as pool:
        parts = pool.map(
            lambda rig, part: [_one(rig, call, number, fault) for call, number in part],
            rigs,
            [faults[at :: len(rigs)] for at in range(len(rigs))],
        )
        return [answer for part in parts for answer in part]


def _one(rig: Rig, call: str, number: int, fault: str) -> dict:
    data, answer = rig.run("-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}", "-o", "/dev/null")
    try:
        rig.check(data, answer)
    except Exception as error:
        msg = f"{fault} at {call} {number}: {answer}"
        raise AssertionError(msg) from error
    return answer


def test_killed_at_every_call(rigs: list[Rig], points: dict[str, int]) -> None:
    answers = _each(rigs, points, CHANGES, "signal=SIGKILL")
    assert all(answer["status"] == 9 for answer in answers)
    assert {answer["acked"] for answer in answers} >= {0, 1, 2}


def test_input_output_error_at_every_call(rigs: list[Rig], points: dict[str, int]) -> None:
    answers = _each(rigs, points, CHANGES + LOOKS, "error=EIO")
    assert all(answer["ended"] for answer in answers)
    assert sum("store-io" in answer["rules"] for answer in answers) > len(answers) * 0.3


def test_full_disk_at_every_write(rigs: list[Rig], points: dict[str, int]) -> None:
    answers = _each(rigs, points, SPACE, "error=ENOSPC")
    assert all(answer["ended"] for answer in answers)
    assert sum("store-io" in answer["rules"] for answer in answers) > len(answers) * 0.5


def test_a_disk_that_stays_broken(rigs: list[Rig]) -> None:
    rig = rigs[0]
    for number in (1, 5, 9, 14):
        data, answer = rig.run("-e", "trace=fsync,fdatasync", "-e", f"inject=fsync,fdatasync:error=EIO:when={number}+", "-o", "/dev/null")
        assert answer["acked"] < len(rig.batches)
        assert set(answer["rules"]) == {"store-io"}
        rig.check(data, answer)


@pytest.mark.parametrize("cut", [1, 30, 200, 4000])
def test_a_torn_end_of_the_write_ahead_file(tmp_path: Path, cut: int) -> None:
    """A batch whose bytes were torn is gone; where it was acknowledged, the log does not start as if it never had been."""
    data = tmp_path / "data"
    leaves = make_log(data, 20)
    writer = open_log(data)
    writer.append([leaf(21)])
    shutil.copytree(data, tmp_path / "torn")
    writer.close()
    wal = tmp_path / "torn" / "log-state" / "entries.db-wal"
    wal.write_bytes(wal.read_bytes()[:-cut])
    with pytest.raises(LogStoreError) as caught:
        open_log(tmp_path / "torn")
    assert caught.value.details["rule"] == "store-entries-behind"
    # The same tear before the lock store knew of the batch: nobody was told of it, and the log goes on without it.
    shutil.rmtree(tmp_path / "torn" / "log-lock")
    shutil.rmtree(tmp_path / "torn" / "log")
    before = tmp_path / "before"
    make = open_log(before)
    make.append(leaves)
    for part in ("log", "log-lock"):
        shutil.copytree(before / part, tmp_path / "half" / part)
    make.append([leaf(21)])
    shutil.copytree(before / "log-state", tmp_path / "half" / "log-state")
    make.close()
    wal = tmp_path / "half" / "log-state" / "entries.db-wal"
    wal.write_bytes(wal.read_bytes()[:-cut])
    with open_log(tmp_path / "half") as again:
        assert again.append([leaf(22)]) == [20]
    assert verify_log(LogReader.from_dir(tmp_path / "half"), VERIFIER).checkpoint.size == 21


@pytest.mark.parametrize("lost", ["checkpoint", "tile", "both"])
def test_a_lost_rename(tmp_path: Path, lost: str) -> None:
    """The names of the last batch are gone after a power cut: the next start writes them again."""
    make_log(tmp_path / "data", 250)
    shutil.copytree(tmp_path / "data" / "log", tmp_path / "old")
    with open_log(tmp_path / "data") as writer:
        writer.append([leaf() for _ in range(20)])
    log = tmp_path / "data" / "log"
    if lost in {"checkpoint", "both"}:
        shutil.copy(tmp_path / "old" / "checkpoint", log / "checkpoint")
    if lost in {"tile", "both"}:
        shutil.rmtree(log / "tile")
        shutil.copytree(tmp_path / "old" / "tile", log / "tile")
    open_log(tmp_path / "data").close()
    assert verify_log(LogReader.from_dir(log), VERIFIER).checkpoint.size == 270


@pytest.mark.parametrize("step", ["entries", "lock", "tiles", "checkpoint"])
def test_a_writer_paused_at_each_step_and_resumed_after_a_takeover(tmp_path: Path, step: str) -> None:
    """The old writer sleeps in the middle of a batch, loses the log (its file lock is gone), and wakes up."""
    make_log(tmp_path, 10)
    old = open_log(tmp_path)
    stores = old._stores
    assert stores is not None
    asleep, wake = threading.Event(), threading.Event()
    owner, name = {
        "entries": (stores.entries, "commit"),
        "lock": (stores._lock, "swap"),
        "tiles": (stores._folder, "write"),
        "checkpoint": (stores._lock, "while_owner"),
    }[step]
    real = getattr(owner, name)

    def sleeping(*args: object, **options: object) -> object:
        asleep.set()
        assert wake.wait(20)
        return real(*args, **options)

    setattr(owner, name, sleeping)
    slept = leaf(11)
    with ThreadPoolExecutor(1) as pool:
        paused = pool.submit(old.append, [slept])
        assert asleep.wait(20)
        (tmp_path / "log-state" / "writer.lock").unlink()
        with open_log(tmp_path) as new:
            (fresh,) = new.append([leaf(12)])
            wake.set()
            with pytest.raises(LogFencedError):
                paused.result(20)
            assert new.append([leaf(13)]) == [fresh + 1]
            # What the old one had made durable before it fell asleep is kept; appending it again finds it.
            (again,) = new.append([slept])
            assert again == (10 if step != "entries" else fresh + 2)
    old.close()
    assert verify_log(LogReader.from_dir(tmp_path), VERIFIER).checkpoint.size == 13


def test_a_writer_that_sleeps_while_it_publishes_cannot_be_overtaken(tmp_path: Path) -> None:
    old = open_log(tmp_path)
    stores = old._stores
    assert stores is not None
    asleep, wake = threading.Event(), threading.Event()
    real = stores._folder.replace

    def sleeping(path: str, data: bytes) -> None:
        asleep.set()
        assert wake.wait(20)
        real(path, data)

    stores._folder.replace = sleeping  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        paused = pool.submit(old.append, [leaf(1)])
        assert asleep.wait(20)
        (tmp_path / "log-state" / "writer.lock").unlink()
        with pytest.raises(LogStoreError) as caught:
            open_log(tmp_path)
        assert "locked" in str(caught.value.details["seen"])
        wake.set()
        assert paused.result(20) == [0]
    old.close()


def test_clock_jumps_of_a_day(tmp_path: Path) -> None:
    """The log never reads a clock: leaves made before and after a jump are in the order of their appends."""
    day = timedelta(days=1)
    jumps = [NOW, NOW + day, NOW - day, NOW]
    # A UUIDv7 starts with the time in milliseconds, so its order jumps as well.
    ids = [f"{int(at.timestamp() * 1000):012x}" for at in jumps]
    made = [
        Leaf("lease.running", at, at, "server", "server", "run", "ok", id=f"{id_[:8]}-{id_[8:]}-7000-8000-{number:012x}").to_bytes()
        for number, (at, id_) in enumerate(zip(jumps, ids, strict=True))
    ]
    with open_log(tmp_path) as writer:
        assert [writer.append([raw])[0] for raw in made] == [0, 1, 2, 3]
    check = verify_log(LogReader.from_dir(tmp_path), VERIFIER)
    assert check.checkpoint.size == 4
