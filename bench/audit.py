"""How fast the audit log is, against SQLite and hashlib on the same bytes in the same run.

``python -m bench.audit [--json] [--entries N] [--seconds S]``. Every append that is counted is durable: entry, tiles and signed checkpoint
are synced before the call returns. The log of N entries (10^6) is built by the writer that is measured.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from attestation.log.leaf import DocumentRef, Leaf, new_leaf_id
from attestation.log.note import NoteVerifier
from attestation.log.places import LogPlaces
from attestation.log.reader import LogReader
from attestation.log.writer import LogWriter
from attestation.merkle import leaf_hash, node_hash
from attestation.signing import SigningKey
from bench.report import Row, main

ORIGIN = "bench.example/log"
KEY = SigningKey(b"\x01" * 32)
PROOFS = 2000


def row(
    what: str, value: float, unit: str, *, least: float | None = None, most: float | None = None, peer: tuple[str, float] | None = None
) -> Row:
    """Return a row with its goal and its peer."""
    name, other = peer or (None, None)
    return Row(what, value, unit, name, other, at_most=most, at_least=least)


def leaves(count: int) -> Iterator[bytes]:
    """Yield fresh leaves of ordinary size; made from one by exchanging its id, so that making them costs little."""
    now = datetime.now(UTC)
    evidence = DocumentRef("sha256:" + "a" * 64, "application/vnd.in-toto+json")
    one = Leaf("lease.running", now, now, "node-" + "1" * 32, "lease-" + "2" * 32, "run", "ok", "tenant-" + "3" * 32, evidence)
    head, tail = one.to_bytes().split(one.id.encode())
    for _ in range(count):
        yield head + new_leaf_id().encode() + tail


def append_all(writer: LogWriter, calls: list[list[bytes]], clients: int, seconds: float | None = None) -> tuple[float, list[float], int]:
    """Let clients make the calls; return seconds, the latency of each call, and how many leaves are in."""
    latencies: list[float] = []
    counts: list[int] = []
    until = time.perf_counter() + (seconds or 10**9)
    pending = iter(calls)
    guard = threading.Lock()

    def work() -> None:
        while time.perf_counter() < until:
            with guard:
                batch = next(pending, None)
            if batch is None:
                return
            start = time.perf_counter()
            writer.append(batch)
            latencies.append(time.perf_counter() - start)
            counts.append(len(batch))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, sorted(latencies), sum(counts)


def percentile(values: list[float], part: float) -> float:
    """Return the value below which ``part`` of the sorted values lie."""
    return values[min(len(values) - 1, int(len(values) * part))]


def raw_sqlite(folder: Path, count: int, batch: int) -> float:
    """Return rows a second of the same leaves in one table, each commit of ``batch`` rows synced: what durability alone costs."""
    base = sqlite3.connect(folder / "raw.db", isolation_level=None)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=FULL")
    base.execute("CREATE TABLE entry (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL)")
    made = [(leaf,) for leaf in leaves(count)]
    start = time.perf_counter()
    for at in range(0, count, batch):
        base.execute("BEGIN IMMEDIATE")
        base.executemany("INSERT INTO entry (leaf) VALUES (?)", made[at : at + batch])
        base.execute("COMMIT")
    rate = count / (time.perf_counter() - start)
    base.close()
    (folder / "raw.db").unlink()
    return rate


def bench_appends(folder: Path, seconds: float) -> Iterator[Row]:
    """Sustained appends by many clients at once."""
    for clients, size, least, most in ((64, 16, 5000.0, 300.0), (256, 1, None, None)):
        data = folder / f"appends-{clients}"
        made = list(leaves(int(seconds * 16000) if size > 1 else int(seconds * 8000)))
        calls = [made[at : at + size] for at in range(0, len(made), size)]
        with LogWriter.open(LogPlaces(data), origin=ORIGIN, key=KEY) as writer:
            append_all(writer, [[leaf] for leaf in leaves(50)], 10)
            elapsed, latencies, count = append_all(writer, calls, clients, seconds)
        shutil.rmtree(data)
        peer = ("raw SQLite, the same commits", raw_sqlite(folder, min(count, 50_000), clients * size))
        name = f"{clients} clients, {size} {'leaf' if size == 1 else 'leaves'} a call"
        yield row(f"durable appends, {name}", count / elapsed, "1/s", least=least, peer=peer)
        yield row(f"latency p99, {name}", percentile(latencies, 0.99) * 1000, "ms", most=most)
    data = folder / "single"
    with LogWriter.open(LogPlaces(data), origin=ORIGIN, key=KEY) as writer:
        _, latencies, _ = append_all(writer, [[leaf] for leaf in leaves(200)], 1)
    shutil.rmtree(data)
    yield row("latency p50, one client, one leaf", percentile(latencies, 0.5) * 1000, "ms")


def build(data: Path, entries: int) -> Row:
    """Build the large log with the writer that is measured."""
    made = leaves(entries)
    calls = [[leaf for leaf, _ in zip(made, range(512), strict=False)] for _ in range(-(-entries // 512))]
    with LogWriter.open(LogPlaces(data), origin=ORIGIN, key=KEY) as writer:
        elapsed, _, count = append_all(writer, calls, 4)
        missing = entries - count
        if missing:
            writer.append(list(leaves(missing)))
    return row(f"durable appends, 4 clients, 512 leaves a call, up to {entries} entries", count / elapsed, "1/s", least=5000)


def bench_proofs(data: Path, entries: int) -> Row:
    """Inclusion proofs of random entries, each by a reader that has nothing in memory."""
    latencies = []
    for _ in range(PROOFS):
        index = random.randrange(entries)  # noqa: S311  (which entries are measured need not be secret)
        start = time.perf_counter()
        reader = LogReader.from_dir(data)
        reader.prove(index, reader.checkpoint())
        latencies.append(time.perf_counter() - start)
    return row(f"inclusion proof p99 at {entries} entries", percentile(sorted(latencies), 0.99) * 1000, "ms", most=10)


def bench_verify(data: Path, entries: int) -> Iterator[Row]:
    """Full verification in processes of its own, from before the first start to the verdict, and hashing alone of the same bytes."""
    key = NoteVerifier(ORIGIN, KEY.public).text
    done = subprocess.run([sys.executable, "-m", "bench.verifying", str(data), key], capture_output=True, text=True, check=True)
    seconds, memory, size, processor = (float(word) for word in done.stdout.split())
    assert size == entries
    start = time.perf_counter()
    rows = [leaf_hash(raw) for _, raw in LogReader.from_dir(data).entries(0, entries)]
    while len(rows) > 1:
        rows = [node_hash(rows[at], rows[at + 1]) if at + 1 < len(rows) else rows[at] for at in range(0, len(rows), 2)]
    yield row(
        f"full verification of {entries} entries", seconds, "s", most=15, peer=("hashing alone, one thread", time.perf_counter() - start)
    )
    yield row(f"full verification of {entries} entries, processor time of all processes", processor, "s")
    yield row("full verification, peak memory of all processes together", memory, "MB", most=200)


def bench_start(data: Path) -> Row:
    """Start after the writer was killed in the middle of appending."""
    pid = os.fork()
    if pid == 0:
        writer = LogWriter.open(LogPlaces(data), origin=ORIGIN, key=KEY)
        append_all(writer, [[leaf] for leaf in leaves(100_000)], 8)
        os._exit(0)
    time.sleep(2.0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    start = time.perf_counter()
    with LogWriter.open(LogPlaces(data), origin=ORIGIN, key=KEY):
        elapsed = time.perf_counter() - start
    return row("start after a crash", elapsed, "s", most=2)


def bench_overhead(data: Path, entries: int) -> Row:
    """Bytes on disk beyond the entries themselves: hashes, lengths, ids, state, checkpoints."""
    disk = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    payload = sum(len(raw) for _, raw in LogReader.from_dir(data).entries(0, entries))
    return row("disk beyond the entries themselves", (disk - payload) / entries, "bytes an entry", most=64)


def measure(entries: int, seconds: float) -> Iterator[Row]:
    """Yield every row."""
    folder = Path(tempfile.mkdtemp(prefix="sealrig-bench-"))
    try:
        yield from bench_appends(folder, seconds)
        data = folder / "large"
        yield build(data, entries)
        yield bench_overhead(data, entries)
        yield bench_proofs(data, entries)
        yield from bench_verify(data, entries)
        yield bench_start(data)
    finally:
        shutil.rmtree(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the audit log.", prog="bench.audit")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--entries", type=int, default=1_000_000, help="size of the large log")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long appends are measured")
    return parser.parse_args()


if __name__ == "__main__":
    options = _options()
    raise SystemExit(main("audit", lambda: list(measure(options.entries, options.seconds)), sys.argv[1:]))
