"""How fast the control plane answers, as a process of its own over loopback HTTP, against the parts it is made of in the same run.

``python -m bench.api [--json]``. A submitted job that counts is verified, in the database and in the signed audit log, all synced to disk.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench.console import bench_console
from bench.report import Row, main
from sandbox.customer.client import Client
from sandbox.customer.state import State
from sandbox.customer.upload import LINES, push
from tests.control.actors import TUS, Bundle, Customer, make_bundle, ok
from tests.control.server_process import ServerProcess

SINGLE = 100
PARALLEL = 8
BUNDLE_BYTES = 256 * 2**20
MIB = 2**20


def measure() -> Sequence[Row]:
    """Return the rows."""
    with tempfile.TemporaryDirectory(prefix="sealrig-bench-") as name, _server(Path(name)) as server:
        customer = server.customer()
        rows = [*_small(server, customer), *_submissions(server, customer, Path(name)), _wake(customer)]
        rows += _transfers(customer, Path(name))
    with tempfile.TemporaryDirectory(prefix="sealrig-bench-") as name:
        return [*rows, *bench_console(Path(name))]


@contextmanager
def _server(folder: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(folder)
    try:
        yield server
    finally:
        server.close()


def _small(server: ServerProcess, customer: Customer) -> list[Row]:
    """Compare a request that needs a token with one that needs nothing at all."""
    health = _median(SINGLE, lambda: server.http.get("/healthz").raise_for_status())
    token = _median(SINGLE, lambda: ok(customer.get("/v1/whoami")))
    return [Row("one request with a token, median", token, "ms", "the same server's /healthz", health)]


def _submissions(server: ServerProcess, customer: Customer, folder: Path) -> list[Row]:
    jobs = iter([customer.job() for _ in range(SINGLE)])
    one = _median(SINGLE, lambda: ok(customer.submit(next(jobs))))
    _cancel_all(customer)
    waiting = [customer.job() for _ in range(SINGLE * 2)]
    clients = [httpx.Client(base_url=server.http.base_url, timeout=60) for _ in range(PARALLEL)]
    others = [Customer(http, customer.token, customer.tenant, customer.identity) for http in clients]
    start = time.perf_counter()
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(lambda pair: ok(pair[0].submit(pair[1])), ((others[n % PARALLEL], job) for n, job in enumerate(waiting))))
    rate = len(waiting) / (time.perf_counter() - start)
    for http in clients:
        http.close()
    _cancel_all(customer)
    insert = _durable_insert(folder)
    return [
        Row("submit one job: verified, stored, logged, synced; median", one, "ms", "one synced SQLite insert", insert),
        Row(f"submit jobs, {PARALLEL} clients at once", rate, "/s", "synced SQLite inserts, one after the other", 1000 / insert),
    ]


def _cancel_all(customer: Customer) -> None:
    for row in ok(customer.get("/v1/leases?state=admitted&limit=500")):
        ok(customer.post(f"/v1/leases/{row['id']}/cancel"))


def _durable_insert(folder: Path) -> float:
    database = sqlite3.connect(folder / "peer.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (a BLOB)")
    row = os.urandom(4096)
    taken = _median(SINGLE, lambda: database.execute("INSERT INTO t VALUES (?)", (row,)))
    database.close()
    return taken


def _wake(customer: Customer) -> Row:
    """Measure from a change until a long poll elsewhere has told of it."""
    taken = []
    for _ in range(10):
        lease = str(ok(customer.submit(customer.job()))["id"])
        told: list[float] = []
        with httpx.Client(base_url=customer.http.base_url, timeout=60) as http:
            watcher = Customer(http, customer.token, customer.tenant, customer.identity)

            def watch(watcher: Customer = watcher, lease: str = lease, told: list[float] = told) -> None:
                ok(watcher.get(f"/v1/leases/{lease}?wait=20&since=admitted"))
                told.append(time.perf_counter())

            waiting = threading.Thread(target=watch)
            waiting.start()
            time.sleep(0.1)
            start = time.perf_counter()
            ok(customer.post(f"/v1/leases/{lease}/cancel"))
            waiting.join()
        taken.append((told[0] - start) * 1000)
    return Row("from a customer's cancel to another client's long poll, median", statistics.median(taken), "ms")


def _transfers(customer: Customer, folder: Path) -> list[Row]:
    bundle = make_bundle(folder, customer.identity, os.urandom(BUNDLE_BYTES))
    size = len(bundle.raw) / MIB
    up = size / _seconds(lambda: _upload(customer, bundle))
    down = size / _seconds(lambda: _download(customer, bundle))
    copy = size / _seconds(lambda: _write(folder / "copy", bundle.raw))
    read = size / _seconds(lambda: _read(folder / "copy"))
    return [
        Row("upload a bundle: received, synced, hashed, its header checked", up, "MiB/s", "write and fsync of the same bytes", copy),
        Row("download a bundle", down, "MiB/s", "read of the same file", read),
        _push(customer, folder, bundle),
    ]


def _push(customer: Customer, folder: Path, bundle: Bundle) -> Row:
    """Compare all that ``sealrig push`` does, hashing here and joining there included, with curl sending the same file in one request."""
    path = folder / "push.sealed"
    path.write_bytes(bundle.raw)
    size = len(bundle.raw) / MIB
    curl = None
    if shutil.which("curl") is not None:
        customer.delete(f"/v1/bundles/{bundle.digest}").raise_for_status()
        curl = size / _seconds(lambda: _curl(customer, bundle, path))
    customer.delete(f"/v1/bundles/{bundle.digest}").raise_for_status()
    with Client(str(customer.http.base_url), customer.token) as client:
        pushed = size / _seconds(lambda: push(client, path, State(folder / "state")))
    return Row(f"push a bundle on {LINES} connections", pushed, "MiB/s", "curl, which neither hashes nor resumes", curl)


def _curl(customer: Customer, bundle: Bundle, path: Path) -> None:
    place = customer.start_upload(bundle.digest, len(bundle.raw)).headers["location"]
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream", "Expect": "",
               "Authorization": f"Bearer {customer.token}"}  # fmt: skip
    config = "".join(f'header = "{name}: {value}"\n' for name, value in headers.items())
    command = ["curl", "--silent", "--fail", "--config", "-", "--request", "PATCH", "--upload-file", str(path)]
    subprocess.run([*command, str(customer.http.base_url.join(place))], input=config, text=True, check=True)


def _upload(customer: Customer, bundle: Bundle) -> None:
    place = customer.start_upload(bundle.digest, len(bundle.raw)).headers["location"]
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream", "Content-Length": str(len(bundle.raw))}
    pieces = (bundle.raw[start : start + MIB] for start in range(0, len(bundle.raw), MIB))
    customer.call("PATCH", place, headers=headers, content=pieces).raise_for_status()


def _download(customer: Customer, bundle: Bundle) -> None:
    with customer.http.stream(
        "GET", f"/v1/bundles/{bundle.digest}/content", headers={"Authorization": f"Bearer {customer.token}"}
    ) as answer:
        if sum(len(piece) for piece in answer.iter_raw(MIB)) != len(bundle.raw):
            raise RuntimeError("the download is not whole")


def _write(path: Path, raw: bytes) -> None:
    with path.open("wb") as file:
        file.write(raw)
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median(count: int, work: Callable[[], object]) -> float:
    """Return milliseconds."""
    return statistics.median(_seconds(work) for _ in range(count)) * 1000


if __name__ == "__main__":
    sys.exit(main("api", measure, sys.argv[1:], about=__doc__))
