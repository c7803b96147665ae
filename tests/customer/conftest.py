from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.customer.state import State
from sandbox.sealing.bundle import seal
from sandbox.sealing.keys import Identity
from tests.customer.fakes import FakeControl


@pytest.fixture(scope="session")
def identity():
    return Identity.generate()


@pytest.fixture(scope="session")
def other():
    return Identity.generate()


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "state")


@pytest.fixture
def sealed(tmp_path, identity):
    """Make real bundles: ``sealed(content, to=identity)`` returns (path, digest)."""
    made = []

    def make(content: bytes = b"weights", to: Identity = identity) -> tuple[Path, str]:
        source = tmp_path / f"source{len(made)}"
        source.mkdir()
        (source / "file").write_bytes(content)
        out = tmp_path / f"bundle{len(made)}.sealed"
        made.append(out)
        return out, seal([source], out, recipients=[to.public], signer=to.signing_key).digest

    return make
