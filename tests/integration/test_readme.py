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
# A program in the background has begun when this holds.
READY = {
    "sealrig serve": "until grep -qs '^serving' {output}; do sleep 0.1; done",
    "sealrig node run": "until sealrig node list 2>/dev/null | grep -q ready; do sleep 0.2; done",
    "sealrig release": "until grep -qs '^release agent' {output}; do sleep 0.1; done",
}


def blocks(section):
    """(command, expected output lines) of each console block below a heading."""
    text = README.split(f"## {section}", 1)[1].split("\n## ", 1)[0]
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.startswith("> ") and found:
                found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
            else:
                found[-1][1].append(line)
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
    for command, _ in blocks("Two commands"):
        assert re.search(rf"^  {command.removeprefix('./dev ')}\b", usage, re.MULTILINE), command


@pytest.mark.docker
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_tour_prints_what_it_says(tmp_path):
    tour = tmp_path / "tour"
    assets.write_weights(tour / "customer" / "weights")
    assets.write_code(tour / "customer" / "code")
    assets.write_data(tour / "customer" / "data")
    (tour / "operator").mkdir()
    image = ensure_image(Engine(os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET))
    (tour / "operator" / "policy.yaml").write_text(assets.POLICY.format(image=image))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEALRIG_")}
    env = {
        **kept,
        "HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "200",
        "PYTHONUNBUFFERED": "1",
    }
    story = blocks("A tour for each of the three users")
    said = tmp_path / "said"
    said.mkdir()

    script = ["set -u"]
    for number, (command, _) in enumerate(story):
        words, background = (command.removesuffix("&"), "&") if command.endswith("&") else (command, "")
        # A here-document ends the line by itself; other commands are grouped so that both streams go to the same file.
        body = f"{{ {words}\n}} > {said}/{number} 2>&1 {background}"
        script.append(body)
        after = next((wait for start, wait in READY.items() if command.startswith(start)), "echo $? > {output}.code")
        script.append(after.format(output=said / str(number)))
    with subprocess.Popen(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, start_new_session=True
    ) as shell:
        try:
            shell.wait(360)
        finally:
            stop(shell.pid)

    for number, (command, expected) in enumerate(story):
        printed = (said / str(number)).read_text()
        code = said / f"{number}.code"
        assert not code.exists() or code.read_text().strip() == "0", f"$ {command}\n{printed}"
        seen = {normal(line) for line in printed.splitlines()}
        for line in expected:
            assert normal(line) in seen, f"$ {command}\nthe README says:  {line}\nit printed:\n{printed}"


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
