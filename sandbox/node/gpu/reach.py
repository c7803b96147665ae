"""Can a wipe reach enough of a GPU? Asked when the node starts: of one where it cannot, every wipe would fail, so that it is never leased.

What a driver keeps for the wipe's own process (its context) no wipe can reach. How much that is depends on card and driver, so that it is
tried out, in a process of its own: ``python -m sandbox.node.gpu.reach BACKEND UUID`` allocates what it can and writes nothing there. It
prints ``{"available": …, "reached": …, "context": …}`` in bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from sandbox.node.gpu import child
from sandbox.node.gpu.device import Device, DeviceError
from sandbox.node.gpu.erase import LEAST_COVERAGE, allocate_all, share
from sandbox.node.gpu.model import Gpu
from sandbox.node.gpu.worker import open_device

_SEED = 1
_SECONDS = 60.0


@dataclass(frozen=True)
class Reach:
    """Bytes of (total - reserved), bytes of them that a wipe would write, and those that were taken before it allocated anything."""

    available: int
    reached: int
    context: int


def ask(backend: str, uuid: str) -> Reach:
    """Try out, in a process of its own, what a wipe would reach. Raises ``WorkerError``."""
    said = child.answer([sys.executable, "-m", "sandbox.node.gpu.reach", backend, uuid], _SECONDS)
    try:
        return Reach(**json.loads(said))
    except (ValueError, TypeError) as error:
        raise child.WorkerError("the worker's answer cannot be read") from error


def unleasable(gpus: Sequence[Gpu], ask: Callable[[str, str], Reach] = ask) -> dict[str, str]:
    """Return, by uuid, why each GPU cannot be leased whose wipe could not succeed.

    One that somebody holds (a lease of an earlier run, say) is not judged now: what its wipe would reach cannot be seen.
    """
    asked = [gpu for gpu in gpus if not gpu.processes]
    with ThreadPoolExecutor(max(1, len(asked))) as pool:
        return {gpu.uuid: why for gpu, why in zip(asked, pool.map(lambda gpu: _why(gpu, ask), asked), strict=True) if why}


def _why(gpu: Gpu, ask: Callable[[str, str], Reach]) -> str:
    if gpu.processes is None:
        return "its driver does not tell which processes hold it"
    try:
        reach = ask(gpu.backend, gpu.uuid)
    except child.WorkerError as error:
        return f"what a wipe reaches could not be tried out: {error}"
    if share(reach.reached, reach.available) >= LEAST_COVERAGE:
        return ""
    missed = f"{reach.available - reach.reached} of {reach.available} bytes, {reach.context} of them taken by the driver"
    return f"a wipe cannot reach {missed}; at most {1 - LEAST_COVERAGE:.0%} may be missed"


def try_out(device: Device) -> Reach:
    """Allocate as the wipe does. Raises ``DeviceError``."""
    device.scrub_local(_SEED)
    reached = sum(size for _, size in allocate_all(device))
    return Reach(device.facts.total_bytes - device.facts.reserved_bytes, reached, device.facts.context_bytes)


def main() -> None:
    """Try out the device of the two arguments."""
    try:
        reach = try_out(open_device(*sys.argv[1:3]))
    except DeviceError as error:
        raise SystemExit(str(error)) from error
    sys.stdout.write(json.dumps(asdict(reach)) + "\n")


if __name__ == "__main__":
    main()
