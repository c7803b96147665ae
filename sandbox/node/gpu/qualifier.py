"""The short-lived process that measures one device: ``python -m sandbox.node.gpu.qualifier BACKEND UUID EFFORT``, the effort as JSON.

Prints one ``Measured`` as JSON on standard output, and each step as a line on standard error.
"""

from __future__ import annotations

import contextlib
import sys

from sandbox.node.gpu.device import DeviceError
from sandbox.node.gpu.measure import Effort, Measured, measure
from sandbox.node.gpu.worker import open_device


def main() -> None:
    """Run the worker from its three arguments."""
    backend, uuid, effort = sys.argv[1:4]
    sys.stdout.write(_measured(backend, uuid, Effort.model_validate_json(effort)).model_dump_json() + "\n")


def _measured(backend: str, uuid: str, effort: Effort) -> Measured:
    try:
        device = open_device(backend, uuid)
    except DeviceError as error:
        return Measured(uuid=uuid, name="", backend=backend, failures=(str(error),))
    found = measure(device, effort, progress=_say)
    with contextlib.suppress(DeviceError):
        device.close()
    return found


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
