"""Sealing and opening against named peers, interleaved in the same run: ``python -m bench.seal [--json] [--size 512Mi] [--files 20000]``.

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

from bench.report import Row, main
from policies.units import parse_size
from sandbox.sealing.bundle import BundleReader, FileSource, open_bundle, seal
from sandbox.sealing.keys import Identity

MEMORY_GOAL_MIB = 64
CHUNK = 1024 * 1024
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


def _sh(*command: str, stdin: Path | None = None, stdout: Path | None = None) -> None:
    source = stdin.open("rb") if stdin else subprocess.DEVNULL
    target = stdout.open("wb") if stdout else subprocess.DEVNULL
    subprocess.run(command, check=True, stdin=source, stdout=target, stderr=subprocess.DEVNULL)


def _copy_durably(source: Path, out: Path) -> None:
    _sh("cp", "-r", str(source), str(out))
    fd = os.open(out, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _tink() -> tuple[Callable[[Path, Path], None], Callable[[Path, Path], None]] | None:
    try:
        import tink
        from tink import streaming_aead
    except ImportError:
        return None
    streaming_aead.register()
    handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
    primitive = handle.primitive(streaming_aead.StreamingAead)

    def encrypt(source: Path, out: Path) -> None:
        with source.open("rb") as plain, primitive.new_encrypting_stream(out.open("wb"), b"") as sealed:
            shutil.copyfileobj(plain, sealed, CHUNK)

    def decrypt(source: Path, out: Path) -> None:
        with primitive.new_decrypting_stream(source.open("rb"), b"") as sealed, out.open("wb") as plain:
            shutil.copyfileobj(sealed, plain, CHUNK)

    return encrypt, decrypt


def bench_file(bench: Bench, rounds: int) -> list[Row]:
    """Compare on one large file on tmpfs."""
    at, data = bench.folder, bench.data
    sealed, keyfile, aged, ssl, tinked = at / "sealed", at / "age.key", at / "aged", at / "ssl", at / "tinked"
    bench.seal(data, sealed)
    peers: list[str] = []
    if shutil.which("age"):
        _sh("age-keygen", "-o", str(keyfile))
        recipient = keyfile.read_text().split("public key: ")[1].split()[0]
        _sh("age", "-r", recipient, "-o", str(aged), str(data))
        peers.append("age")
    if shutil.which("openssl"):
        peers.append("openssl enc")
        _sh(*_openssl(data, ssl))
    tink = _tink()
    if tink:
        peers.append("tink-python")
        tink[0](data, tinked)
    new, folder = at / "new", at / "opened"
    for _ in range(rounds):
        bench.time("cp", lambda: _sh("cp", str(data), str(new)), new)
        bench.time("seal", lambda: bench.seal(data, new), new)
        bench.time("open", lambda: open_bundle(sealed, folder, key=bench.identity), folder)
        if "age" in peers:
            bench.time("age", lambda: _sh("age", "-r", recipient, "-o", str(new), str(data)), new)
            bench.time("age -d", lambda: _sh("age", "-d", "-i", str(keyfile), "-o", str(new), str(aged)), new)
        if "openssl enc" in peers:
            bench.time("openssl enc", lambda: _sh(*_openssl(data, new)), new)
            bench.time("openssl enc -d", lambda: _sh(*_openssl(ssl, new), "-d"), new)
        if tink:
            bench.time("tink-python", lambda: tink[0](data, new), new)
            bench.time("tink-python -d", lambda: tink[1](tinked, new), new)
    size = f"{bench.size // 2**20} MiB, tmpfs"
    rows = [bench.faster(f"seal {size}", "seal", "cp", 0.6), bench.faster(f"open {size}", "open", "cp", 0.9)]
    for peer in peers:
        goal = 3.0 if peer == "age" else None
        rows.append(bench.faster(f"seal {size}", "seal", peer, goal))
        rows.append(bench.faster(f"open {size}", "open", f"{peer} -d", goal))
    return [*rows, bench_range(bench, sealed), bench_memory(bench)]


def _openssl(source: Path, out: Path) -> list[str]:
    return ["openssl", "enc", "-aes-256-ctr", "-K", "00" * 32, "-iv", "00" * 16, "-in", str(source), "-out", str(out)]


def bench_range(bench: Bench, sealed: Path) -> Row:
    """Time one range of one file from a bundle that nobody has open: header, key, index, one segment."""

    def read() -> None:
        with FileSource(sealed) as source:
            middle = bench.size // 2
            assert len(b"".join(BundleReader(source, bench.identity).read("data", middle, middle + 4096))) == 4096

    for _ in range(5):
        bench.time("range", read)
    return Row("4 KiB from the middle, cold reader", bench.median("range") * 1000, "ms", at_most=100)


def bench_memory(bench: Bench) -> Row:
    """Return the peak memory of a fresh process that seals and opens the file."""
    out, folder = bench.folder / "memory", bench.folder / "memory-opened"
    done = subprocess.run([sys.executable, "-c", _MEASURE, bench.data, out, folder], check=True, capture_output=True, text=True)
    out.unlink()
    shutil.rmtree(folder)
    return Row("peak memory, seal and open", int(done.stdout) / 1024, "MiB", at_most=MEMORY_GOAL_MIB)


def bench_tree(bench: Bench, files: int, rounds: int) -> list[Row]:
    """Compare on many small files on tmpfs."""
    tree = bench.folder / "tree"
    for number in range(files):
        place = tree / f"{number // 200:04d}"
        if number % 200 == 0:
            place.mkdir(parents=True)
        (place / f"{number % 200:03d}.txt").write_bytes(b"%d " % number * (number % 700 + 1))
    sealed, new = bench.folder / "tree-sealed", bench.folder / "tree-new"
    bench.seal(tree, sealed)
    for _ in range(rounds):
        bench.time("cp -a tree", lambda: _sh("cp", "-a", str(tree), str(new)), new)
        bench.time("seal tree", lambda: bench.seal(tree, new), new)
        bench.time("open tree", lambda: open_bundle(sealed, new, key=bench.identity), new)
    name = f"{files} small files, tmpfs"
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    pairs = (("seal", "seal tree"), ("open", "open tree"))
    return [bench.faster(f"{verb} {name}", ours, "cp -a tree", None, size=size) for verb, ours in pairs]


def bench_disk(folder: Path, size: int, rounds: int) -> list[Row]:
    """Compare on a disk, durable on both sides."""
    bench = Bench(folder, size)
    new = folder / "new"
    for _ in range(rounds):
        bench.time("cp + fsync", lambda: _copy_durably(bench.data, new), new)
        bench.time("seal", lambda: bench.seal(bench.data, new), new)
    return [bench.faster(f"seal {size // 2**20} MiB, disk, fsync", "seal", "cp + fsync", 1.0)]


def measure(options: argparse.Namespace) -> list[Row]:
    """Run all comparisons."""
    shm = Path("/dev/shm")  # noqa: S108  (tmpfs by definition on Linux; a private folder is made inside)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None, prefix="sealrig-bench-") as name:
        bench = Bench(Path(name), options.size)
        rows += bench_file(bench, options.rounds)
        rows += bench_tree(bench, options.files, options.rounds)
    with tempfile.TemporaryDirectory(dir=options.disk, prefix="sealrig-bench-") as name:
        rows += bench_disk(Path(name), options.size, options.rounds)
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.seal")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", type=parse_size, default=512 * 2**20, help="of the large file, e.g. 2Gi")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"))  # noqa: S108  (a folder on a disk is wanted, /tmp may be none)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main("seal", lambda: measure(_options()), sys.argv[1:]))
