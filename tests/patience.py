"""How much longer than usual tests wait: 1 on a machine, more on an emulated processor (``SEALRIG_PATIENCE``, set by ``./dev vm``)."""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("SEALRIG_PATIENCE", "1"))
