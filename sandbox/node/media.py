"""What stands on a certificate about a medium: manufacturer, model and serial of the disk under a folder, as far as the kernel tells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

_MAX = 200


class Disk(TypedDict):
    """The descriptive part of ``attestation.wipe.Medium``."""

    kind: str
    manufacturer: str
    model: str
    serial: str
    source: str


def disk_of(folder: Path, sys_block: Path = Path("/sys/dev/block")) -> Disk:
    """Describe the block device that holds ``folder``; what is not known is ``unknown``. Never raises."""
    known = Disk(kind="disk", manufacturer="unknown", model="unknown", serial="unknown", source="unknown")
    try:
        number = folder.stat().st_dev
        place = (sys_block / f"{os.major(number)}:{os.minor(number)}").resolve(strict=True)
    except OSError:
        return known
    if (place / "partition").exists():
        place = place.parent
    known["source"] = f"/dev/{place.name}"
    for key, name in (("manufacturer", "vendor"), ("model", "model"), ("serial", "serial")):
        try:
            text = (place / "device" / name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if text:
            known[key] = text[:_MAX]  # type: ignore[literal-required]  # the three keys above are in Disk
    return known
