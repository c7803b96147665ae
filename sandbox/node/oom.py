"""Did the kernel kill a process of a job for its memory? Its own log says so, and whose limit it was.

The engine says it too (``State.OOMKilled``), but learns of it from the container's cgroup, which may be gone before it has looked. The
kernel writes its line before it kills, so that after the container's end the line is there. It leaves lines out where more than ten
kills fall into five seconds, and a log that nobody may read says nothing: what is not seen here is unknown, never "no".
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from enum import Enum
from pathlib import Path
from typing import Self

KERNEL_LOG = Path("/dev/kmsg")
_RECORD_BYTES = 8192
"""The longest record that the kernel gives (CONSOLE_EXT_LOG_MAX); a shorter buffer is refused with EINVAL."""
_MOST_RECORDS = 100_000
"""What one look reads at most: a log that grows as fast as it is read must not hold a lease up."""
_KILL = re.compile(r";oom-kill:constraint=(?P<why>\w+),.*?(?:oom_memcg=(?P<limit>[^,]*),)?task_memcg=(?P<task>[^,]*),task=")
"""mm/oom_kill.c, dump_oom_victim: one line a kill, since Linux 5.0. A cgroup's path ends in the container's id, with or without affixes."""


class MemoryKill(Enum):
    """Whose memory had run out when a process of the job was killed."""

    JOB = "the job's own limit"
    HOST = "the host's memory, or a limit above the job's"


class KernelLog:
    """The kernel's log from now on. Use it in a ``with`` statement. Where it cannot be read, nothing is ever seen."""

    def __init__(self, place: Path = KERNEL_LOG) -> None:
        """Begin after the last line that is there."""
        self._lines: list[tuple[str, str, str]] = []
        self._fd = -1
        with contextlib.suppress(OSError):  # not root, or a node that was put into a container
            self._fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def look(self) -> None:
        """Take in what was written since; call it now and then, so that a flood of lines pushes none out unread."""
        for _ in range(_MOST_RECORDS if self._fd >= 0 else 0):
            try:
                record = os.read(self._fd, _RECORD_BYTES)
            except OSError as error:
                if error.errno == errno.EPIPE:  # lines were pushed out; the next read goes on with the oldest one left
                    continue
                return
            if not record:
                return
            for found in _KILL.finditer(record.decode("utf-8", "replace")):
                self._lines.append((found["why"], found["limit"] or "", found["task"]))

    def kill_of(self, container: str) -> MemoryKill | None:
        """Say whose limit ended a process of this container (its full id); None where the log has no word of it."""
        self.look()
        seen = [why == "CONSTRAINT_MEMCG" and container in limit for why, limit, task in self._lines if container in task]
        if not seen:
            return None
        return MemoryKill.JOB if any(seen) else MemoryKill.HOST
