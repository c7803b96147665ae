"""The leak hunt's parties in containers, through the docker program: the same code, in an image that has Python and the driver's bindings.

The image is ``SEALRIG_LEAK_IMAGE``, or what ``deploy/images/cuda`` makes (``sealrig/cuda:latest``). The GPU is handed over by the CDI
specification that the node wrote, as in a lease.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

from sandbox.node.gpu.device import DeviceFacts

IMAGE = os.environ.get("SEALRIG_LEAK_IMAGE", "sealrig/cuda:latest")
CDI_FILE = Path("/var/run/cdi/sealrig.json")
_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 180.0


def missing(facts: DeviceFacts) -> str:
    """Return why no container can be used for this device; empty where one can."""
    if facts.backend != "cuda":
        return "only CDI devices are handed to containers here"
    if not CDI_FILE.exists():
        return "no CDI specification (start the node once)"
    try:
        done = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "no Docker Engine answers"
    return "" if done.returncode == 0 else f"no image {IMAGE} (deploy/images/README.md)"


def plant_and_kill(facts: DeviceFacts, canary: str) -> str:
    """Let a victim in a container plant, kill the container, and return what the victim said."""
    name = f"sealrig-leak-{secrets.token_hex(4)}"
    with subprocess.Popen(_program(name, facts, "plant", canary, "stay"), stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        line = victim.stdout.readline()
        subprocess.run(["docker", "kill", name], check=True, capture_output=True, timeout=60)
        victim.wait(_SECONDS)
    return line


def listen(facts: DeviceFacts, canary: str) -> str:
    """Listen in a new container and return what was heard."""
    name = f"sealrig-leak-{secrets.token_hex(4)}"
    return subprocess.run(_program(name, facts, "listen", canary), stdout=subprocess.PIPE, text=True, check=True, timeout=_SECONDS).stdout


def _program(name: str, facts: DeviceFacts, part: str, *rest: str) -> list[str]:
    options = ["--rm", "--name", name, "--network=none", "--cap-drop=ALL", "--read-only", f"--device=sealrig.dev/gpu={facts.uuid}"]
    mounts = [f"--volume={_ROOT / folder}:/work/{folder}:ro" for folder in ("bench", "sandbox", "attestation", "policies")]
    return ["docker", "run", *options, *mounts, "--workdir=/work", IMAGE, "python3", "-m", "bench.leak.party", part, facts.backend,
            facts.uuid, *rest]  # fmt: skip
