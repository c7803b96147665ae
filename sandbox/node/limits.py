"""Which limit, if any, ended a job: told to the customer as what it is. Pure but for two reads of the file system."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.lifecycle import Outcome
from sandbox.node.oom import MemoryKill

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.node.engine import Exit

KILLED = 137
_FULL_BYTES = 64 * 1024
"""A file system with less than this left has refused a write, or is about to: a write that does not fit fills what there is first."""
_ENTRY_BYTES = 2048
"""What an entry costs in a sealed result beside its content and its name: headers, and its line in the index."""
_SPARE_BYTES = 64 * 2**20
"""What a result may take beyond the output's own bound, with an eighth of that bound; the control plane refuses more."""


@dataclass(frozen=True)
class Verdict:
    """How a job ended; ``limit`` names the limit, for the run record."""

    outcome: Outcome
    exit_code: int | None
    limit: str | None
    detail: str


def judge(
    end: Exit | None,
    *,
    stopped: Verdict | None,
    memory: MemoryKill | None = None,
    scratch_full: bool,
    output_bytes: int,
    output_max: int,
    overhead: int = 0,
) -> Verdict:
    """Return the verdict. ``stopped`` is why we ended the job ourselves, if we did; ``end`` is what the engine says. Pure.

    ``memory`` is what the kernel says, which knows better than the engine whose memory it was. Nothing is inferred from exit code 137:
    a program may end with it by itself. ``overhead`` is what the output's names and headers will take (``tree_overhead``).
    """
    if stopped is not None:
        return Verdict(stopped.outcome, end.exit_code if end else None, stopped.limit, stopped.detail)
    if end is None:
        return Verdict(Outcome.NODE_FAILURE, None, None, "the job never ended by itself")
    code = end.exit_code
    if code != 0 and memory is MemoryKill.HOST:
        return Verdict(Outcome.NODE_FAILURE, code, None, "the node ran out of memory, and its kernel ended the job")
    if code != 0 and (memory is MemoryKill.JOB or end.oom_killed):
        return Verdict(Outcome.MEMORY_LIMIT, code, "memory", "the kernel killed a process of the job, which used more memory than it may")
    if scratch_full and code != 0:
        return Verdict(Outcome.DISK_LIMIT, code, "scratch", "the job's scratch space was full")
    if problem := too_large(output_bytes, overhead, output_max):
        return Verdict(Outcome.OUTPUT_LIMIT, code, "output", problem)
    if code == 0:
        return Verdict(Outcome.SUCCEEDED, 0, None, "")
    unknown = "; neither the engine nor the kernel's log says that memory was its limit" if code == KILLED else ""
    return Verdict(Outcome.FAILED, code, None, end.error or f"the job ended with exit code {code}{unknown}")


def too_large(output_bytes: int, overhead: int, output_max: int) -> str:
    """Say why an output cannot be collected; empty where it can. Pure."""
    if output_bytes > output_max:
        return f"the output has {output_bytes} bytes; at most {output_max} are collected"
    if overhead > output_max // 8 + _SPARE_BYTES:
        return f"the output has so many files that their names and headers alone take {overhead} bytes; pack them into fewer"
    return ""


def is_full(place: Path) -> bool:
    """Say whether a file system has no room, or no inodes, left."""
    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize < _FULL_BYTES or (state.f_files > 0 and state.f_ffree == 0)


def tree_bytes(folder: Path) -> int:
    """Return the apparent bytes of all plain files below ``folder``, following no link."""
    total = 0
    for place, _, files in os.walk(folder, followlinks=False):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118  (os.walk gives text, and this is a hot loop)
            except OSError:
                continue
    return total


def tree_overhead(folder: Path) -> int:
    """Return about how many bytes a sealed result takes for entries alone: their headers, and their paths three times."""
    total = 0
    for place, folders, files in os.walk(folder, followlinks=False):
        total += sum(_ENTRY_BYTES + 3 * (len(place) + len(name)) for name in (*folders, *files))
    return total
