"""A lease with a 200 MB bundle: time per step, and what it costs beyond the job, against a bare ``docker run`` of the same.

``python -m bench.lease [--json]``. Needs root and a Docker Engine.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import docker

from bench.report import Row, main
from sandbox.cli.demo import assets
from sandbox.cli.demo.interrupt import Interrupts
from sandbox.cli.demo.screen import Screen
from sandbox.cli.demo.story import Done, Story
from sandbox.lifecycle import LeaseState
from sandbox.node.engine import DEFAULT_SOCKET, Engine

BULK_BYTES = 200_000_000
OVERHEAD_SECONDS = 3.0
COMMAND = ["python3", "/in/code/run.py", "/in/weights", "/in/data", "/out"]
PEER = "docker run, same image, command and files, nothing sealed"


def measure() -> Sequence[Row]:
    """Play the main job once with a bulky data folder, then run the same container bare. Needs root and Docker."""
    folder = Path(tempfile.mkdtemp(prefix="sealrig-bench-"))
    folder.chmod(0o711)
    interrupts = Interrupts()
    screen = Screen(to_stderr=True)
    url = os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
    story = Story(folder, Engine(url), screen, interrupts, _write_bulk)
    try:
        try:
            done = story.tell()
        finally:
            interrupts.ignore()
            story.close()
        bare = _bare(url, story)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        interrupts.restore()
    rows = [Row(f"step {item.step}", item.seconds, "s") for item in screen.steps]
    return [*rows, *_rows(done, bare)]


def _rows(done: Done, bare: float) -> list[Row]:
    at = {item.state: item.at.timestamp() for item in done.info.history}
    job = at[LeaseState.COLLECTING] - at[LeaseState.RUNNING]
    whole = at[LeaseState.CLOSED] - at[LeaseState.SUBMITTED]
    return [
        Row("from submitted to closed", whole, "s", PEER, bare),
        Row("of that the job, from started to ended", job, "s", PEER, bare),
        # The node's download over loopback is inside this figure: it is harder on us than the goal asks.
        Row("overhead: all but the job", whole - job, "s", at_most=OVERHEAD_SECONDS),
    ]


def _write_bulk(folder: Path) -> None:
    """Write the demo's files and one of random bytes, which no compression or hole can make smaller."""
    assets.write_data(folder)
    with (folder / "bulk").open("wb") as file:
        for _ in range(BULK_BYTES // 1_000_000):
            file.write(os.urandom(1_000_000))


def _bare(url: str, story: Story) -> float:
    """Return the seconds of a bare run, from create to exit."""
    home = story.customer.home
    out = story.folder / "bare"
    out.mkdir()
    binds = {str(home / name): {"bind": f"/in/{name}", "mode": "ro"} for name in ("weights", "code", "data")}
    client = docker.DockerClient(base_url=url)
    start = time.monotonic()
    client.containers.run(
        story.image, COMMAND, remove=True, network_mode="none", volumes={**binds, str(out): {"bind": "/out", "mode": "rw"}},
        environment={"ORT_DISABLE_TELEMETRY": "1"}, user="0:0",
    )  # fmt: skip
    seconds = time.monotonic() - start
    client.close()
    assets.check_result(out / "result.json")
    return seconds


if __name__ == "__main__":
    raise SystemExit(main("lease", measure, sys.argv[1:], about=__doc__))
