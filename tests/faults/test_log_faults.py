"""The log under faults at every file system call of its appends: killed, or told of a broken or full disk.

After each fault the log is opened again. Either it opens, the whole tree verifies and no acknowledged entry is lost, or the
start is refused with the reason. strace puts the faults into a live process.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from attestation.log.errors import LogFencedError, LogStoreError
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from tests.attestation.log.logs import VERIFIER, leaf, make_log, open_log
from tests.faults.tracing import LOOKS, Call, Driver, Point, points_of, scratch, strike
from tests.patience import LONG

# What a full disk refuses: a new name, more bytes, or late, when they are synced.
SPACE = {
    *("fallocate", "fdatasync", "fsync", "ftruncate", "mkdir", "mkdirat", "open", "openat", "pwrite64", "rename", "renameat", "renameat2"),
    "write",
}
# A trace without these is not one of an append: the sweep would prove nothing.
NEEDED = ({"fsync"}, {"fdatasync"}, {"rename", "renameat", "renameat2"}, {"write"}, {"pwrite64"})
START = 250

pytestmark = pytest.mark.slow


class Rig:
    """The driver process, the log that every run starts from, and the batches that it appends.

    Without ``start`` entries that is an empty folder, where a log is created and nothing is appended.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self.data, self._base = folder / "run", folder / "base"
        self._base.mkdir()
        self.leaves = make_log(self._base, start) if start else []
        # They fill a tile.
        self.batches = [[leaf(number) for number in range(count)] for count in ((3, 5, 2) if start else ())]
        self.driver = Driver()
        # Which calls that only look are alike, so that the first of them stands for all: creating a log looks as opening one does.
        self.alike: Callable[[Call], object] = (lambda call: call.way) if start else (lambda call: call.paths)

    def fresh(self) -> dict[str, object]:
        """Make the log anew; return the order to append to it."""
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.copytree(self._base, self.data)
        return {"data": str(self.data), "batches": [[raw.decode() for raw in batch] for batch in self.batches]}

    def check(self, answer: dict) -> None:
        """Look at what is left: it must stand by itself, and opened again it must hold everything that was acknowledged."""
        acknowledged = list(self.leaves)
        for batch in self.batches[: answer["acked"]]:
            acknowledged += batch
        if acknowledged or (self.data / "log" / "checkpoint").exists():
            assert self._shown()[: len(acknowledged)] == acknowledged
        with open_log(self.data) as writer:
            after = [raw for _, raw in LogReader.from_dir(self.data).entries(0, 10**6)]
            assert after[: len(acknowledged)] == acknowledged
            # Not acknowledged is not lost: the last try may have been committed.
            flat = self.leaves + [raw for batch in self.batches for raw in batch]
            assert after == flat[: len(after)]
            for batch in (*self.batches, last := [leaf()]):
                writer.append(batch)
        assert self._shown() == flat + last

    def _shown(self) -> list[bytes]:
        """Return all that is published, once the whole tree is proven."""
        reader = LogReader.from_dir(self.data)
        size = verify_log(reader, VERIFIER).checkpoint.size
        return [raw for _, raw in reader.entries(0, size)]


