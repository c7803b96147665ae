"""Runs inside a job: leaves a canary in every place that a program can reach, then ends as it was told.

The canary's seed comes from the sealed weights; it is in no argument, so that whatever is found outside came from a place named here.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

PLACES = ("weights", "dataset", "env", "stdout", "out", "name", "tmp", "shm", "memory")


def main() -> None:
    how, seconds = sys.argv[1], float(sys.argv[2])
    seed = Path("/in/weights/weights.bin").read_bytes().partition(b"-weights")[0]
    text = Path("/in/dataset/dataset.bin").read_bytes()
    Path("/out/result").write_bytes(canary(seed, "out") * 5000)
    Path("/out", canary(seed, "name").decode()).write_bytes(text)
    Path("/tmp/scratch").write_bytes(canary(seed, "tmp") * 5000)
    Path("/dev/shm/shared").write_bytes(canary(seed, "shm") * 5000)
    os.sync()
    child = os.fork()
    memory = ctypes.create_string_buffer(canary(seed, "memory") * 5000)
    if child == 0:
        os.abort()
    os.waitpid(child, 0)
    sys.stdout.buffer.write(canary(seed, "stdout") + b"\nready\n")
    sys.stdout.flush()
    held = [memory.raw]
    while how == "hog":
        held.append(held[0] * 64)
    time.sleep(seconds)
    os.abort()


def canary(seed: bytes, place: str) -> bytes:
    """Return a place's canary."""
    return seed + f"-{place}-".encode()


if __name__ == "__main__":
    main()
