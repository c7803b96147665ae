"""One side of the leak hunt, a process of its own: ``python -m bench.leak.party plant|listen BACKEND UUID CANARY [stay]``.

Prints one JSON object: words of the canary planted or found, the words that were reached of those that there are, and how many of the
multiprocessors. A victim reads its canary back before it says that it was planted. ``stay`` waits to be killed, with everything
still allocated. Registers are planted too, but nobody listens there: no language reads a register that it has not written.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import resources
from typing import Any

from sandbox.node.gpu.erase import allocate_all
from sandbox.node.gpu.worker import open_device

LOCAL_WORD = 0xFFFFFFFF
"""Local memory is searched in words of 32 bits: the canary's lower half."""


def play(part: str, backend: str, uuid: str, canary: int) -> tuple[dict[str, int], Any]:
    """Plant or listen; return what was planted or found, and the device, still open."""
    device: Any = open_device(backend, uuid)
    file = resources.files("bench.leak").joinpath("leak.ptx" if backend == "cuda" else "leak.cl")
    kernels = device.load(file.read_bytes() if backend == "cuda" else file.read_text("utf-8"), "plant", "look", "spread", "count")
    short = canary & LOCAL_WORD
    if part == "listen":  # local memory first, before any kernel of this process has used it
        seen, groups = device.visit_units(kernels["look"], short)
        blocks = allocate_all(device)
        found = sum(device.count(kernels["count"], block, canary) for block, _ in blocks)
        local = seen.errors
    else:
        blocks = allocate_all(device)
        for block, _ in blocks:
            device.count(kernels["spread"], block, canary)
        found = sum(device.count(kernels["count"], block, canary) for block, _ in blocks)
        seen, groups = device.visit_units(kernels["plant"], short)
        local = seen.local_bytes // 4 * groups
    facts = device.facts
    return {
        "memory": found,
        "memory_words": sum(size for _, size in blocks) // 8,
        "memory_in_all": (facts.total_bytes - facts.reserved_bytes) // 8,
        "local": local,
        "local_words": seen.local_bytes // 4 * groups,
        "units": seen.visited,
        "units_in_all": seen.units,
    }, device


def main() -> None:
    """Play the part of the arguments."""
    part, backend, uuid, canary, *rest = sys.argv[1:]
    said, device = play(part, backend, uuid, int(canary, 16))
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    if rest == ["stay"]:
        time.sleep(600)
    device.close()


if __name__ == "__main__":
    main()
