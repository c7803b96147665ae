"""What a stopped demo could leave on a machine, how to find it, and how to remove it."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from sandbox.errors import EngineError
from sandbox.node.engine import Engine

_COMMAND_SECONDS = 20


def find(folder: Path, node: str | None, engine: Engine) -> list[str]:
    """Name all that is left of a node whose data folder lies below ``folder``: containers, mounts, loop devices."""
    left = [f"mount {place}" for place in mounts_below(folder)]
    left += [f"loop device {device} on {image}" for device, image in loops_below(folder)]
    if node:
        left += [f"container {item.name}" for item in engine.containers(node=node)]
    return left


def remove(folder: Path, node: str | None, engine: Engine) -> None:
    """Remove by force what a killed node left. The ordinary way is the node's own wipe; this is for when it could not."""
    if node:
        try:
            for item in engine.containers(node=node):
                engine.remove(item.id)
        except EngineError:
            pass  # without the engine there is nothing more to be done about containers; the rest still is
    for place in reversed(mounts_below(folder)):
        _run(["umount", place])
    for place in reversed(mounts_below(folder)):
        _run(["umount", "--lazy", place])
    for device, _ in loops_below(folder):
        _run(["losetup", "--detach", device])
    end = time.monotonic() + 2
    while loops_below(folder) and time.monotonic() < end:
        time.sleep(0.05)  # the kernel lets go of a loop device a moment after the command


def remove_folder(folder: Path) -> None:
    """Remove a folder of the demo, unless something is still mounted below: then its files are another's to see to."""
    if not mounts_below(folder):
        shutil.rmtree(folder, ignore_errors=True)


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points below a folder in the order in which they were mounted (proc(5), mountinfo field 5)."""
    base = f"{folder.resolve()}/"
    places = (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [place for place in (_unescape(text) for text in places) if place.startswith(base)]


def loops_below(folder: Path) -> list[tuple[str, str]]:
    """Return (device, backing file) of the loop devices whose file lies below a folder."""
    base = f"{folder.resolve()}/"
    found = []
    for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            image = path.read_text().strip()
        except OSError:
            continue  # it went while we looked
        if image.startswith(base):
            found.append((f"/dev/{path.parts[3]}", image))
    return found


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def _run(command: list[str]) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_SECONDS, check=False)
