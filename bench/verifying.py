"""One full verification, as a program of its own: ``python -m bench.verifying FOLDER VKEY`` prints seconds, MB, entries, processor seconds.

The memory is the largest sum, over 20 looks a second, of the proportional set sizes of all its processes: pages that they share count once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from attestation.log.reader import LogReader
from attestation.log.verify import verify_log

LOOK_SECONDS = 0.05


def memory() -> int:
    """Return the bytes that this process and its children have in memory now."""
    own = os.getpid()
    children = (Path(f"/proc/{own}/task") / str(own) / "children").read_text().split()
    total = 0
    for pid in (str(own), *children):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def main() -> None:
    """Verify and print."""
    peak, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], memory())

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    start = time.perf_counter()
    check = verify_log(LogReader.from_dir(Path(sys.argv[1])), sys.argv[2], workers=len(os.sched_getaffinity(0)))
    seconds = time.perf_counter() - start
    done.set()
    watching.join()
    spent = os.times()
    processor = spent.user + spent.system + spent.children_user + spent.children_system
    print(seconds, peak[0] / 1e6, check.checkpoint.size, processor)


if __name__ == "__main__":
    main()