@pytest.fixture(scope="module", params=[START, 0], ids=["a log that is there", "an empty folder"])
def rigs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Rig]]:
    """A few rigs at once: most of a run is waiting for strace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    with ExitStack() as stack:
        rigs = [Rig(stack.enter_context(scratch(tmp_path_factory)), request.param) for _ in range(3)]
        yield rigs
        for rig in rigs:
            rig.driver.close()


@pytest.fixture(scope="module")
def calls(rigs: list[Rig]) -> list[Call]:
    """Every call on a file of the log, in its order, when nothing fails."""
    rig = rigs[0]
    calls = rig.driver.trace(rig.fresh(), rig.data)
    rig.check({"acked": len(rig.batches)})
    seen = {call.name for call in calls}
    assert all(seen & names for names in NEEDED), sorted(seen)
    return calls


def _each(rigs: list[Rig], points: list[Point], fault: str) -> list[dict]:
    """Put the fault into each of the calls, one run each; check the log after each."""
    with ThreadPoolExecutor(len(rigs)) as pool:
        parts = pool.map(
            lambda rig, part: [_one(rig, name, number, fault) for name, number in part],
            rigs,
            [points[at :: len(rigs)] for at in range(len(rigs))],
        )
        return [answer for part in parts for answer in part]


def _one(rig: Rig, name: str, number: int, fault: str) -> dict:
    order = rig.fresh()
    answer = rig.driver.run(order, *strike(name, fault, number))
    try:
        rig.check(answer)
    except Exception as error:
        msg = f"{fault} at {name} {number}: {answer}"
        raise AssertionError(msg) from error
    return answer


def test_killed_at_every_call(rigs: list[Rig], calls: list[Call]) -> None:
    answers = _each(rigs, points_of(call for call in calls if call.name not in LOOKS), "signal=SIGKILL")
    assert all(answer["status"] == 9 for answer in answers)
    assert {answer["acked"] for answer in answers} >= set(range(max(1, len(rigs[0].batches))))


def test_input_output_error_at_every_call(rigs: list[Rig], calls: list[Call]) -> None:
    changes = points_of(call for call in calls if call.name not in LOOKS)
    looks = points_of((call for call in calls if call.name in LOOKS), rigs[0].alike)
    answers = _each(rigs, changes + looks, "error=EIO")
    assert all(answer["ended"] for answer in answers)
    assert sum("store-io" in answer["rules"] for answer in answers) > len(answers) * 0.3


def test_full_disk_at_every_write(rigs: list[Rig], calls: list[Call]) -> None:
    rig = rigs[0]
    answers = _each(rigs, points_of((call for call in calls if call.name in SPACE), None if rig.leaves else rig.alike), "error=ENOSPC")
    assert all(answer["ended"] for answer in answers)
    assert sum("store-io" in answer["rules"] for answer in answers) > len(answers) * 0.5


def test_a_disk_that_stays_broken(rigs: list[Rig]) -> None:
    rig = rigs[0]
    for number in (1, 5, 9, 14):
        answer = rig.driver.run(rig.fresh(), *strike("fsync,fdatasync", "error=EIO", f"{number}+"))
        assert answer["acked"] < max(1, len(rig.batches))
        assert set(answer["rules"]) == {"store-io"}
        rig.check(answer)


@pytest.mark.parametrize("room", [100, 6_000, 33_000, 60_000, 90_000])
def test_a_write_that_the_disk_takes_half_of(rigs: list[Rig], room: int) -> None:
    """No file may grow beyond ``room`` bytes: the kernel takes what fits, and refuses the rest."""
    rig = rigs[0]
    answer = rig.driver.run({**rig.fresh(), "room": room})
    assert answer["ended"]
    assert set(answer["rules"]) <= {"store-io"}
    rig.check(answer)


def test_each_step_is_synced_before_the_next_is_made(rigs: list[Rig], calls: list[Call]) -> None:
    """Entries, then the lock, then tiles, then ``checkpoint``: and each name and each byte is on the disk before what builds on it."""
    log, end = rigs[0].data / "log", len(calls)

    def at(names: set[str], path: Path) -> list[int]:
        return [index for index, call in enumerate(calls) if call.name in names and str(path) in call.paths]

    syncs = {"fsync", "fdatasync"}
    renames = {index: (Path(call.paths[-2]), Path(call.paths[-1])) for index, call in enumerate(calls) if call.name.startswith("rename")}
    shown = [index for index, (_, target) in renames.items() if target == log / "checkpoint"]
    assert len(shown) >= len(rigs[0].batches)

    def synced_before_shown(folder: Path, index: int) -> bool:
        until = min((each for each in shown if each > index), default=end)
        return any(index < each < until for each in at(syncs, folder))

    for index, (source, target) in renames.items():
        assert max(each for each in at({"openat", "open", "write", *syncs}, source) if each < index) in at(syncs, source), calls[index]
        assert synced_before_shown(target.parent, index), calls[index]
    for index, call in enumerate(calls):
        if call.name.startswith("mkdir") and log in Path(call.paths[-1]).parents and Path(call.paths[-1]).name != ".tmp":
            assert synced_before_shown(Path(call.paths[-1]).parent, index), call
    start = 0
    for index in shown[len(shown) - len(rigs[0].batches) :]:
        last = {}
        for name in ("log-state/entries.db-wal", "log-lock/lock.db-wal"):
            path = rigs[0].data / name
            last[name] = max(each for each in at(syncs, path) if start < each < index)
            assert not any(last[name] < each < index for each in at({"pwrite64"}, path))
        tiles = [each for each, (_, target) in renames.items() if start < each < index and log / "tile" in target.parents]
        assert list(last.values()) == sorted(last.values())
        assert max(last.values()) < min(tiles)
        start = index


def test_writes_that_take_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[int, memoryview], int] = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:100]))
    make_log(tmp_path, 300)
    assert verify_log(LogReader.from_dir(tmp_path), VERIFIER).checkpoint.size == 300


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


@pytest.mark.parametrize("cut", [1, 30, 200, 4000])
def test_a_torn_end_of_the_lock_s_write_ahead_file(tmp_path: Path, cut: int) -> None:
    """The lock store has lost the last checkpoint: where that was shown already the start is refused, else it is signed again."""
    data, old = tmp_path / "data", tmp_path / "old"
    leaves = make_log(data, 20)
    shutil.copytree(data / "log", old)
    writer = open_log(data)
    last = leaf(21)
    writer.append([last])
    shutil.copytree(data, tmp_path / "torn")
    writer.close()
    wal = tmp_path / "torn" / "log-lock" / "lock.db-wal"
    wal.write_bytes(wal.read_bytes()[:-cut])
    with pytest.raises(LogStoreError) as caught:
        open_log(tmp_path / "torn")
    assert caught.value.details["rule"] == "store-lock-behind"
    shutil.rmtree(tmp_path / "torn" / "log")
    shutil.copytree(old, tmp_path / "torn" / "log")
    with open_log(tmp_path / "torn") as again:
        assert again.append([last, leaf(22)]) == [20, 21]
    reader = LogReader.from_dir(tmp_path / "torn")
    assert verify_log(reader, VERIFIER).checkpoint.size == 22
    assert [raw for _, raw in reader.entries(0, 21)] == [*leaves, last]


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
        assert wake.wait(LONG)
        return real(*args, **options)

    setattr(owner, name, sleeping)
    slept = leaf(11)
    with ThreadPoolExecutor(1) as pool:
        paused = pool.submit(old.append, [slept])
        assert asleep.wait(LONG)
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
        assert wake.wait(LONG)
        real(path, data)

    stores._folder.replace = sleeping  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        paused = pool.submit(old.append, [leaf(1)])
        assert asleep.wait(LONG)
        (tmp_path / "log-state" / "writer.lock").unlink()
        with pytest.raises(LogStoreError) as caught:
            open_log(tmp_path)
        assert "locked" in str(caught.value.details["seen"])
        wake.set()
        assert paused.result(20) == [0]
    old.close()
