"""How soon the console and the API answer questions about a log of a million entries.

The events are planted in the server's index, as its journal would have put them there; pages come over loopback HTTP from a server process.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from attestation.log.leaf import DocumentRef, Leaf
from bench.report import Row
from tests.control.server_process import ServerProcess

PAGE_MS = 200.0
ROUNDS = 7
_BEGAN = datetime(2025, 1, 1, tzinfo=UTC)


def plant(database: Path, entries: int) -> dict[str, str]:
    """Fill the event index; return a reference of each kind that stands in it.

    Leases of nine entries each, with ids that rise as real ones do; a hundred tenants, two hundred nodes; one lease in fifty fails.
    """
    base = sqlite3.connect(database, isolation_level=None)
    base.execute("PRAGMA synchronous=OFF")
    base.executescript(_PLANT.format(entries=entries, leaf=_leaf(), began=_BEGAN.timestamp()))
    row = base.execute(
        "SELECT actor, tenant_ref, resource, evidence FROM events WHERE log_index = ?", (1000 + entries // 3 // 9 * 9 + 5,)
    ).fetchone()
    base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    base.close()
    return dict(zip(("node", "tenant", "lease", "evidence"), row, strict=True))


_PLANT = """
CREATE TEMP TABLE word (step INTEGER PRIMARY KEY, type TEXT);
INSERT INTO word VALUES (0, 'submitted'), (1, 'admitted'), (2, 'placed'), (3, 'attested'), (4, 'unlocked'), (5, 'running'),
  (6, 'collecting'), (7, 'wiping'), (8, 'closed');
BEGIN;
DELETE FROM transitions; DELETE FROM committed; DELETE FROM events;
WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {entries}),
line AS (
  SELECT i, 'lease.' || type AS type, CASE WHEN step > 2 THEN printf('node-%032x', (i / 9) * 7919 % 200) ELSE 'server' END AS actor,
    printf('tenant-%032x', (i / 9) * 104729 % 100) AS tenant, printf('lease-%032x', i / 9) AS lease,
    CASE WHEN step = 8 AND (i / 9) % 50 = 0 THEN 'failed' ELSE 'done' END AS outcome, 'sha256:' || lower(hex(randomblob(32))) AS digest,
    printf('%08x-%04x-7000-8000-%012x', i, i % 65536, i) AS id
  FROM n JOIN word ON step = i % 9)
INSERT INTO events (leaf_id, type, actor, tenant_ref, resource, outcome, evidence, occurred_at, leaf, log_index)
SELECT id, type, actor, tenant, lease, outcome, digest, strftime('%Y-%m-%d %H:%M:%S.000000', {began} + 30 * i, 'unixepoch'),
  CAST(replace(replace(replace(replace('{leaf}', 'ID', id), 'LEASE', lease), 'TENANT', tenant), 'DIGEST', digest) AS BLOB), i + 1000
FROM line ORDER BY i;
COMMIT;
"""


def _leaf() -> str:
    one = Leaf(
        "lease.running", _BEGAN, _BEGAN, "node-" + "1" * 32, "lease-" + "2" * 32, "running", "done", "tenant-" + "3" * 32,
        DocumentRef("sha256:" + "a" * 64, "application/vnd.dsse.envelope.v1+json"),
    )  # fmt: skip
    text = one.to_bytes().decode()
    for value, name in ((one.id, "ID"), (one.resource_ref, "LEASE"), ("tenant-" + "3" * 32, "TENANT"), ("sha256:" + "a" * 64, "DIGEST")):
        text = text.replace(value, name)
    return text


def bench_console(folder: Path, entries: int = 1_000_000) -> Iterator[Row]:
    """Yield the slowest of several loads of each kind of page, first loads among them."""
    server = ServerProcess(folder)
    token = (folder / "data" / "operator.token").read_text().strip()
    server.kill()
    known = plant(folder / "data" / "control.db", entries)
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
    finally:
        server.close()


def _load(http: httpx.Client, place: str) -> float:
    start = time.perf_counter()
    http.get(place).raise_for_status()
    return (time.perf_counter() - start) * 1000
