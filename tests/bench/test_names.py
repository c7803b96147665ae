"""``python -m bench`` runs every bench and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench import __main__ as benches

FOLDER = Path(bench.__file__).parent


def test_every_program_that_reports_is_named_and_no_other_module_is():
    """What ends in ``bench.report.main`` answers without words; helpers that want some, or only give functions, do not."""
    sources = {path: path.read_text() for path in (*FOLDER.glob("*.py"), *FOLDER.glob("*/__main__.py"))}
    programs = {
        path.parent.name if path.stem == "__main__" else path.stem
        for path, text in sources.items()
        if 'if __name__ == "__main__":' in text and "from bench.report import" in text
    }
    assert sorted(programs) == sorted(benches.NAMES)


@pytest.fixture
def outcomes(monkeypatch):
    """Stand-ins for the benches' processes: by name, exit code and what is on stdout."""
    found = dict.fromkeys(benches.NAMES, (0, b"{}"))

    def ended(command, **_):
        assert command[:2] == [sys.executable, "-m"]
        code, out = found[command[2].removeprefix("bench.")]
        return subprocess.CompletedProcess(command, code, out)

    monkeypatch.setattr(benches.subprocess, "run", ended)
    return found


@pytest.mark.parametrize("words", [[], ["--json"]])
@pytest.mark.parametrize("code", [1, -9])
def test_one_missed_goal_or_killed_bench_is_seen(outcomes, words, code, capsys):
    assert benches.main(words) == 0
    capsys.readouterr()
    outcomes["seal"] = (code, b"")
    assert benches.main(words) == 1
    if words:
        assert json.loads(capsys.readouterr().out) == [{}] * (len(benches.NAMES) - 1)


def test_a_bench_that_is_not_there_is_named(capsys):
    assert benches.main(["verifying"]) == 2
    assert "no bench called verifying; there are: api, audit" in capsys.readouterr().err


@pytest.mark.parametrize("name", benches.NAMES)
def test_every_bench_says_what_it_measures_and_takes_without_measuring(name, capfd):
    assert benches.main([name, "--help"]) == 0
    said = capfd.readouterr()
    assert "--json" in said.out
    assert re.search(rf"bench[ .]{name}\b", said.out)
    assert "MISSED" not in said.out
