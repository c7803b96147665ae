"""A mounted bundle against the plain file and an empty FUSE server: ``python -m bench.lazy [--json] [--size 512Mi]``. Needs root, fuse3.

``first byte`` runs from the start of the mounting process to the first byte read, and must not depend on the size. Sequential rows read
the file once through the kernel's page cache; the null server answers the same requests from memory and does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.report import Row, main
from bench.seal import CHUNK
from policies.units import parse_size
from sandbox.sealing.bundle import data_key, read_header, seal
from sandbox.sealing.keys import Identity
from sandbox.sealing.mount import Mount
from sandbox.sealing.mountinfo import is_mounted

_NULL = """
import stat, sys, mfusepy
size, data = int(sys.argv[2]), bytes(1 << 20)
class Null(mfusepy.Operations):
    use_ns = True
    def getattr(self, path, fh=None):
        return {"st_mode": stat.S_IFDIR | 0o755} if path == "/" else {"st_mode": stat.S_IFREG | 0o444, "st_size": size}
    def open(self, path, flags): return 1
    def read(self, path, count, offset, fh): return data[:count]
mfusepy.FUSE(Null(), sys.argv[1], foreground=True, ro=True, kernel_cache=True, attr_timeout=86400, entry_timeout=86400)
"""


def _read(path: Path) -> float:
    buffer = bytearray(CHUNK)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def _null(folder: Path, size: int) -> float:
    process = subprocess.Popen([sys.executable, "-c", _NULL, str(folder), str(size)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not is_mounted(folder):
        time.sleep(0.01)
    seconds = _read(folder / "data")
    subprocess.run(["umount", str(folder)], check=True)
    process.wait()
    return seconds


def measure() -> list[Row]:
    """Run all rows."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.lazy")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--size", type=parse_size, default=512 * 2**20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"first": [], "view": [], "null": [], "plain": [], "again": []}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sealrig-bench-") as name:
        root = Path(name)
        (root / "view").mkdir()
        block = os.urandom(CHUNK)
        with (root / "data").open("wb") as file:
            for number in range(options.size // CHUNK):
                file.write(block[number % CHUNK :] + block[: number % CHUNK])
        who = Identity.generate()
        seal([root / "data"], root / "sealed", recipients=[who.public], signer=who.signing_key)
        with (root / "sealed").open("rb") as file:
            key = data_key(read_header(file), who)
        for _ in range(options.rounds):
            start = time.perf_counter()
            with Mount.start(root / "sealed", root / "view", key):
                with (root / "view" / "data").open("rb", buffering=0) as file:
                    file.read(1)
                times["first"].append(time.perf_counter() - start)
                times["view"].append(_read(root / "view" / "data"))
                times["again"].append(_read(root / "view" / "data"))
            times["null"].append(_null(root / "view", options.size))
            times["plain"].append(_read(root / "data"))
    middle = {what: statistics.median(found) for what, found in times.items()}
    speed = {what: options.size / seconds / 1e9 for what, seconds in middle.items()}
    return [
        Row("first byte, from nothing", middle["first"] * 1000, "ms", at_most=100),
        Row("sequential", speed["view"], "GB/s", "null FUSE server", speed["null"], at_least=1),
        Row("sequential", speed["view"], "GB/s", "plain file", speed["plain"]),
        Row("sequential, cached by the kernel", speed["again"], "GB/s", "plain file", speed["plain"]),
    ]


if __name__ == "__main__":
    raise SystemExit(main("lazy", measure, sys.argv[1:]))
