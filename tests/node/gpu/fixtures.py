"""The stand-in machine as a fixture, for the conftest files that want it."""

from __future__ import annotations

import shutil

import pytest

from tests.node.gpu.machine import Machine, build


@pytest.fixture(scope="session")
def driver_libraries(tmp_path_factory):
    """Compile the stand-in driver libraries, once."""
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        pytest.skip("needs a C compiler for the stand-in GPU driver (apt-get install gcc libc6-dev)")
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def machine(tmp_path, monkeypatch, driver_libraries):
    """Return a machine with NVIDIA GPUs that are files; it has none until ``card`` is called."""
    return Machine(tmp_path / "cards", monkeypatch, driver_libraries)
