"""The README is true: its commands run, in its order, and print what it says they print."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox.cli.demo import assets
from sandbox.cli.demo.image import ensure_image
from sandbox.node.engine import DEFAULT_SOCKET, Engine

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
# What bash does before each command of its own, and after each that fails: the lines that tell in its output which command runs.
TRAPS = r"""
trap 'printf "\n\036%s\n" "${BASH_COMMAND%%$'"'\n'"'*}"' DEBUG
trap 'printf "\n\036failed with %s: %s\n" "$?" "${BASH_COMMAND%%$'"'\n'"'*}"' ERR
"""
# The demo has a test of its own, and its files are laid out before the tour; all else of ./dev is the real one.
DEV = """#!/bin/sh
case $1 in demo) ;; *) exec {root}/dev "$@" ;; esac
"""


def blocks(section, language):
    """The text of each block below a heading."""
    text = README.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def story(script):
    """(command, the lines that it is said to print) of each command; the rest of a here-document goes with its command's first line."""
    found = []
    ending = None
    for line in script.splitlines():
        if line == ending:
            ending = None
        elif ending is None and line.startswith("# "):
            found[-1][1].append(line[2:])
        elif ending is None:
            found.append((line, []))
            ending = line.partition("<<")[2] or None
    return found


def normal(line):
    """A line without what differs from run to run: ids, keys, times, counts, column widths."""
    line = re.sub(r"\d{4}-\d\d-\d\d[ T][0-9:.]+Z?", "TIME", line)
    line = re.sub(r"[0-9a-f]{16,}", "HEX", line)
    line = re.sub(r"(ed25519:)[A-Za-z0-9+/=]+", r"\1KEY", line)
    line = re.sub(r"\d+(\.\d+)?", "N", line)
    line = re.sub(r"N (B|KiB|MiB)", "SIZE", line)
    return re.sub(r"─+", "-", re.sub(r"\s+", " ", line)).strip()


def test_two_commands_exist():
    usage = subprocess.run([ROOT / "dev", "--help"], capture_output=True, text=True, check=True).stderr
    (block,) = blocks("Two commands", "console")
    for line in block.splitlines():
        assert re.search(rf"^  {line.removeprefix('$ ./dev ')}\b", usage, re.MULTILINE), line


@pytest.mark.docker
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tour_runs_pasted_as_it_stands_and_prints_what_it_says(tmp_path):
    """One bash reads the whole tour as it would from a terminal: a command that reads its input takes the following ones away."""
    kept = tmp_path / "tour" / "demo"
    assets.write_weights(kept / "customer" / "weights")
    assets.write_code(kept / "customer" / "code")
    assets.write_data(kept / "customer" / "data")
    (kept / "operator").mkdir()
    image = ensure_image(Engine(os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET))
    (kept / "operator" / "policy.yaml").write_text(assets.POLICY.format(image=image))
    dev = tmp_path / "dev"
    dev.write_text(DEV.format(root=ROOT))
    dev.chmod(0o755)
    script = "".join(blocks("A tour for each of the three users", "sh"))
    said = tmp_path / "said"
    with said.open("ab") as out:
        shell = subprocess.Popen(
            ["bash"], cwd=tmp_path, env=environment(tmp_path), stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
        )
    try:
        shell.communicate(f"{TRAPS}{script}".encode(), 800)  # half a minute; many minutes where a machine has much else to do
    finally:
        stop(shell.pid)

    text = said.read_text(errors="replace")
    told = [part.splitlines() or [""] for part in text.split("\x1e")]  # each begins with its command
    assert [part[0] for part in told if part[0].startswith("failed with")] == [], text
    place = 0
    for command, expected in story(script):
        words = command.removesuffix("&").split()[:3]
        place = next((number for number in range(place + 1, len(told)) if told[number][0].split()[:3] == words), None)
        assert place is not None, f"$ {command}\nnever ran:\n{text}"
        # What goes on in the background prints beside the commands that follow.
        printed = [line for part in (told[place:] if command.endswith("&") else told[place : place + 1]) for line in part]
        seen = {normal(line) for line in printed}
        for line in expected:
            assert normal(line) in seen, f"$ {command}\nthe README says:  {line}\nit printed:\n" + "\n".join(printed)


def environment(home):
    """What somebody has who has just logged in: neither our settings nor our programs on PATH."""
    programs = str(Path(sys.executable).parent)
    path = ":".join(folder for folder in os.environ["PATH"].split(":") if folder != programs)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SEALRIG_", "PYTHON", "COVERAGE", "VIRTUAL_ENV"))}
    return {**kept, "PATH": path, "HOME": str(home / "home"), "COLUMNS": "200"}


def stop(session):
    """End the programs that the tour left in the background: the node first wipes, then the others end."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        alive = [pid for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")) if in_session(pid, session)]
        for pid in alive:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        end = time.monotonic() + 20
        while time.monotonic() < end and any(in_session(pid, session) for pid in alive):
            time.sleep(0.1)


def in_session(pid, session):
    try:
        return os.getsid(pid) == session
    except ProcessLookupError:
        return False
