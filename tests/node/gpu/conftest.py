"""Fixtures of the GPU tests."""

from __future__ import annotations

from tests.node.gpu.fixtures import driver_libraries, machine

__all__ = ["driver_libraries", "machine"]
