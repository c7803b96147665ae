"""A worker process that the node never waits for without end.

SIGKILL does not end a process that hangs in a driver's call; it is gone when that call returns, which may be never. So a killed worker is
waited for a moment only, and one that is still there is told of. Python collects it when it has ended and another process is started.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import IO

Tell = Callable[[str], None]
MAX_WORDS = 1024 * 1024
"""What is read of a worker's standard error at once."""
LOOK_SECONDS = 0.2
"""How often what a worker said meanwhile is handed on."""
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


def answer(argv: Sequence[str], limit: float, tell: Tell | None = None) -> bytes:
    """Return what a worker says on standard output; ``tell`` hears each line on standard error meanwhile.

    Raises ``WorkerError`` unless it ends by itself, with 0, in ``limit`` seconds.
    """
    with _room() as words:
        worker = start(argv, out=subprocess.PIPE, err=words)
        try:
            said = _said(worker, limit, words, tell)
        finally:
            if worker.stdout is not None:
                worker.stdout.close()
        if worker.returncode != 0:
            words.seek(max(0, words.seek(0, os.SEEK_END) - MAX_WORDS))
            raise WorkerError(ended(worker.returncode, words.read(MAX_WORDS)))
    return said


def _room() -> IO[bytes]:
    """Return a file without a name for what a worker says on standard error, so that it never waits for a reader."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise WorkerError(f"the worker could not be started: {error}") from error


def _said(worker: subprocess.Popen[bytes], limit: float, words: IO[bytes], tell: Tell | None) -> bytes:
    left, told = limit, 0
    while True:
        span = left if tell is None else min(left, LOOK_SECONDS)
        try:
            said, _ = worker.communicate(timeout=span)  # asked again after its time it has lost nothing of what was said
        except subprocess.TimeoutExpired as error:
            left -= span
            if left <= 0:
                raise WorkerError(stop(worker, limit)) from error
            said = None
        if tell is not None:
            told = hand_on(words, told, tell)
        if said is not None:
            return said


def hand_on(words: IO[bytes], told: int, tell: Tell) -> int:
    """Hand on the whole lines after byte ``told`` and return how far they reach; the worker goes on writing behind them."""
    fresh = os.pread(words.fileno(), MAX_WORDS, told)
    whole = fresh[: fresh.rfind(b"\n") + 1]
    for line in whole.decode("utf-8", "replace").splitlines():
        tell(line[:200])
    return told + len(whole)
