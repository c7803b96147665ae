"""``sealrig demo``: the main job on this machine, from sealing to the verified receipt."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sandbox.cli.console import console
from sandbox.errors import UsageError

LEVEL_MEANS = {
    "software": (
        "Assurance level: software. The node's evidence is its own word, signed. It protects against other tenants, stolen disks, storage",
        "and network operators, logs, backups and mistakes. It does not protect against the node's own root user, who can read the job's",
        "memory while it runs; that takes measured or confidential nodes (see docs/threat-model.md).",
    )
}


def demo(
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Work in DIR (new or empty) and keep everything: keys, bundles, data folders, logs."),
    ] = None,
) -> None:
    """Play the main job on this machine: real weights, real Docker, three programs, ten steps, and a receipt that verifies offline.

    Without --keep only the receipt, the trust file and the opened result remain, in a new folder whose path is printed. Ctrl-C leaves
    nothing behind.
    """
    from sandbox.cli.demo.interrupt import Interrupts  # the parts below bring the engine and the terminal with them
    from sandbox.cli.demo.leftovers import remove_folder
    from sandbox.cli.demo.screen import Screen
    from sandbox.cli.demo.story import Story
    from sandbox.node.engine import DEFAULT_SOCKET, Engine

    here = console()
    if os.geteuid() != 0:
        raise UsageError(
            "the demo runs a node, which needs root",
            rule="demo-root",
            seen=f"uid {os.geteuid()}",
            wanted="root",
            fix="run './dev demo', or: sudo sealrig demo",
        )
    screen = Screen(to_stderr=here.json)
    with Interrupts() as interrupts:
        with interrupts.held():
            folder = _folder(keep)
            story = Story(folder, Engine(os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET), screen, interrupts)
        finished = interrupted = False
        try:
            done = story.tell()
            finished = True
        except KeyboardInterrupt:
            interrupted = True
            screen.say("\ninterrupted: ending the lease, wiping, stopping everything", "yellow")
            raise
        finally:
            interrupts.ignore()  # the cleaning up comes to its end
            try:
                story.close()
            finally:
                if interrupted or (keep is None and not finished):
                    remove_folder(folder)
                elif keep is None:
                    story.remove_private()
                _give_to_caller(folder)
    level = str(done.info.level)
    for line in LEVEL_MEANS.get(level, (f"Assurance level: {level}.",)):
        screen.say(line)
    screen.say("")
    screen.say(f"receipt        {done.receipt}", "bold")
    screen.say(f"opened result  {done.result}", "bold")
    here.emit({"lease": done.info.id, "receipt": done.receipt, "result": done.result, "steps": screen.steps, "level": level})


def _folder(keep: Path | None) -> Path:
    """Make the folder of this run. Raises ``UsageError`` where the wanted one is not empty."""
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="sealrig-demo-"))
    else:
        folder = keep.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(
                f"{keep} is not empty", rule="demo-folder", seen="files", wanted="a new or empty folder", fix="choose another folder"
            )
    # Container users below may be other than ours (user namespaces); each thing inside has its own, closed mode.
    folder.chmod(0o711)
    return folder


def _give_to_caller(folder: Path) -> None:
    """Give what stays to the person who called sudo."""
    user, group = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if user and group and folder.is_dir():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, int(user), int(group), follow_symlinks=False)
