"""How soon the console and the API answer questions about a log of a million entries.

The events are planted in the server's index, as its journal would have put them there, and appended to its log by the log's own writer.
Pages come over loopback HTTP from a server process.
"""

from __future__ import annotations

import random
import sqlite3
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from attestation.log.leaf import DocumentRef, Leaf
from attestation.log.note import Checkpoint, Note
from attestation.log.places import LogPlaces
from attestation.log.reader import LogReader
from attestation.log.writer import LogWriter
from attestation.signing import SigningKey
from bench.report import Row
from tests.control.server_process import ServerProcess

PAGE_MS = 200.0
ROUNDS = 7
PROOFS = 200
BATCH = 4096
_BEGAN = datetime(2025, 1, 1, tzinfo=UTC)


def plant(data: Path, entries: int) -> dict[str, str]:
    """Fill index and log of a server that does not run; return a reference of each kind that stands in them.

    Leases of nine entries each, with ids that rise as real ones do; a hundred tenants, two hundred nodes; one lease in fifty fails. They
    come behind what the server wrote itself.
    """
    base = sqlite3.connect(data / "control.db", isolation_level=None)
    base.execute("PRAGMA synchronous=OFF")
    (first,) = base.execute("SELECT max(log_index) + 1 FROM events").fetchone()
    base.executescript(_PLANT.format(entries=entries, leaf=_leaf(), began=_BEGAN.timestamp(), first=first))
    row = base.execute(
        "SELECT actor, tenant_ref, resource, evidence FROM events WHERE log_index = ?", (first + entries // 3 // 9 * 9 + 5,)
    ).fetchone()
    base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _log(data, base, first)
    base.close()
    return dict(zip(("node", "tenant", "lease", "evidence"), row, strict=True))


def _log(data: Path, base: sqlite3.Connection, first: int) -> None:
    """Append what was planted, each at the index that the plant gave it."""
    origin = Checkpoint.parse(Note.parse(LogReader.from_dir(data).checkpoint()).text).origin
    rows = base.execute("SELECT leaf FROM events WHERE log_index >= ? ORDER BY log_index", (first,))
    with LogWriter.open(LogPlaces(data), origin=origin, key=SigningKey.load(data / "log.key")) as writer:
        while batch := [leaf for (leaf,) in rows.fetchmany(BATCH)]:
            assert writer.append(batch) == list(range(first, first + len(batch)))
            first += len(batch)


_PLANT = """
CREATE TEMP TABLE word (step INTEGER PRIMARY KEY, type TEXT);
INSERT INTO word VALUES (0, 'submitted'), (1, 'admitted'), (2, 'placed'), (3, 'attested'), (4, 'unlocked'), (5, 'running'),
  (6, 'collecting'), (7, 'wiping'), (8, 'closed');
BEGIN;
WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {entries}),
line AS (
  SELECT i, type AS action, CASE WHEN step > 2 THEN printf('node-%032x', (i / 9) * 7919 % 200) ELSE 'server' END AS actor,
    printf('tenant-%032x', (i / 9) * 104729 % 100) AS tenant, printf('lease-%032x', i / 9) AS lease,
    CASE WHEN step = 8 AND (i / 9) % 50 = 0 THEN 'failed' ELSE 'done' END AS outcome, 'sha256:' || lower(hex(randomblob(32))) AS digest,
    printf('%08x-%04x-7000-8000-%012x', i, i % 65536, i) AS id, {began} + 30 * i AS at
  FROM n JOIN word ON step = i % 9)
INSERT INTO events (leaf_id, type, actor, tenant_ref, resource, outcome, evidence, occurred_at, leaf, log_index)
SELECT id, 'lease.' || action, actor, tenant, lease, outcome, digest, strftime('%Y-%m-%d %H:%M:%S.000000', at, 'unixepoch'),
  CAST({leaf} AS BLOB), i + {first}
FROM line ORDER BY i;
COMMIT;
"""


def _leaf() -> str:
    """Return an SQL expression of a planted line's leaf: a real leaf, each value in it exchanged for the line's own."""
    one = Leaf(
        "lease.running", _BEGAN, _BEGAN, "node-" + "1" * 32, "lease-" + "2" * 32, "running", "done", "tenant-" + "3" * 32,
        DocumentRef("sha256:" + "a" * 64, "application/vnd.dsse.envelope.v1+json"),
    )  # fmt: skip
    values = {
        one.id: "id", one.actor_ref: "actor", one.resource_ref: "lease", one.tenant_ref: "tenant", "sha256:" + "a" * 64: "digest",
        "2025-01-01T00:00:00.000Z": "strftime('%Y-%m-%dT%H:%M:%fZ', at, 'unixepoch')", '"running"': "'\"' || action || '\"'",
        "lease.running": "'lease.' || action", '"done"': "'\"' || outcome || '\"'",
    }  # fmt: skip
    text = "'" + one.to_bytes().decode() + "'"
    for value, expression in values.items():
        assert str(value) in text
        text = text.replace(str(value), f"' || {expression} || '")
    return text


def bench_console(folder: Path, entries: int = 1_000_000) -> Iterator[Row]:
    """Yield the slowest of several loads of each kind of page, first loads among them, and of pages and proofs of entries anywhere."""
    server = ServerProcess(folder)
    token = (folder / "data" / "operator.token").read_text().strip()
    server.kill()
    known = plant(folder / "data", entries)
    server.start()
    middle = (_BEGAN + timedelta(seconds=15 * entries)).strftime("%Y-%m-%dT%H:%M")
    late = (_BEGAN + timedelta(seconds=30 * (entries - 50))).strftime("%Y-%m-%dT%H:%M")
    questions = {
        "the newest": {},
        "deep in the middle": {"before": str(entries // 2)},
        "one lease": {"lease": known["lease"]},
        "one node": {"node": known["node"]},
        "one tenant": {"tenant": known["tenant"]},
        "one tenant's failures": {"tenant": known["tenant"], "outcome": "failed"},
        "one type": {"type": "lease.closed"},
        "types that begin with": {"type": "lease.w*"},
        "one outcome": {"outcome": "failed"},
        "until long ago": {"until": middle},
        "since lately": {"since": late},
        "a type between two times": {"type": "lease.closed", "since": middle, "until": late},
        "text: a whole digest": {"text": known["evidence"]},
        "text: part of a digest": {"text": known["evidence"][12:40]},
        "text: nowhere": {"text": "nobody"},
        "an actor that is not there": {"actor": "node-" + "0" * 32},
        "a contradiction": {"type": "lease.closed", "lease": known["lease"], "outcome": "failed"},
    }
    try:
        with httpx.Client(base_url=server.http.base_url, timeout=60) as http:
            http.post("/login", data={"token": token})
            for name, question in questions.items():
                times = [_load(http, f"/audit?{httpx.QueryParams(question)}") for _ in range(ROUNDS)]
                peer = _load(http, "/policies") if name == "the newest" else None
                yield Row(f"console, {entries} entries: {name}; slowest of {ROUNDS}", max(times), "ms",
                          "the median load" if peer is None else "a page without a log", peer or statistics.median(times),
                          at_most=PAGE_MS)  # fmt: skip
            for name, place in (("an entry's page", "/audit/{}"), ("an entry's proof", "/audit/{}/proof")):
                times = [_load(http, place.format(random.randrange(entries))) for _ in range(PROOFS)]  # noqa: S311  (which need not be secret)
                yield Row(f"console, {entries} entries: {name}; slowest of {PROOFS} at random", max(times), "ms",
                          "the median load", statistics.median(times), at_most=PAGE_MS)  # fmt: skip
    finally:
        server.close()


def _load(http: httpx.Client, place: str) -> float:
    start = time.perf_counter()
    http.get(place).raise_for_status()
    return (time.perf_counter() - start) * 1000
