"""A process that forks a fresh log writer for each line it reads, so that a fault can be put into any of its system calls.

Line: ``{"data": folder, "batches": [[leaf, …], …]}``. It answers with the child's pid, waits for ``go``, and then answers
``{"acked": n, "ended": 0 or 1, "rules": […], "status": wait status}``. What was acknowledged is kept in shared memory, where no fault
can reach it.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from pathlib import Path

from attestation.errors import LogError
from tests.attestation.log.logs import open_log

TRIES = 3


def _write(data: Path, batches: list[list[bytes]], shared: mmap.mmap) -> None:
    """Open the log and append each batch, again after a failure, as the server does."""
    rules: list[object] = []
    try:
        with open_log(data) as writer:
            for number, batch in enumerate(batches):
                for attempt in range(TRIES):
                    try:
                        writer.append(batch)
                    except LogError as error:
                        rules.append(error.details.get("rule"))
                        if attempt == TRIES - 1:
                            return
                        continue
                    shared[0] = number + 1
                    break
    except LogError as error:
        rules.append(error.details.get("rule"))
    finally:
        text = json.dumps(rules).encode()[:4000]
        shared[8 : 8 + len(text)] = text
        shared[1] = 1


def main() -> None:
    """Serve until standard input ends."""
    # The child waits for a signal, which is no file system call, so that every fault strikes the log.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for line in sys.stdin:
        order = json.loads(line)
        batches = [[leaf.encode() for leaf in batch] for batch in order["batches"]]
        shared = mmap.mmap(-1, 4096)
        pid = os.fork()
        if pid == 0:
            signal.sigwait({signal.SIGUSR1})
            try:
                _write(Path(order["data"]), batches, shared)
            finally:
                os._exit(0)
        print(pid, flush=True)  # noqa: T201  (the answer)
        sys.stdin.readline()
        os.kill(pid, signal.SIGUSR1)
        _, status = os.waitpid(pid, 0)
        rules = json.loads(shared[8:].rstrip(b"\0") or b"[]")
        print(json.dumps({"acked": shared[0], "ended": shared[1], "rules": rules, "status": status}), flush=True)  # noqa: T201  (the answer)
        shared.close()


if __name__ == "__main__":
    main()
