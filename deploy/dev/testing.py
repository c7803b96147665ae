"""The whole of the tests: in parts, side by side, and once more where a test failed among others. Only the standard library."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen, TimeoutExpired
from types import FrameType

_MACHINE = "docker or root"
"""Marks of the tests that change the machine: containers, mounts, namespaces."""
_SERVERS = ("tests/control", "tests/node/gpu")
PARTS = (
    ("-m", _MACHINE, "tests/attacks"),
    ("-m", _MACHINE, "--ignore=tests/attacks"),
    ("-m", f"not ({_MACHINE})", *_SERVERS),
    ("-m", f"not ({_MACHINE})", *(f"--ignore={folder}" for folder in _SERVERS)),
)
"""What runs side by side, for most of the time is waiting; ``tests/alone.py`` keeps those apart that would disturb each other."""
PATIENCE_S = 35 * 60
"""How long one part may take before it is ended, so that what hangs is found out while there is time to say so."""
GRACE_S = 30
"""How long what was aborted may take to say where it was."""
MOST_FAILED = 5
"""How many failed tests are looked at once more. More than that is no chance: something is broken."""
_STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
"""Exit codes of tests that a person stopped: nothing is looked at again."""


@dataclass
class Outcome:
    """What is known of a part after it ended: its exit code, and what its plugin told."""

    code: int
    planned: list[str] | None = None
    failed: list[str] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)
    over: set[str] = field(default_factory=set)

    @property
    def unheard(self) -> list[str]:
        """The tests that were chosen and did not end: the process died before."""
        return [name for name in self.planned or [] if name not in self.over]

    @property
    def died(self) -> bool:
        """Tell whether a signal that no person sent ended the process."""
        return self.code > 128 and self.code not in _STOPPED

    @property
    def told(self) -> bool:
        """Tell whether what is known of the tests is all there is to say: no other error, and none left out by a process that ended."""
        return self.planned is not None and (self.died or (self.code == bool(self.failed) and not self.unheard))

    @classmethod
    def read(cls, code: int, path: Path) -> Outcome:
        """Read what a part told in its file; a last line that was cut is left out."""
        outcome = cls(code)
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
            if not line.endswith("\n"):
                break
            for what, which in json.loads(line).items():
                if what == "planned":
                    outcome.planned = which
                elif what == "over":
                    outcome.over.add(which)
                elif what == "passed":
                    outcome.passed.add(which)
                elif which not in outcome.failed:
                    outcome.failed.append(which)
        return outcome


def run_parts(pytest: Sequence[str], parts: Sequence[Sequence[str]], env: Mapping[str, str]) -> int:
    """Run the parts side by side, then, alone, up to five tests that failed and those that a dead process left out.

    The first part is seen as it runs, the others show what they printed afterwards. A test that fails among others and passes alone is no
    failure of this run, but it is named at the end: it is a defect all the same, its own or of what it tests. So is a process that dies.
    Returns 0, or the exit code of the first part that failed; 1 where one ended with 0 before its tests were over.
    """
    with tempfile.TemporaryDirectory() as place:
        outcomes = _run_beside(pytest, parts, env, Path(place))
        failed = [name for outcome in outcomes for name in outcome.failed]
        unheard = [name for outcome in outcomes for name in outcome.unheard if name not in outcome.failed]
        code = next((outcome.code for outcome in outcomes if outcome.code), 1)
        if not all(outcome.told for outcome in outcomes) or len(failed) > MOST_FAILED:
            return code
        if failed or unheard:
            _say(f"\n=== looking once more, alone, at {len(failed) + len(unheard)} tests ===")
            chosen = Path(place) / "chosen"
            chosen.write_text("".join(f"{name}\n" for name in (*failed, *unheard)), encoding="utf-8")
            (second,) = _run_beside(pytest, [[f"@{chosen}"]], env, Path(place))
            outcomes.append(second)
            # One that is skipped when it is looked at again, as where the engine is gone by then, has not passed.
            if not second.told or second.failed or second.unheard or not second.passed.issuperset(failed):
                return code
        _name_defects(outcomes)
        return 0


def _run_beside(pytest: Sequence[str], parts: Sequence[Sequence[str]], env: Mapping[str, str], place: Path) -> list[Outcome]:
    env = {**env, "PYTHONFAULTHANDLER": "1"}  # a crash in native code shows where Python was, also on the interpreter's way out
    files = [place / str(number) for number in range(len(parts))]
    outcomes = []
    with ExitStack() as stack:
        running: list[Popen[bytes]] = []
        stack.enter_context(_handing_on(running))
        printed = []
        for number, (part, file) in enumerate(zip(parts, files, strict=True)):
            file.unlink(missing_ok=True)
            kept = stack.enter_context(tempfile.TemporaryFile()) if number else None
            words = [*pytest, "-p", "tests.outcomes", "--outcomes", str(file), *part]
            running.append(
                stack.enter_context(Popen(words, env=env, stdin=DEVNULL if kept else None, stdout=kept, stderr=STDOUT if kept else None))
            )
            printed.append(kept)
        late = time.monotonic() + PATIENCE_S
        for process, kept, file in zip(running, printed, files, strict=True):
            outcomes.append(Outcome.read(_wait(process, late), file))
            if kept:
                kept.seek(0)
                shutil.copyfileobj(kept, sys.stdout.buffer)
                sys.stdout.flush()
    return outcomes


def _wait(process: Popen[bytes], late: float) -> int:
    """Wait for a part; what takes too long is aborted, and its fault handler then prints where each of its threads was."""
    for number in (signal.SIGABRT, signal.SIGKILL):
        try:
            process.wait(max(late - time.monotonic(), GRACE_S))
            break
        except TimeoutExpired:
            process.send_signal(number)
    code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _handing_on(running: Sequence[Popen[bytes]]) -> Iterator[None]:
    """Hand on to all parts what asks this process to end. A terminal's Ctrl-C reaches them by itself."""

    def hand_on(number: int, _frame: FrameType | None) -> None:
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    # Not ignored, which the parts and all that they start would inherit.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _name_defects(outcomes: Sequence[Outcome]) -> None:
    """Name what went wrong in a run that counts as passed, so that a green run cannot hide it."""
    if any(outcome.failed or outcome.died for outcome in outcomes):
        _say("\n=== not well at first, passed at a second look: a defect all the same ===")
    for outcome in outcomes:
        for name in outcome.failed:
            _say(f"failed among others, passed alone: {name}")
        if outcome.died:
            end = signal.Signals(outcome.code - 128).name
            _say(f"a process that ran {len(outcome.planned or ())} tests was ended by {end}, with {len(outcome.unheard)} of them not over")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
