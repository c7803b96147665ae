"""What the kernel's list of mounts says of one folder (proc(5), mountinfo)."""

from __future__ import annotations

import os
from pathlib import Path


def source_name(pid: int) -> str:
    """Return what the kernel's list of mounts gives as the source of the view that process ``pid`` serves."""
    return f"sealrig-view-{pid}"


def is_mounted(folder: Path) -> bool:
    """Say whether something is mounted on exactly ``folder``, as the kernel lists it; also when its server is dead."""
    wanted = os.fsencode(folder.resolve(strict=False))
    octal = {b"\\040": b" ", b"\\011": b"\t", b"\\012": b"\n", b"\\134": b"\\"}
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        place = line.split()[4]
        for spelled, char in octal.items():
            place = place.replace(spelled, char)
        if place == wanted:
            return True
    return False
