"""Which lease goes to which node."""

from __future__ import annotations

from sandbox.control.placement.local import place

__all__ = ["place"]
