"""Commands that stay on this machine start without the libraries that only the network needs."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import runpy, sys
sys.argv = ["sealrig", *sys.argv[1:]]
try:
    runpy.run_module("sandbox.cli", run_name="__main__")
finally:
    print(sorted({"httpx", "docker", "fastapi", "sqlalchemy", "mfusepy"} & set(sys.modules)), file=sys.stderr)
"""


def test_sealing_and_opening_import_no_network_library(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "f").write_text("x")
    words = [("key", "new", "keys"), ("seal", "f", "-o", "b", "--key", "keys"), ("open", "b", "-o", "out", "--key", "keys")]
    for command in words:
        done = subprocess.run([sys.executable, "-c", SCRIPT, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.rstrip().endswith("[]"), (command, done.stderr)
