"""The short-lived process that wipes one device: ``python -m sandbox.node.gpu.worker BACKEND UUID``.

Prints one ``DeviceWipe`` as JSON on standard output. A process of its own gives every device a fresh driver context and lets the
node put a time limit on a driver that hangs.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from typing import TextIO

from sandbox.node.gpu.device import DeviceError, Workbench
from sandbox.node.gpu.erase import DeviceWipe, erase


def open_device(backend: str, uuid: str) -> Workbench:
    """Open a device by backend name (``cuda`` or ``opencl``) and UUID. Raises ``DeviceError``."""
    if backend == "cuda":
        from sandbox.node.gpu.cuda import CudaDevice

        return CudaDevice(uuid)
    from sandbox.node.gpu.opencl import OpenClDevice

    return OpenClDevice(uuid)


def wipe(backend: str, uuid: str) -> DeviceWipe:
    """Open, wipe and close one device; what fails is in the report."""
    try:
        device = open_device(backend, uuid)
    except DeviceError as error:
        return DeviceWipe(uuid=uuid, name="", backend=backend, failures=(str(error),))
    report = erase(device, secrets.randbits(63) | 1, progress=lambda step: _say(sys.stderr, step))
    with contextlib.suppress(DeviceError):  # a lost device cannot be closed; the report says what was lost, and the process ends now
        device.close()
    return report


def _say(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def main() -> None:
    """Run the worker from its two arguments."""
    backend, uuid = sys.argv[1:3]
    _say(sys.stdout, wipe(backend, uuid).model_dump_json())


if __name__ == "__main__":
    main()
