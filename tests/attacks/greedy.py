"""Runs inside a job: takes as much of one thing as it gets. ``steady`` is the neighbour who only wants to work."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

MIB = 2**20
OUT = Path("/out")


def fork_bomb() -> None:
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)


def memory_hog() -> None:
    held = []
    while True:
        held.append(b"x" * MIB)


def disk_filler() -> None:
    with (OUT / "big").open("wb") as file:
        while True:
            file.write(b"x" * MIB)


def inode_filler() -> None:
    for number in range(10_000_000):
        (OUT / str(number)).touch()


def log_flood() -> None:
    line = b"flood" * 13107 + b"\n"
    for _ in range(10 * 2**30 // len(line)):
        os.write(1, line)


def output_bomb() -> None:
    with (OUT / "holes").open("wb") as file:
        file.truncate(2**40)


def many_files() -> None:
    for folder in range(50):
        place = OUT / str(folder)
        place.mkdir()
        for name in range(1000):
            os.close(os.open(f"{place}/{name}", os.O_CREAT | os.O_WRONLY))


def tricks() -> None:
    (OUT / "good").write_text("good")
    os.link(OUT / "good", OUT / "hard")
    for name, target in {
        "shadow": "/etc/shadow",
        "root": "/",
        "environ": "/proc/1/environ",
        "climb": "../../../../../../etc/shadow",
    }.items():
        (OUT / name).symlink_to(target)
    (OUT / "loop").symlink_to("loop")
    (OUT / "loop2").symlink_to(OUT)
    os.mkfifo(OUT / "pipe")
    with contextlib.suppress(PermissionError):
        os.mknod(OUT / "disk", 0o60600, os.makedev(8, 0))
    deep = OUT
    for _ in range(60):
        deep /= "d" * 200
        try:
            deep.mkdir()
        except OSError:
            break
    (OUT / "\udcff\udcfe").write_text("name that is no text")
    (OUT / "line\nbreak\x1b[31m").write_text("name that writes to terminals")
    (OUT / "locked").mkdir(mode=0)


def steady() -> None:
    seconds, last, worst = float(sys.argv[2]), time.monotonic(), 0.0
    end = last + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        now = time.monotonic()
        worst, last = max(worst, now - last), now
    OUT.joinpath("worst").write_text(f"{worst:.3f}")
    sys.stdout.write(f"worst gap {worst:.3f}\n")


PROGRAMS: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (fork_bomb, memory_hog, disk_filler, inode_filler, log_flood, output_bomb, many_files, tricks, steady)
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
