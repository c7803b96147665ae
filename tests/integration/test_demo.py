"""The main job, told by the real programs on the real engine; and stopped in the middle."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attestation.signing import Envelope, b64decode
from sandbox.cli.demo.leftovers import loops_below, mounts_below
from sandbox.node import views
from sandbox.node.engine import DEFAULT_SOCKET, Engine

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow]
DEMO = [sys.executable, "-m", "sandbox.cli", "demo"]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 10


def engine():
    return Engine(os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET)


def containers_below(folder):
    """Containers, running or not, that were given something of a folder: a lease's scratch and inputs lie below its node's data."""
    rows = engine()._api.containers(all=True)
    return [row["Names"] for row in rows if any(mount.get("Source", "").startswith(f"{folder}/") for mount in row["Mounts"])]


def processes_naming(folder):
    """Command lines that name the demo's folder: programs that were left running."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.startswith(f"{folder}/") for word in words) and int(path.parts[2]) != os.getpid():
            found.append(words)
    return found


@pytest.mark.timeout(300)
def test_demo_plays_the_main_job(tmp_path):
    env = {**os.environ, "TMPDIR": str(tmp_path)}

    done = subprocess.run([*DEMO, "--json"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"lease", "receipt", "result", "steps", "level"}
    assert document["level"] == "software"
    assert [int(item["step"].split()[0]) for item in document["steps"]] == list(range(1, STEPS + 1))
    assert all(item["ok"] and item["seconds"] >= 0 for item in document["steps"])
    answers = json.loads(Path(document["result"]).read_bytes())["files"]
    assert answers["attachment-01"]["type"] == "python"
    assert answers["attachment-12"]["type"] == "sqlite"
    receipt, trust = Path(document["receipt"]), Path(document["receipt"]).with_name("TRUST.yaml")
    verified = subprocess.run(
        [sys.executable, "-m", "sandbox.cli", "receipt", "verify", receipt, "--trust", trust, "--json"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert json.loads(verified.stdout)["ok"] is True
    if views.available():  # the job asks for its weights on demand; without FUSE they would be copied, and nothing would tell
        steps = {item["step"]: item["ok"] for item in _wiped(receipt)["steps"]}
        assert steps["view-pages"] is True
        assert steps["views"] is True
    # What remains is what was printed: no key, no sealed bundle, no plaintext but the opened result.
    folder = receipt.parent
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "TRUST.yaml",
        "receipt.json",
        "result/result.json",
    ]
    assert (mounts_below(tmp_path), loops_below(tmp_path), processes_naming(tmp_path)) == ([], [], [])
    assert containers_below(tmp_path) == []


def _wiped(receipt):
    """Return the wipe report in a receipt."""
    envelope = Envelope.from_bytes(b64decode(json.loads(receipt.read_bytes())["documents"]["wipe"]["data"]))
    return json.loads(envelope.payload)


def first_second_after(text):
    """A moment a little after the demo said something."""

    def wait(process):
        for line in process.stdout:
            if text in line:
                time.sleep(random.uniform(0, 1))
                return
        pytest.fail(f"the demo ended before it said {text!r}")

    return wait


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("sealrig node run", signal.SIGTERM),
        ("✓  5", signal.SIGINT),
    ],
)
def test_stopped_at_any_moment_it_leaves_nothing(tmp_path, moment, number):
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        first_second_after(moment)(process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)

    assert process.returncode == 130, said
    assert list(tmp_path.iterdir()) == []
    assert (mounts_below(tmp_path), loops_below(tmp_path), processes_naming(tmp_path)) == ([], [], [])
    assert containers_below(tmp_path) == []
