"""A worker process that the node never waits for without end.

SIGKILL does not end a process that hangs in a driver's call; it is gone when that call returns, which may be never. So a killed worker is
waited for a moment only, and one that is still there is told of. Python collects it when it has ended and another process is started.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import IO

KILL_SECONDS = 5.0
"""How long a killed worker may take to be gone."""


class WorkerError(Exception):
    """The worker did not do its work; the message says why."""


def start(argv: Sequence[str], *, out: int | IO[bytes], err: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a worker. Raises ``WorkerError`` where the machine has no room for another process."""
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    except OSError as error:
        raise WorkerError(f"the worker could not be started: {error}") from error


def stop(worker: subprocess.Popen[bytes], limit: float) -> str:
    """Kill a worker that had ``limit`` seconds; return what is to be told of it."""
    worker.kill()
    try:
        worker.wait(KILL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the worker cannot be killed: it had {limit:.0f} s, and hangs in a call of the driver"
    return f"the worker was stopped after {limit:.0f} s"


def ended(code: int, words: bytes) -> str:
    """Return what is to be told of a worker that ended with ``code`` and these words on standard error."""
    last = words.decode("utf-8", "replace").strip().splitlines()[-1:] or ["nothing"]
    return f"the worker ended with {code}; its last words: {last[0][:300]}"


def answer(argv: Sequence[str], limit: float) -> bytes:
    """Return what a worker says on standard output. Raises ``WorkerError`` unless it ends by itself, with 0, in ``limit`` seconds."""
    worker = start(argv, out=subprocess.PIPE, err=subprocess.PIPE)
    try:
        said, words = worker.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise WorkerError(stop(worker, limit)) from error
    finally:
        for pipe in (worker.stdout, worker.stderr):
            if pipe is not None:
                pipe.close()
    if worker.returncode != 0:
        raise WorkerError(ended(worker.returncode, words))
    return said
