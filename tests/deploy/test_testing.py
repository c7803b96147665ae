"""``./dev test``: parts side by side, one more look at the few tests that failed, and nothing hidden."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "dev"))

import testing  # noqa: E402  (a folder that Python runs, not a package)

_ONCE = """
import os, pathlib
def test_once():
    seen = pathlib.Path(__file__).with_suffix(".seen")
    first = not seen.exists()
    seen.touch()
    {worse} if first else None
def test_well():
    pass
"""
_AT_EXIT = """
import atexit, os
def test_well():
    atexit.register(os.kill, os.getpid(), {signal})
"""
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _pytest(folder: Path) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder)]


@pytest.fixture
def outcome(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def play(**files: str) -> tuple[int, str]:
        for name, text in files.items():
            (tmp_path / f"test_{name}.py").write_text(text)
        code = testing.run_parts(_pytest(tmp_path), [[f"test_{name}.py"] for name in files], ENV)
        return code, capfd.readouterr().out

    return play


def test_what_passes_is_passed_and_nothing_more_is_said(outcome):
    code, said = outcome(a="def test_a(): pass", b="def test_b(): pass")
    assert code == 0
    assert said.count("1 passed") == 2
    assert "===" not in said.replace("=== warnings", "")


def test_a_test_that_fails_once_is_looked_at_again_and_named(outcome):
    code, said = outcome(a="def test_a(): pass", b=_ONCE.format(worse="pytest.fail()").replace("import os", "import os, pytest"))
    assert code == 0
    assert "failed among others, passed alone: test_b.py::test_once" in said
    assert "a defect all the same" in said


def test_a_test_that_fails_twice_fails_the_run(outcome):
    code, said = outcome(a="def test_a(): pass", b="def test_b(): assert False")
    assert code == 1
    assert "looking once more" in said
    assert "a defect all the same" not in said


def test_many_failed_tests_are_no_chance(outcome):
    code, said = outcome(
        a=_ONCE.format(worse="pytest.fail()")
        .replace("import os", "import os, pytest")
        .replace("def", "@pytest.mark.parametrize('n', range(6))\ndef", 1)
        .replace("once()", "once(n)")
        .replace('".seen"', 'f".{n}"')
    )
    assert code == 1
    assert "looking once more" not in said


def test_a_process_that_dies_leaves_its_other_tests_to_the_second_look(outcome):
    code, said = outcome(a="def test_a(): pass", b=_ONCE.format(worse=f"os.kill(os.getpid(), {int(signal.SIGKILL)})"))
    assert code == 0
    assert "looking once more, alone, at 2 tests" in said
    assert "a process that ran 2 tests was ended by SIGKILL, with 2 of them not over" in said


def test_a_process_that_dies_after_its_last_test_is_named(outcome):
    code, said = outcome(a=_AT_EXIT.format(signal=int(signal.SIGSEGV)))
    assert code == 0
    assert "looking once more" not in said
    assert "a process that ran 1 tests was ended by SIGSEGV, with 0 of them not over" in said


@pytest.mark.parametrize("text", ["def test_a(:", "", "import pytest\ndef test_a(): pytest.exit('enough')"])
def test_what_cannot_begin_or_was_left_is_not_looked_at_again(outcome, text):
    code, said = outcome(a=text, b="def test_b(): pass")
    assert code in {2, 5}
    assert "looking once more" not in said


@pytest.mark.parametrize("end", ["os._exit(0)", "pytest.exit('well', returncode=0)"])
def test_a_process_that_ends_well_before_its_tests_are_over_fails_the_run(outcome, end):
    code, said = outcome(a=_ONCE.format(worse=end).replace("import os", "import os, pytest"), b="def test_b(): pass")
    assert code == 1
    assert "looking once more" not in said


def test_a_test_that_failed_and_is_left_out_at_the_second_look_fails_the_run(outcome):
    code, said = outcome(a=_ONCE.format(worse="pytest.fail()").replace("import os", "import os, pytest").replace("None", "pytest.skip()"))
    assert code == 1
    assert "1 skipped" in said


def test_ctrl_c_ends_the_tests(outcome):
    heard = "import signal\ndef test_a(): assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    code, said = outcome(a=heard, b=heard)
    assert (code, said.count("1 passed")) == (0, 2)


def test_what_hangs_is_ended_and_says_where_it_was(outcome, monkeypatch, capfd):
    monkeypatch.setattr(testing, "PATIENCE_S", 0)
    monkeypatch.setattr(testing, "GRACE_S", 2)
    code, _ = outcome(a="import time\ndef test_hanging_on(): time.sleep(3600)")
    assert code == 128 + signal.SIGABRT


def test_who_ends_the_run_ends_every_part_and_nothing_is_looked_at_again(tmp_path):
    for name in "ab":
        (tmp_path / f"test_{name}.py").write_text(
            f"import time, pathlib\ndef test_{name}():\n    pathlib.Path('{name}').touch()\n    time.sleep(3600)"
        )
    parts = [[f"test_{name}.py"] for name in "ab"]
    script = f"import os, testing; raise SystemExit(testing.run_parts({_pytest(tmp_path)!r}, {parts!r}, dict(os.environ)))"
    env = {**ENV, "PYTHONPATH": f"{ROOT}:{ROOT / 'deploy' / 'dev'}"}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        late = time.monotonic() + 120
        while not all((tmp_path / name).exists() for name in "ab") and time.monotonic() < late:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"looking once more" not in said
