"""Limits, logs, inbox, state, settings, media and inventory: each on its own."""

from __future__ import annotations

import threading
import time

import pytest

from sandbox.errors import AccessError, JobError, ServerError, StateError, UsageError
from sandbox.lifecycle import LeaseState, Outcome
from sandbox.node import logs
from sandbox.node.engine import Exit
from sandbox.node.gpu.inventory import inventory
from sandbox.node.gpu.model import Gpu, Inventory
from sandbox.node.gpu.pool import GpuPool
from sandbox.node.gpu.sysfs import gpus_on_bus, intel_on_bus
from sandbox.node.inbox import Inbox
from sandbox.node.init import init_node
from sandbox.node.layout import NodeFolder
from sandbox.node.limits import Verdict, judge, tree_bytes
from sandbox.node.logs import LogStream
from sandbox.node.media import disk_of
from sandbox.node.settings import load_node_settings, load_token
from sandbox.node.state import NodeState
from sandbox.sealing.keys import Identity
from sandbox.sealing.logs import LogOpener, LogSealer
from sandbox.wire import Assignment
from tests.patience import LONG, eventually

LEASE = "lease-" + "a" * 32
O = Outcome  # noqa: E741


@pytest.mark.parametrize(
    ("end", "stopped", "full", "size", "wanted"),
    [
        (Exit(0, oom_killed=False, error=""), None, False, 0, (O.SUCCEEDED, 0, None)),
        (Exit(3, oom_killed=False, error=""), None, False, 0, (O.FAILED, 3, None)),
        (Exit(137, oom_killed=True, error=""), None, False, 0, (O.MEMORY_LIMIT, 137, "memory")),
        (Exit(0, oom_killed=True, error=""), None, False, 0, (O.SUCCEEDED, 0, None)),
        (Exit(1, oom_killed=False, error=""), None, True, 0, (O.DISK_LIMIT, 1, "scratch")),
        (Exit(0, oom_killed=False, error=""), None, True, 0, (O.SUCCEEDED, 0, None)),
        (Exit(0, oom_killed=False, error=""), None, False, 11, (O.OUTPUT_LIMIT, 0, "output")),
        (Exit(137, oom_killed=False, error=""), Verdict(O.TIME_LIMIT, None, "time", ""), True, 11, (O.TIME_LIMIT, 137, "time")),
        (None, Verdict(O.CANCELLED, None, None, ""), False, 0, (O.CANCELLED, None, None)),
        (None, None, False, 0, (O.NODE_FAILURE, None, None)),
    ],
)
def test_verdict(end, stopped, full, size, wanted):
    verdict = judge(end, stopped=stopped, scratch_full=full, output_bytes=size, output_max=10)
    assert (verdict.outcome, verdict.exit_code, verdict.limit) == wanted


def test_tree_bytes_follows_no_link(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "up").symlink_to("/")
    (tmp_path / "file").symlink_to("/etc/passwd")
    assert tree_bytes(tmp_path) == 5 + len("/etc/passwd")  # the links' own sizes at most; a linked folder is not entered


class Sink:
    """Takes chunks, failing as told first."""

    def __init__(self, failures=()):
        self.chunks: dict[int, bytes] = {}
        self.failures = list(failures)

    def __call__(self, seq, chunk):
        if self.failures:
            raise self.failures.pop(0)
        self.chunks[seq] = chunk


def _text(sink, identity) -> bytes:
    opener = LogOpener(LEASE, identity)
    text = b"".join(opener.open(seq, sink.chunks[seq]) for seq in sorted(sink.chunks))
    assert opener.finished
    return text


def test_logs_come_out_as_they_went_in_and_survive_lost_contact(monkeypatch):
    monkeypatch.setattr(logs, "_RETRY_SECONDS", (0.01,))
    identity, sink = Identity.generate(), Sink([ServerError("down"), AccessError("revoked"), ServerError("down")])
    stream = LogStream(LogSealer(LEASE, identity.public), sink)
    stream.take(iter([b"one\n", b"x" * 200_000, b"two\n"]))
    stream.finish()
    stream.finish()
    assert stream.sent(LONG)
    assert _text(sink, identity) == b"one\n" + b"x" * 200_000 + b"two\n"
    assert stream.chunks == len(sink.chunks)


def test_logs_that_are_refused_do_not_block(monkeypatch):
    sink = Sink([StateError("no")])
    stream = LogStream(LogSealer(LEASE, Identity.generate().public), sink)
    stream.take(iter([b"one"]))
    stream.finish()
    assert not stream.sent(LONG)
    assert stream.failed == "no"


