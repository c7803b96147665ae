"""``./dev up``: a control plane and one node in the foreground, with tokens for every role, kept below one folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sandbox.cli.console import console, run
from sandbox.cli.demo.image import ensure_image
from sandbox.cli.demo.interrupt import Interrupts
from sandbox.cli.demo.programs import Person, Programs
from sandbox.node.engine import Engine
from sandbox.node.layout import NodeFolder
from sandbox.node.settings import load_node_settings

FOLDER = Path(".dev") / "up"
LISTEN = "127.0.0.1:8440"
TENANT = "local"
LOOK_SECONDS = 0.5


def up(folder: Path) -> None:
    """Start what is below ``folder``, making it the first time, and wait for Ctrl-C; then the node wipes and both programs end."""
    say = console().say
    server = f"http://{LISTEN}"
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    operator = Person("operator", folder / "operator")
    operator.home.mkdir(mode=0o700, exist_ok=True)
    programs = Programs(Interrupts())
    try:
        programs.start("control plane", operator, ["serve", "--data", str(folder / "control"), "--listen", LISTEN], None)
        programs.wait_ready("control plane", server)
        operator = Person(
            "operator",
            operator.home,
            {"SEALRIG_SERVER": server, "SEALRIG_TOKEN": (folder / "control" / "operator.token").read_text().strip()},
        )
        for role in ("node", "customer", "auditor"):
            path = folder / f"{role}.token"
            if not path.exists():
                path.touch(mode=0o600)
                path.write_text(programs.command(operator, ["token", "new", "--role", role, "--tenant", TENANT])["token"] + "\n")
        node = folder / "node"
        if not (node / "node.yaml").exists():
            programs.command(
                operator, ["node", "init", "--data", str(node), "--server", server, "--token-file", str(folder / "node.token")]
            )
        programs.start("node", operator, ["node", "run", "--data", str(node)], None)
        image = ensure_image(Engine(load_node_settings(NodeFolder(node)).docker_url))
        say(f"control plane and console  {server}")
        say(f"operator token             {folder / 'control' / 'operator.token'}")
        say(f"customer and auditor       {folder / 'customer.token'}  {folder / 'auditor.token'}")
        say(f"an image to try            {image}")
        say(f"nothing runs before a policy allows it: sealrig policy apply FILE --tenant {TENANT}")
        say("Ctrl-C ends every lease with a wipe, then both programs")
        while True:
            for program in ("control plane", "node"):
                programs.check(program)
            time.sleep(LOOK_SECONDS)
    finally:
        programs.stop_all()


if __name__ == "__main__":
    sys.exit(run(lambda _words: up(FOLDER.absolute()), sys.argv[1:]))
