"""What tests run under Node.js, into ``.dev/node_modules``, exactly as its lock file says."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from system import Refusal, find, say

FILES = ("package.json", "package-lock.json")
STAMP = "sealrig-lock"


def ensure_node_packages(root: Path) -> None:
    """Make ``.dev/node_modules`` match the lock file; costs nothing where it does already. Raises ``Refusal``."""
    source, place = root / "deploy" / "dev" / "npm", root / ".dev"
    state = hashlib.sha256(b"".join((source / name).read_bytes() for name in FILES)).hexdigest()
    stamp = place / "node_modules" / STAMP
    if stamp.is_file() and stamp.read_text() == state:
        return
    npm = find("npm")
    if npm is None:
        raise Refusal("npm is missing; install it and run this again")
    say("fetching what tests run under Node.js")
    place.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, place / name)
    # Scripts of packages are not run: what is tested against is their code, not what they do to a machine.
    command = [npm, "ci", "--prefix", str(place), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.run(command, cwd=place, check=False, stdin=subprocess.DEVNULL).returncode:
        raise Refusal("npm could not fetch the packages of its lock file (its words are above); check the network and run this again")
    stamp.write_text(state)
