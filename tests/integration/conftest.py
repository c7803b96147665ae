"""Fixtures of the tests on the real engine."""

from __future__ import annotations

from tests.node.fixtures import busybox_image, node_rig

__all__ = ["busybox_image", "node_rig"]
