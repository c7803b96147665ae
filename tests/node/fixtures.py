"""The fixtures themselves, for the conftest files that want them."""

from __future__ import annotations

import pytest

from tests.node.rig import NodeRig, busybox, docker_url, make_image


@pytest.fixture(scope="session")
def busybox_image() -> str:
    """Return the id of the small test image."""
    if busybox() is None:
        pytest.skip("needs a static busybox for the test image (apt-get install busybox-static)")
    return make_image(docker_url())


@pytest.fixture
def node_rig(tmp_path, busybox_image):
    """Return a node with a control plane in memory; afterwards nothing of it may be left."""
    rig = NodeRig(tmp_path / "node", busybox_image)
    yield rig
    for item in rig.node.engine.containers(node=rig.node.id):
        rig.node.engine.remove(item.id)
