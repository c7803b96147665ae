"""A node that is killed half-way through its first wipe: ``python -m tests.attacks.half_wiper DATA``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandbox.node import start, wipe
from sandbox.node.supervisor import only_one

_scratch = wipe._scratch


def half(*arguments: Any) -> Iterator[Any]:
    """Do the first step of ending a scratch, and no other."""
    yield next(_scratch(*arguments))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    wipe._scratch = half
    supervisor, folder = start.make_supervisor(Path(sys.argv[1]))
    with only_one(folder):
        supervisor.run()
