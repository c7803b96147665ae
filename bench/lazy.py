"""A mounted bundle against the plain file and an empty FUSE server; a bundle on a server against its plain download.

``python -m bench.lazy [PART…] [--json] [--size 512Mi] [--large 2Gi]``. Needs root and fuse3, and disk for two files of ``--large``.

``first byte`` runs from the call that mounts to the first byte read, and must not depend on the size: with a process that waits for its
order, as a node keeps one, and with none, against a Python that only imports the libraries. With many files the index comes first, whole,
since only its end proves it. Sequential rows read the file once through the kernel's page cache; the null server answers the
same requests from memory and does nothing else. ``one file`` is the library's work for ``sealrig cat``, without the start of a program, on
a bundle that neither the kernel nor the program has seen.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.peers import CHUNK, tree
from bench.report import Row, main
from policies.units import format_size, parse_size
from sandbox.customer.client import Client
from sandbox.customer.state import State
from sandbox.customer.upload import push
from sandbox.sealing.bundle import BundleReader, DataKey, FileSource, data_key, read_header, seal
from sandbox.sealing.keys import Identity
from sandbox.sealing.mount import READ_AHEAD_KIB, Mount, Remote, Spare
from sandbox.sealing.mountinfo import is_mounted
from sandbox.sealing.remote import HttpSource, content_url
from tests.control.server_process import ServerProcess

_NULL = """
import os, stat, sys
os.environ.setdefault("FUSE_LIBRARY_PATH", "libfuse3.so.3")
import mfusepy
size, data = int(sys.argv[2]), bytes(1 << 20)
class Null(mfusepy.Operations):
    use_ns = True
    def getattr(self, path, fh=None):
        return {"st_mode": stat.S_IFDIR | 0o755} if path == "/" else {"st_mode": stat.S_IFREG | 0o444, "st_size": size}
    def open(self, path, flags): return 1
    def read(self, path, count, offset, fh): return data if count == len(data) else data[:count]
mfusepy.FUSE(Null(), sys.argv[1], foreground=True, ro=True, kernel_cache=True, attr_timeout=86400, entry_timeout=86400,
             max_threads=10, max_idle_threads=10)
