"""How fast two NVIDIA GPUs reach each other directly: ``python -m sandbox.node.gpu.peers UUID UUID``, a process of its own.

Prints ``{"direct": bool, "rate": GB/s | null, "right": bool}``: whether the driver allows peer access, the rate of copies from the first to
the second (through the host where there is no peer access), and whether the bytes arrived.
"""

from __future__ import annotations

import json
import os
import sys
import time

SIZE = 64 * 2**20
_ROUNDS = 5


def main() -> None:
    """Measure the pair of the two arguments."""
    one, other = sys.argv[1:3]
    os.environ.update({"CUDA_VISIBLE_DEVICES": f"{one},{other}"})
    import numpy as np
    from cuda.bindings import driver as cu

    from sandbox.node.gpu.cuda import call

    call(cu.cuInit, 0)
    devices = [call(cu.cuDeviceGet, index) for index in range(2)]
    direct = bool(call(cu.cuDeviceCanAccessPeer, *devices))
    contexts = [call(cu.cuDevicePrimaryCtxRetain, device) for device in devices]
    size, places = SIZE, []
    for context, word in zip(contexts, (0x5EA15EA1, 0), strict=True):
        call(cu.cuCtxSetCurrent, context)
        places.append(call(cu.cuMemAlloc, size))
        call(cu.cuMemsetD32, places[-1], word, size // 4)
        call(cu.cuCtxSynchronize)
    if direct:
        call(cu.cuCtxSetCurrent, contexts[0])
        call(cu.cuCtxEnablePeerAccess, contexts[1], 0)
    taken = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        call(cu.cuMemcpyPeer, places[1], contexts[1], places[0], contexts[0], size)
        for context in contexts:
            call(cu.cuCtxSetCurrent, context)
            call(cu.cuCtxSynchronize)
        taken.append(time.perf_counter() - started)
    arrived = bytearray(size)
    call(cu.cuMemcpyDtoH, np.frombuffer(arrived, np.uint8).ctypes.data, places[1], size)
    right = bytes(arrived) == (0x5EA15EA1).to_bytes(4, "little") * (size // 4)
    sys.stdout.write(json.dumps({"direct": direct, "rate": round(size / min(taken) / 1e9, 3), "right": right}) + "\n")


if __name__ == "__main__":
    main()
