"""A command that is told to end leaves nothing behind, says so in one line and in its exit code, and gives the signals back."""

from __future__ import annotations

import errno
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.cli import main
from sandbox.cli.console import run as run_console
from sandbox.cli.demo.interrupt import Interrupts
from sandbox.cli.unwinding import Terminated, handling, unwinding
from tests.patience import PATIENCE
from tests.rig import Person
from tests.sealing.trees import names

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
WAIT_SECONDS = 60 * PATIENCE
SEGMENTS = 20
SLOW = """
import os, signal, sys, threading, time
from sandbox.cli import main
from sandbox.sealing import pipeline, staging

where, ignored, args = sys.argv[1], sys.argv[2], sys.argv[3:]
for number in (signal.SIGTERM, signal.SIGHUP):  # whatever whoever runs the tests ignores
    signal.signal(number, signal.SIG_IGN if str(int(number)) == ignored else signal.SIG_DFL)

def slow(module, name):
    true = getattr(module, name)
    def call(*args, **named):
        time.sleep(3600)
        return true(*args, **named)
    setattr(module, name, call)

if where == "work":  # some segments, and no more of them before it is told to end
    told, place, end = threading.Event(), pipeline.Batch.place, pipeline._Run.end
    pipeline.Batch.place = lambda batch, index: (index > 8 and told.wait(), place(batch, index))
    pipeline._Run.end = lambda run: (told.set(), end(run))
elif where == "open":
    slow(staging, "_sync_contents")
elif where == "seal":
    slow(os, "fsync")
sys.exit(main(args))
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Person, Path]:
    folder = tmp_path_factory.mktemp("scene")
    person = Person(folder / "home", "http://127.0.0.1:1")
    person.run("key", "new", person.key).ok()
    (folder / "src").mkdir()
    (folder / "src" / "a").write_text("secret")
    with (folder / "src" / "large").open("wb") as file:
        file.truncate(SEGMENTS * 2**20)
    person.run("seal", folder / "src", "-o", folder / "b.sealed").ok()
    return person, folder


def begin(person: Person, where: str, *args: object, ignored: int = 0, **more: object) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", SLOW, where, str(ignored), *map(str, args)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, **more}
    return subprocess.Popen(words, env={**os.environ, **person.env}, **pipes)


def wait_for(done: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def staging(folder: Path) -> list[Path]:
    return list(folder.glob("**/.sealrig-*.part"))


def end(process: subprocess.Popen[bytes], number: int) -> None:
    process.send_signal(number)
    out, err = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, out, err.decode()) == (128 + number, b"", f"ended by {signal.Signals(number).name}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("inside", [False, True])
def test_open_leaves_nothing_as_soon_as_there_is_a_staging_folder(scene, tmp_path, inside, number):
    person, folder = scene
    if inside:
        (tmp_path / "out").mkdir()
    process = begin(person, "work", "open", folder / "b.sealed", "-o", tmp_path / "out")
    wait_for(lambda: staging(tmp_path), process)
    end(process, number)
    assert names(tmp_path) == (["out"] if inside else [])
    assert staging(tmp_path) == []


@pytest.mark.parametrize("inside", [False, True])
def test_open_leaves_nothing_of_what_was_written_and_not_published_yet(scene, tmp_path, inside):
    person, folder = scene
    if inside:
        (tmp_path / "out").mkdir()
    process = begin(person, "open", "open", folder / "b.sealed", "-o", tmp_path / "out")
    wait_for(lambda: [part for part in staging(tmp_path) if names(part) == ["a", "large"]], process)
    end(process, signal.SIGTERM)
    assert names(tmp_path) == (["out"] if inside else [])
    assert staging(tmp_path) == []


@pytest.mark.parametrize("where", ["work", "seal"])
def test_seal_leaves_nothing(scene, tmp_path, where):
    person, folder = scene
    process = begin(person, where, "seal", folder / "src", "-o", tmp_path / "b")
    wait_for(lambda: staging(tmp_path), process)
    end(process, signal.SIGTERM)
    assert names(tmp_path) == []


def test_what_the_parent_ignores_stays_ignored(scene, tmp_path):
    person, folder = scene
    process = begin(person, "work", "open", folder / "b.sealed", "-o", tmp_path / "out", ignored=signal.SIGHUP)
    wait_for(lambda: staging(tmp_path), process)
    process.send_signal(signal.SIGHUP)
    end(process, signal.SIGTERM)  # the other one would have been the first, and named
    assert names(tmp_path) == []


def test_a_terminal_that_is_closed_ends_a_command_with_nothing_left(scene, tmp_path):
    person, folder = scene
    ours, theirs = pty.openpty()
    process = begin(person, "work", "open", folder / "b.sealed", "-o", tmp_path / "out", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    wait_for(lambda: staging(tmp_path), process)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(WAIT_SECONDS) == 128 + signal.SIGHUP
    assert names(tmp_path) == []


def test_after_a_kill_the_bundle_opens_beside_what_was_left_and_a_folder_with_it_inside_is_refused_by_its_name(scene, tmp_path):
    person, folder = scene
    (tmp_path / "inside").mkdir()
    for name in ("out", "inside"):
        process = begin(person, "work", "open", folder / "b.sealed", "-o", tmp_path / name)
        wait_for(lambda: staging(tmp_path / ("inside" if name == "inside" else "")), process)  # noqa: B023  (called at once)
        process.kill()
        process.communicate()
    person.run("open", folder / "b.sealed", "-o", tmp_path / "out").ok()
    assert names(tmp_path / "out") == ["a", "large"]
    (left,) = staging(tmp_path / "inside")
    assert left.name in person.run("open", folder / "b.sealed", "-o", tmp_path / "inside").err


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.fixture
def survivable():
    """Only the tests' own signals, and never an end of all tests: what nobody takes is taken here, and fails the test."""
    taken = []
    before = {number: signal.signal(number, lambda number, _frame: taken.append(number)) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, old in before.items():
        signal.signal(number, old)
    assert taken == []


@pytest.mark.parametrize("args", [["--version"], ["inspect", "nowhere"], ["demo", "--keep", "."]])
def test_signals_are_given_back_however_a_command_ends(args, monkeypatch, capsys):
    before = handlers()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    main(args)
    assert handlers() == before
    capsys.readouterr()


def test_signals_are_given_back_after_one_came(survivable, capsys):
    before = handlers()
    assert run_console(lambda _args: signal.raise_signal(signal.SIGTERM), []) == 143
    assert handlers() == before
    assert capsys.readouterr().err == "ended by SIGTERM\n"


def test_only_the_first_signal_ends_a_command_and_what_fails_then_does_not_hide_it(survivable):
    reached = []

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end of the cleaning up")
            raise OSError("a terminal that has gone")

    with pytest.raises(Terminated) as ended, unwinding():
        command()
    assert reached
    assert ended.value.code == 143


def test_a_signal_that_came_where_python_lets_no_error_out_does_not_make_the_next_one_nothing(survivable, monkeypatch):
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def command() -> None:
        Finalized()
        reached.append("what follows")
        signal.raise_signal(signal.SIGHUP)

    reached = []
    monkeypatch.setattr(sys, "unraisablehook", lambda _lost: None)  # the tests' own would keep it
    with pytest.raises(Terminated) as ended, unwinding():
        command()
    assert reached
    assert ended.value.code == 129


def test_an_ignored_signal_is_left_alone_and_sigint_is_taken_anyway():
    before = handlers()
    told = []
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with unwinding(), handling(SIGNALS, lambda number, _frame: told.append(number)):
            for number in SIGNALS:
                signal.raise_signal(number)
        with Interrupts():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert handlers() == [signal.SIG_IGN] * 3
    finally:
        for number, old in zip(SIGNALS, before, strict=True):
            signal.signal(number, old)
    assert told == [signal.SIGINT]


def test_serve_gives_back_the_mask_of_file_modes(tmp_path):
    """In a process of its own, for the mask is the whole process's."""
    script = """
import os, sys
from sandbox.cli import main
os.umask(0o027)
code = main(["serve", "--data", sys.argv[1], "--listen", sys.argv[2]])
print(code, oct(os.umask(0)))
"""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [sys.executable, "-c", script, str(tmp_path / "data"), f"127.0.0.1:{taken.getsockname()[1]}"]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout == "2 0o27\n", done.stderr
    assert (tmp_path / "data" / "operator.token").stat().st_mode & 0o777 == 0o600


def test_a_new_file_that_cannot_be_written_whole_is_not_there(tmp_path):
    script = """
import resource, sys
from pathlib import Path
from sandbox.cli.files import new_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    new_file(Path(sys.argv[1]), bytes(2000))
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "new"], check=True, capture_output=True, text=True)
    assert done.stdout == f"{os.strerror(errno.EFBIG)}\n"
    assert names(tmp_path) == []