def test_a_flood_is_bounded_in_memory_and_said(monkeypatch):
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 100_000)
    identity, sink = Identity.generate(), Sink()
    stream = LogStream(LogSealer(LEASE, identity.public), sink)
    stream.take(b"y" * 10_000 for _ in range(1000))
    stream.finish()
    assert stream.sent(LONG)
    text = _text(sink, identity)
    assert text.count(b"y") >= 100_000
    assert b"9900000 bytes of output beyond 100000 were dropped" in text


def test_a_quiet_job_is_heard_at_once():
    sink = Sink()
    stream = LogStream(LogSealer(LEASE, Identity.generate().public), sink)
    gate = threading.Event()

    def frames():
        yield b"hello"
        gate.wait(LONG)

    reader = threading.Thread(target=stream.take, args=(frames(),))
    reader.start()
    eventually(lambda: len(sink.chunks) == 2, "output, although the job is quiet")
    gate.set()
    reader.join()
    stream.finish()
    assert stream.sent(LONG)


def _assignment(**changes) -> Assignment:
    return Assignment(**{"lease": LEASE, "state": LeaseState.PLACED, "job": {}, "policy": ""} | changes)


def test_inbox_waits_and_wakes():
    inbox = Inbox(_assignment())
    assert not inbox.wait_for(lambda seen: seen.nonce is not None, 0.01)
    threading.Timer(0.05, inbox.update, [_assignment(nonce="1" * 64)]).start()
    assert inbox.wait_for(lambda seen: seen.nonce is not None, 5)
    assert inbox.end is None


@pytest.mark.parametrize(("state", "wanted"), [(LeaseState.PLACED, O.CANCELLED), (LeaseState.RUNNING, O.REVOKED)])
def test_a_lease_that_the_control_plane_does_not_know_any_more_ends(state, wanted):
    inbox = Inbox(_assignment(state=state))
    inbox.vanish()
    assert inbox.end is wanted


def test_the_control_planes_word_goes_before_the_nodes_own_stop():
    inbox = Inbox(_assignment(end=O.CANCELLED))
    inbox.stop()
    assert inbox.end is O.CANCELLED
    inbox.update(_assignment())
    assert inbox.end is O.NODE_FAILURE


def test_state_is_durable(tmp_path):
    folder = NodeFolder(tmp_path)
    state = NodeState(folder)
    assert state.previous_wipes(["GPU-1"]) == {"node": None, "GPU-1": None}
    state.wiped(["GPU-1"], 7)
    state.put_in_quarantine(LEASE, "why")
    again = NodeState(folder)
    assert again.previous_wipes(["GPU-1", "GPU-2"]) == {"node": 7, "GPU-1": 7, "GPU-2": None}
    assert [(row.lease, row.told) for row in again.quarantine] == [(LEASE, False)]
    again.quarantine_told(LEASE)
    assert NodeState(folder).quarantine[0].told
    again.restore()
    assert NodeState(folder).quarantine == ()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"quarantine": {}}', b'{"quarantine": [], "wipes": {}}', b"\xff"])
def test_a_damaged_state_file_is_a_quarantine(tmp_path, raw):
    folder = NodeFolder(tmp_path)
    folder.state.write_bytes(raw)
    assert NodeState(folder).quarantine


def test_init_and_settings(tmp_path):
    node, key = init_node(tmp_path / "n", server="https://control", token="secret-token", slots=2)
    folder = NodeFolder(tmp_path / "n")
    settings = load_node_settings(folder)
    assert (settings.id, settings.server, settings.slots) == (node, "https://control", 2)
    assert load_token(folder, settings) == "secret-token"
    assert folder.key.stat().st_mode & 0o777 == 0o600
    assert (folder.root / "node.token").stat().st_mode & 0o777 == 0o600
    assert "secret" not in folder.settings.read_text()
    assert key.text.startswith("ed25519:")
    with pytest.raises(UsageError, match="already holds a node"):
        init_node(tmp_path / "n", server="https://control", token=None)


@pytest.mark.parametrize(
    ("line", "seen"),
    [("slot: 3", "did you mean 'slots'"), ("slots: 0", "greater than or equal"), ("server: ftp://x", "pattern"), ("cache: lots", "size")],
)
def test_settings_that_are_wrong_say_how(tmp_path, line, seen):
    init_node(tmp_path / "n", server="https://control", token=None)
    folder = NodeFolder(tmp_path / "n")
    key = line.split(":", maxsplit=1)[0]
    kept = [row for row in folder.settings.read_text().splitlines() if not row.startswith(f"{key}:")]
    folder.settings.write_text("\n".join([*kept, line]))
    with pytest.raises(UsageError) as caught:
        load_node_settings(folder)
    assert seen in f"{caught.value.message} {caught.value.details}"


