"""A node process that kills itself with SIGKILL at one event of its journal: before the line, in the middle of it, or after it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from sandbox.node import start
from sandbox.node.journal import Journal
from sandbox.node.supervisor import only_one


def run_until_killed(root: Path, event: str, when: str) -> None:
    """Run the node in ``root``; ``event`` is ``name`` or ``state:value``, ``when`` is ``before``, ``torn`` or ``after``."""
    write = Journal.write

    def deadly(self: Journal, name: str, **facts: object) -> None:
        if f"{name}:{facts.get('state', '')}".rstrip(":") != event:
            write(self, name, **facts)
            return
        if when == "after":
            write(self, name, **facts)
        elif when == "torn":
            with self.folder.journal.open("ab") as file:
                file.write(b'{"at": "2026-')
        os.kill(os.getpid(), signal.SIGKILL)

    Journal.write = deadly  # type: ignore[method-assign]
    supervisor, folder = start.make_supervisor(root)
    with only_one(folder):
        supervisor.run()
