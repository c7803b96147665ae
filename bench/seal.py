"""Sealing and opening against named peers, interleaved in the same run: ``python -m bench.seal [PART…] [--json] [--size 2Gi]``.

Every round runs each contestant once, in turn, so that a busy machine is busy for all of them; a row compares medians. Our calls
run in this process; peers are their own programs. Caches are warm; rows named ``disk`` end with fsync on both sides.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import ceiling
from bench.peers import CHUNK, peers, sh, tree
from bench.report import Row, main
from policies.units import parse_size
from sandbox.sealing.bundle import BundleReader, FileSource, open_bundle, seal
from sandbox.sealing.keys import Identity

PARTS = ("limits", "file", "memory", "tree", "disk")
MEMORY_GOAL_MIB = 64
MANY_FILES = 200_000
_MEASURE = """
import sys
from pathlib import Path
from sandbox.sealing.bundle import open_bundle, seal
from sandbox.sealing.keys import Identity
who = Identity.generate()
seal([Path(sys.argv[1])], Path(sys.argv[2]), recipients=[who.public], signer=who.signing_key)
open_bundle(Path(sys.argv[2]), Path(sys.argv[3]), key=who)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


class Bench:
    """Files, contestants and their times, in one folder on one kind of storage."""

    def __init__(self, folder: Path, size: int) -> None:
        """Write a file of ``size`` random bytes into ``folder``."""
        self.folder = folder
        self.size = size
        self.identity = Identity.generate()
        self.data = folder / "data"
        self.times: dict[str, list[float]] = {}
        block = os.urandom(CHUNK)
        with self.data.open("wb") as file:
            for number in range(size // CHUNK):
                cut = number % CHUNK
                file.write(block[cut:] + block[:cut])

    def time(self, name: str, action: Callable[[], object], *made: Path) -> None:
        """Time ``action`` once and remove what it made."""
        start = time.perf_counter()
        action()
        self.times.setdefault(name, []).append(time.perf_counter() - start)
        for path in made:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def median(self, name: str) -> float:
        """Return the median seconds of a contestant."""
        return statistics.median(self.times[name])

    def seal(self, source: Path, out: Path) -> None:
        """Seal as the command does, durable at the end."""
        seal([source], out, recipients=[self.identity.public], signer=self.identity.signing_key)

    def faster(self, what: str, ours: str, peer: str, goal: float | None, *, size: int = 0) -> Row:
        """Return a row that compares two contestants' rates, from medians over the same bytes; ``goal`` is the least ratio."""
        moved = (size or self.size) / 1e6
        return Row(what, moved / self.median(ours), "MB/s", peer, moved / self.median(peer), ratio_at_least=goal)


def _copy_durably(source: Path, out: Path) -> None:
    sh("cp", source, out)
    fd = os.open(out, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def bench_file(bench: Bench, rounds: int) -> list[Row]:
    """Compare on one large file on tmpfs."""
    data, sealed, new, folder = bench.data, bench.folder / "sealed", bench.folder / "new", bench.folder / "opened"
    bench.seal(data, sealed)
    with peers(bench.folder) as others:
        for _ in range(rounds):
            bench.time("cp", lambda: sh("cp", data, new), new)
            bench.time("seal", lambda: bench.seal(data, new), new)
            bench.time("open", lambda: open_bundle(sealed, folder, key=bench.identity), folder)
            for peer in others:
                bench.time(peer.name, lambda peer=peer: peer.encrypt(data))  # type: ignore[misc]
                peer.between()
                bench.time(f"{peer.name} -d", lambda peer=peer: peer.decrypt(new), new, peer.sealed)  # type: ignore[misc]
    size = f"{bench.size // 2**20} MiB, tmpfs"
    rows = [bench.faster(f"seal {size}", "seal", "cp", 0.6), bench.faster(f"open {size}", "open", "cp", 0.9)]
    for peer in others:
        goal = 3.0 if peer.name == "age" else None
        rows.append(bench.faster(f"seal {size}", "seal", peer.name, goal))
        rows.append(bench.faster(f"open {size}", "open", f"{peer.name} -d", goal))
    return [*rows, bench_range(bench, sealed)]


def bench_range(bench: Bench, sealed: Path) -> Row:
    """Time one range of one file from a bundle that nobody has open: header, key, index, one segment."""

    def read() -> None:
        with FileSource(sealed) as source:
            middle = bench.size // 2
            assert len(b"".join(BundleReader(source, bench.identity).read("data", middle, middle + 4096))) == 4096

    for _ in range(5):
        bench.time("range", read)
    return Row("4 KiB from the middle, cold reader", bench.median("range") * 1000, "ms", at_most=100)


def bench_memory(bench: Bench) -> list[Row]:
    """Return the peak memory of fresh processes that seal and open one large file, and very many small ones; all come back as they were."""
    many = tree(bench.folder / "many", MANY_FILES)
    rows = []
    for what, source in ((f"{bench.size // 2**20} MiB", bench.data), (f"{MANY_FILES} files", many)):
        out, folder = bench.folder / "memory", bench.folder / "memory-opened"
        done = subprocess.run([sys.executable, "-c", _MEASURE, source, out, folder], check=True, capture_output=True, text=True)
        sh("diff", "-r", source, folder / source.name if source.is_file() else folder)
        out.unlink()
        shutil.rmtree(folder)
        rows.append(Row(f"peak memory, seal and open {what}", int(done.stdout) / 1024, "MiB", at_most=MEMORY_GOAL_MIB))
    return rows


def bench_tree(bench: Bench, files: int, rounds: int, kind: str) -> list[Row]:
    """Compare on many small files; on a disk with everything made durable on both sides."""
    source = tree(bench.folder / "tree", files)
    sealed, new = bench.folder / "tree-sealed", bench.folder / "tree-new"
    bench.seal(source, sealed)
    for _ in range(rounds):
        bench.time("cp -a tree", lambda: _copy_tree(source, new, kind), new)
        bench.time("seal tree", lambda: bench.seal(source, new), new)
        bench.time("open tree", lambda: _open_tree(bench, sealed, new, kind), new)
    name = f"{files} small files, {kind}"
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    pairs = (("seal", "seal tree"), ("open", "open tree"))
    return [bench.faster(f"{verb} {name}", ours, "cp -a tree", None, size=size) for verb, ours in pairs]


def _copy_tree(source: Path, new: Path, kind: str) -> None:
    sh("cp", "-a", source, new)
    if kind == "disk":
        sh("sync", "-f", new)


def _open_tree(bench: Bench, sealed: Path, new: Path, kind: str) -> None:
    open_bundle(sealed, new, key=bench.identity)
    if kind == "disk":
        sh("sync", "-f", new)


def bench_disk(folder: Path, size: int, rounds: int) -> list[Row]:
    """Compare on a disk, durable on both sides."""
    bench = Bench(folder, size)
    new = folder / "new"
    for _ in range(rounds):
        bench.time("cp + fsync", lambda: _copy_durably(bench.data, new), new)
        bench.time("seal", lambda: bench.seal(bench.data, new), new)
    return [bench.faster(f"seal {size // 2**20} MiB, disk, fsync", "seal", "cp + fsync", 1.0)]


def measure(options: argparse.Namespace) -> list[Row]:
    """Run the comparisons that were asked for."""
    shm = Path("/dev/shm")  # noqa: S108  (tmpfs by definition on Linux; a private folder is made inside)
    parts = options.parts or PARTS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None, prefix="sealrig-bench-") as name:
        bench = Bench(Path(name), options.size)
        if "limits" in parts:
            rows += ceiling.measure(bench.data, bench.folder / "new", options.rounds)
        if "file" in parts:
            rows += bench_file(bench, options.rounds)
        if "memory" in parts:
            rows += bench_memory(bench)
        if "tree" in parts:
            rows += bench_tree(bench, options.files, options.rounds, "tmpfs")
    with tempfile.TemporaryDirectory(dir=options.disk, prefix="sealrig-bench-") as name:
        if "disk" in parts:
            rows += bench_disk(Path(name), options.size, options.rounds)
        if "tree" in parts:
            rows += bench_tree(Bench(Path(name), 0), options.files, options.rounds, "disk")
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.seal")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", type=parse_size, default=2 * 2**30, help="of the large file, e.g. 512Mi")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"))  # noqa: S108  (a folder on a disk is wanted, /tmp may be none)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part called {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main("seal", lambda: measure(_options()), sys.argv[1:]))