def test_a_token_that_others_can_read_is_refused(tmp_path):
    init_node(tmp_path / "n", server="https://control", token="t")
    folder = NodeFolder(tmp_path / "n")
    settings = load_node_settings(folder)
    (folder.root / "node.token").chmod(0o644)
    with pytest.raises(UsageError, match="read by others"):
        load_token(folder, settings)
    (folder.root / "node.token").unlink()
    with pytest.raises(UsageError, match="no token"):
        load_token(folder, settings)


def test_the_disk_under_a_folder_is_described(tmp_path):
    assert disk_of(tmp_path)["kind"] == "disk"
    sys_block = tmp_path / "sys"
    number = tmp_path.stat().st_dev
    import os

    place = sys_block / "devices" / "nvme0n1"
    (place / "nvme0n1p1").mkdir(parents=True)
    (place / "nvme0n1p1" / "partition").write_text("1")
    (place / "device").mkdir()
    (place / "device" / "model").write_text("Fast 9000  \n")
    (place / "device" / "serial").write_text("S1\n")
    (sys_block / f"{os.major(number)}:{os.minor(number)}").symlink_to(place / "nvme0n1p1")
    found = disk_of(tmp_path, sys_block)
    assert (found["model"], found["serial"], found["manufacturer"], found["source"]) == ("Fast 9000", "S1", "unknown", "/dev/nvme0n1")


def test_a_host_without_gpus_says_so():
    found = inventory()
    if found.gpus or found.on_bus:
        pytest.skip("this host has GPUs")
    assert found.summary()["gpus"] == []
    assert found.detail


def test_gpus_on_the_bus_are_counted_without_a_driver(tmp_path):
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x040300"),
        ("c", "0x1002", "0x038000"),
        ("d", "0x8086", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert gpus_on_bus(tmp_path) == 2
    assert intel_on_bus(tmp_path) == 1


def test_a_gpu_is_leased_once():
    pool = GpuPool(Inventory((Gpu("GPU-1", "x", 100, 10), Gpu("GPU-2", "x", 50, 10)), 2, "2 GPUs"), cdi=True)
    assert pool.take(LEASE, 0, 0) == ()
    assert pool.take(LEASE, 1, 80) == ("GPU-1",)
    with pytest.raises(JobError, match="not enough free GPUs"):
        pool.take("lease-" + "b" * 32, 1, 80)
    assert pool.take("lease-" + "b" * 32, 1, 40) == ("GPU-2",)
    pool.give_back(LEASE)
    assert pool.take("lease-" + "c" * 32, 1, 0) == ("GPU-1",)


def test_the_control_plane_is_told_of_each_gpu_and_who_holds_it():
    found = Inventory((Gpu("GPU-1", "x", 100, 50), Gpu("GPU-2", "x", 90, 10), Gpu("GPU-3", "x", 9, 0)), 3, "3 GPUs")
    pool = GpuPool(found, cdi=True, refused={"GPU-3": "too small"})
    assert pool.take(LEASE, 1, 0) == ("GPU-1",)  # the smallest by what a job can use of it
    pool.hold("lease-" + "b" * 32, None)
    told = [(offer.uuid, offer.memory, [lease[6] for lease in offer.leases]) for offer in pool.offers()]
    assert told == [("GPU-1", 50, ["a", "b"]), ("GPU-2", 80, ["b"])]


def test_a_gpu_that_is_about_to_be_given_back_is_waited_for():
    pool = GpuPool(Inventory((Gpu("GPU-1", "x", 100, 10),), 1, "1 GPU"), cdi=True)
    pool.take(LEASE, 1, 0)
    threading.Timer(0.2, pool.give_back, [LEASE]).start()
    started = time.monotonic()
    assert pool.take("lease-" + "b" * 32, 1, 0, patience=10 * LONG) == ("GPU-1",)
    assert time.monotonic() - started < LONG


def test_a_gpu_is_held_for_a_lease_that_an_earlier_process_left():
    pool = GpuPool(Inventory((Gpu("GPU-1", "x", 100, 10), Gpu("GPU-2", "x", 100, 10)), 2, "2 GPUs"), cdi=True)
    known, lost, new = LEASE, "lease-" + "b" * 32, "lease-" + "c" * 32
    pool.hold(lost, None)
    pool.hold(known, ["GPU-1"])
    with pytest.raises(JobError, match="not enough free GPUs"):
        pool.take(new, 1, 0)
    pool.give_back(lost)
    assert pool.take(new, 1, 0) == ("GPU-2",)
    pool.give_back(new)
    pool.give_back(known)
    assert pool.take(new, 2, 0) == ("GPU-1", "GPU-2")


def test_no_gpu_is_handed_out_where_the_engine_cannot():
    pool = GpuPool(Inventory((Gpu("GPU-1", "x", 100, 10),), 1, "1 GPU"), cdi=False)
    with pytest.raises(JobError, match="cannot hand out"):
        pool.take(LEASE, 1, 0)
