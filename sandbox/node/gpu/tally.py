"""The kernels' tally, as read from a device (its layout stands in ``kernels.cl``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sandbox.node.gpu.device import MOST_FAULTS, Comparison, Fault


def comparison(tally: npt.NDArray[np.uint32]) -> Comparison:
    """Return what a comparison's tally (``TALLY_WORDS`` words) says."""
    told = min(int(tally[2]), MOST_FAULTS)
    pairs: npt.NDArray[Any] = tally[4 : 4 + 4 * told].view(np.uint64)
    faults = sorted((Fault(int(pairs[2 * slot]), int(pairs[2 * slot + 1])) for slot in range(told)), key=lambda fault: fault.index)
    return Comparison(int(tally[0]), int(tally[1]) if tally[0] else None, tuple(faults))
