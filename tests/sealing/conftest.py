"""Identities are made once: their keys take longer than most tests."""

from __future__ import annotations

import pytest

from sandbox.sealing.keys import Identity


@pytest.fixture(scope="session")
def alice():
    return Identity.generate()


@pytest.fixture(scope="session")
def bob():
    return Identity.generate()
