"""What no sealing can be faster than on this machine: each step that cannot be left out, in seconds of one core.

Processor time is counted, not the clock's, so that a busy machine changes little.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.peers import CHUNK, sh
from bench.report import Row
from sandbox.sealing.algorithms import TAG_BYTES

READ, ENCRYPT, HASH, WRITE, COPY = "read", "AES-256-GCM", "BLAKE3", "write a new file", "cp"


class _Steps:
    def __init__(self, source: Path, new: Path) -> None:
        self._source = source
        self._new = new
        self._count = source.stat().st_size // CHUNK
        self._block = memoryview(bytearray(os.urandom(CHUNK)))
        self._out = memoryview(bytearray(CHUNK + TAG_BYTES))
        self._cipher = AESGCM(os.urandom(32))
        self.all: dict[str, Callable[[], object]] = {
            READ: self._read, ENCRYPT: self._encrypt, HASH: self._hash, WRITE: self._write, COPY: lambda: sh("cp", source, new),
        }  # fmt: skip

    def _read(self) -> None:
        with self._source.open("rb", buffering=0) as file:
            while file.readinto(self._block):
                pass

    def _encrypt(self) -> None:
        for _ in range(self._count):
            self._cipher.encrypt_into(bytes(12), self._block, None, self._out)

    def _hash(self) -> None:
        for _ in range(self._count):
            blake3(self._block)

    def _write(self) -> None:
        with self._new.open("wb", buffering=0) as file:
            for _ in range(self._count):
                file.write(self._block)


def measure(source: Path, new: Path, rounds: int) -> list[Row]:
    """Return a row for each step on ``source``, and for what all cores could do at best against ``cp``; ``new`` is made and removed."""
    spent: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, step in _Steps(source, new).all.items():
            before = os.times()
            step()
            spent.setdefault(name, []).append(sum(os.times()[:4]) - sum(before[:4]))
            new.unlink(missing_ok=True)
    core = {name: statistics.median(times) for name, times in spent.items()}
    size, cores = source.stat().st_size / 1e6, len(os.sched_getaffinity(0))
    rows = [Row(f"one core: {name}", size / seconds, "MB/s") for name, seconds in core.items()]
    for verb, hashes in (("seal", 2), ("open", 1)):
        # One file takes one write at a time, hence never faster than one core writes.
        work = core[READ] + core[ENCRYPT] + hashes * core[HASH] + core[WRITE]
        rows.append(Row(f"at best, {cores} cores: {verb}", size / max(core[WRITE], work / cores), "MB/s", "cp", size / core[COPY]))
    return rows
