"""A process that forks a fresh child for each line it reads, so that a fault can be put into any of its system calls.

Line: ``{"data": folder, "batches": [[leaf, …], …]}`` for a log writer, with ``"room"`` where no file may grow beyond so many bytes;
``{"witness": file, "bodies": [request, …]}`` for a witness. It answers with the child's pid, waits for ``go``, and then answers
``{"acked": n, "ended": 0 or 1, "rules": […], "status": wait status}``. What was acknowledged is kept in shared memory, where no fault
can reach it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from attestation.errors import LogError
from attestation.log.witness import Witness
from tests.attestation.log.logs import OTHER_KEY, VERIFIER, open_log

TRIES = 3


def _write(order: dict, acknowledge: Callable[[], None], rules: list[object]) -> None:
    """Open the log and append each batch, again after a failure, as the server does."""
    batches = [[leaf.encode() for leaf in batch] for batch in order["batches"]]
    if "room" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["room"], resource.RLIM_INFINITY))
    with open_log(Path(order["data"])) as writer:
        for batch in batches:
            if not _succeeds(lambda batch=batch: bool(writer.append(batch)), rules):
                return
            acknowledge()


def _witness(order: dict, acknowledge: Callable[[], None], rules: list[object]) -> None:
    """Open the witness and make each request, again after a failure, as a log does."""
    with contextlib.closing(Witness(Path(order["witness"]), "w.example", OTHER_KEY, [VERIFIER])) as witness:
        for body in order["bodies"]:
            if not _succeeds(lambda body=body: witness.add_checkpoint(body.encode(), 1).status == 200, rules):
                return
            acknowledge()


def _succeeds(work: Callable[[], bool], rules: list[object]) -> bool:
    for _ in range(TRIES):
        try:
            return work()
        except Exception as error:  # noqa: BLE001  (the test judges what became of it)
            rules.append(_rule(error))
    return False


def _rule(error: Exception) -> object:
    return error.details.get("rule") if isinstance(error, LogError) else type(error).__name__


def _child(order: dict, shared: mmap.mmap) -> None:
    rules: list[object] = []

    def acknowledge() -> None:
        shared[0] += 1

    try:
        (_witness if "witness" in order else _write)(order, acknowledge, rules)
    except Exception as error:  # noqa: BLE001
        rules.append(_rule(error))
    finally:
        text = json.dumps(rules).encode()[:4000]
        shared[8 : 8 + len(text)] = text
        shared[1] = 1


def main() -> None:
    """Serve until standard input ends."""
    # The child waits for a signal, which is no file system call, so that every fault strikes what it does.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for line in sys.stdin:
        order = json.loads(line)
        shared = mmap.mmap(-1, 4096)
        pid = os.fork()
        if pid == 0:
            signal.sigwait({signal.SIGUSR1})
            try:
                _child(order, shared)
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