"""
PARTS = ("local", "remote", "many", "file")
_READ_AHEAD = str(READ_AHEAD_KIB)
_SPARE_SECONDS = 2.0
_ONE = 20
_MANY_FILES = 20_000
Times = dict[str, list[float]]


@dataclass
class _Place:
    """Where everything stands: in RAM, with one server."""

    root: Path
    size: int
    who: Identity = field(default_factory=Identity.generate)

    @property
    def view(self) -> Path:
        return self.root / "view"

    def seal(self, size: int, folder: Path) -> tuple[Path, DataKey]:
        """Seal a file of random bytes and a small one."""
        source = folder / "source"
        source.mkdir()
        block = os.urandom(CHUNK)
        with (source / "data").open("wb") as file:
            for number in range(size // CHUNK):
                file.write(block[number % CHUNK :] + block[: number % CHUNK])
        (source / "small").write_bytes(block[:5000])
        seal([source], folder / "sealed", recipients=[self.who.public], signer=self.who.signing_key)
        with (folder / "sealed").open("rb") as file:
            return folder / "sealed", data_key(read_header(file), self.who)


def _read(path: Path) -> float:
    # Whole pages, as cat and cp have: some processors copy three times slower to addresses a few bytes above a page's beginning.
    buffer = mmap.mmap(-1, CHUNK)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def _imports() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import sandbox.sealing.viewer"], check=True)
    return time.perf_counter() - start


def _many(place: _Place) -> tuple[Path, DataKey]:
    """Seal a bundle of many small files, and one to read."""
    folder = place.root / "many"
    source = tree(folder / "source", _MANY_FILES)
    (source / "data").write_bytes(bytes(CHUNK))
    sealed = folder / "sealed"
    seal([source], sealed, recipients=[place.who.public], signer=place.who.signing_key)
    with sealed.open("rb") as file:
        return sealed, data_key(read_header(file), place.who)


def _null(place: _Place) -> float:
    process = subprocess.Popen([sys.executable, "-c", _NULL, str(place.view), str(place.size)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)  # fmt: skip
    while not is_mounted(place.view):
        if process.poll() is not None:
            raise RuntimeError(f"the null server ended: {process.communicate()[1].decode(errors='replace').strip()[-300:]}")
        time.sleep(0.01)
    number = place.view.stat().st_dev
    Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb").write_text(_READ_AHEAD)
    seconds = _read(place.view / "data")
    subprocess.run(["umount", str(place.view)], check=True)
    process.wait()
    return seconds


def _view(place: _Place, bundle: Path | Remote, key: DataKey, times: Times, name: str, *, spare: Spare | None = None) -> None:
    """Time the first byte and one pass through the file."""
    if spare is not None:
        spare.prepare()
        time.sleep(_SPARE_SECONDS)
    start = time.perf_counter()
    with Mount.start(bundle, place.view, key, spare=spare) as mount:
        with (place.view / "data").open("rb", buffering=0) as file:
            file.read(1)
        times.setdefault(f"first {name}", []).append(time.perf_counter() - start)
        times.setdefault(name, []).append(_read(place.view / "data"))
        times.setdefault(f"again {name}", []).append(_read(place.view / "data"))
    if isinstance(mount.bundle, Remote):
        mount.bundle.cache.unlink()


def _download(remote: Remote) -> float:
    buffer = 0
    start = time.perf_counter()
    headers = {"Authorization": f"Bearer {remote.token}"}
    with httpx.stream("GET", content_url(remote.server, remote.digest), headers=headers, timeout=600) as answer:
        for piece in answer.iter_raw(CHUNK):
            buffer += len(piece)
    return time.perf_counter() - start


def _one_file(open_source: Callable[[], tuple[FileSource | HttpSource, DataKey]]) -> float:
    start = time.perf_counter()
    source, key = open_source()
    reader = BundleReader(source, key)
    if len(b"".join(reader.read("small"))) != 5000:
        raise RuntimeError
    seconds = time.perf_counter() - start
    reader.close()
    source.close()
    return seconds


def _cold(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def measure() -> list[Row]:
    """Run all rows."""
    options = _options()
    parts = options.parts or PARTS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sealrig-bench-") as name:
        place = _Place(Path(name), options.size)
        place.view.mkdir()
        if {"local", "remote"} & set(parts):
            sealed = place.seal(place.size, place.root)
            if "local" in parts:
                rows += _local(place, *sealed, options.rounds)
            if "remote" in parts:
                rows += _remote(place, *sealed, options.rounds)
        if "many" in parts:
            rows += _many_files(place, options.rounds)
    if "file" in parts:
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="sealrig-bench-") as name:
            rows += _files(_Place(Path(name), 0), options.large)
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.lazy")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", type=parse_size, default=512 * 2**20)
    parser.add_argument("--large", type=parse_size, default=2 * 2**30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part called {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    return options


def _served(place: _Place, sealed: Path) -> tuple[ServerProcess, Remote]:
    server = ServerProcess(place.root)
    customer = server.customer()
    address = str(server.http.base_url)
    with Client(address, customer.token) as client:
        digest = push(client, sealed, State(place.root / "state")).digest
    return server, Remote(address, customer.token, digest, place.root / "fetched", 2**40)


def _local(place: _Place, sealed: Path, key: DataKey, rounds: int) -> list[Row]:
    times: Times = {}
    for _ in range(rounds):
        _view(place, sealed, key, times, "from nothing")
        _view(place, sealed, key, times, "view", spare=Spare())
        times.setdefault("imports", []).append(_imports())
        times.setdefault("null", []).append(_null(place))
        times.setdefault("plain", []).append(_read(place.root / "source" / "data"))
    middle, speed = _medians(place, times)
    return [
        Row("first byte, a process waits for its order", middle["first view"] * 1000, "ms", at_most=100),
        Row("first byte, from nothing", middle["first from nothing"] * 1000, "ms", "Python and imports", middle["imports"] * 1000),
        Row("sequential", speed["view"], "GB/s", "null FUSE server", speed["null"], at_least=1),
        Row("sequential", speed["view"], "GB/s", "plain file", speed["plain"]),
        Row("sequential, cached by the kernel", speed["again view"], "GB/s", "plain file", speed["plain"]),
    ]


def _remote(place: _Place, sealed: Path, key: DataKey, rounds: int) -> list[Row]:
    times: Times = {}
    server, remote = _served(place, sealed)
    try:
        for _ in range(rounds):
            _view(place, remote, key, times, "remote", spare=Spare())
            times.setdefault("download", []).append(_download(remote))
    finally:
        server.close()
    middle, speed = _medians(place, times)
    return [
        Row("first byte of a bundle on a server, a process waits", middle["first remote"] * 1000, "ms", at_most=100),
        Row("sequential, of a bundle on a server", speed["remote"], "GB/s", "plain download", speed["download"]),
    ]


def _many_files(place: _Place, rounds: int) -> list[Row]:
    times: Times = {}
    sealed, key = _many(place)
    for _ in range(rounds):
        _view(place, sealed, key, times, "many", spare=Spare())
    middle, _ = _medians(place, times)
    return [Row(f"first byte of a bundle of {_MANY_FILES} files, a process waits", middle["first many"] * 1000, "ms")]


def _medians(place: _Place, times: Times) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median seconds of each contestant, and the GB/s that they make of the large file."""
    middle = {what: statistics.median(found) for what, found in times.items()}
    return middle, {what: place.size / seconds / 1e9 for what, seconds in middle.items()}


def _files(place: _Place, size: int) -> list[Row]:
    sealed, key = place.seal(size, place.root)
    (place.root / "source" / "data").unlink()
    kept = sealed.stat().st_size
    fetched: list[int] = []

    def here() -> tuple[FileSource | HttpSource, DataKey]:
        return FileSource(sealed), key

    def there() -> tuple[FileSource | HttpSource, DataKey]:
        source = HttpSource(content_url(remote.server, remote.digest), remote.token, remote.digest, patience=5)
        opened.append(source)
        return source, key

    opened: list[HttpSource] = []
    local = []
    for _ in range(_ONE):
        _cold(sealed)
        local.append(_one_file(here))
    server, remote = _served(place, sealed)
    stored = next((place.root / "data" / "bundles").glob("*/*.bundle"), sealed)
    try:
        over = []
        for _ in range(_ONE):
            _cold(stored)
            over.append(_one_file(there))
            fetched.append(opened[-1].fetched)
    finally:
        server.close()
    what = f"of a bundle of {format_size(kept)}"
    return [
        Row(f"one file {what}, cold", statistics.median(local) * 1000, "ms", at_most=100),
        Row(f"one file {what}, over HTTP, cold", statistics.median(over) * 1000, "ms", at_most=100),
        Row(f"one file {what}, over HTTP: bytes fetched", max(fetched) / 2**20, "MiB", "the whole", kept / 2**20),
    ]


if __name__ == "__main__":
    raise SystemExit(main("lazy", measure, sys.argv[1:]))
