from __future__ import annotations

import io
import itertools
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer

from attestation.errors import Step, VerificationError
from policies.errors import PolicyError
from sandbox.cli.console import Console, Failed, console, printable, run
from sandbox.cli.plain import plain
from sandbox.errors import BundleError, DeniedError, SealrigError, UsageError
from sandbox.lifecycle import LeaseState
from sandbox.wire import Whoami


def raising(error):
    def command(_args):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (BundleError("no", rule="r", seen="s", wanted="w", fix="f"), "bad-bundle", 1),
        (UsageError("no"), "usage", 2),
        (PolicyError("no", rule="r"), "bad-policy", 1),
        (VerificationError("no", steps=[Step("one", ok=False, seen="a", wanted="b")]), "not-verified", 1),
        (typer.BadParameter("no"), "usage", 2),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), "io", 1),
        (ModuleNotFoundError("No module named 'docker'", name="docker"), "missing-extra", 1),
        (ValueError("odd"), "internal", 1),
    ],
)
def test_every_error_has_a_code_an_exit_code_and_no_traceback(error, code, exit_code, capsys):
    assert run(raising(error), ["--json"]) == exit_code
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == code
    assert f"[{code}]" in err
    assert "Traceback" not in err


def test_without_json_stdout_stays_empty_and_stderr_says_what_to_do(capsys):
    assert run(raising(BundleError("bad thing", rule="r1", seen="s1", wanted="w1", fix="f1")), []) == 1
    out, err = capsys.readouterr()
    assert not out
    assert [word in err for word in ("bad thing", "r1", "s1", "w1", "f1")] == [True] * 5


def test_debug_shows_the_traceback(capsys):
    assert run(raising(BundleError("no")), ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_missing_extra_is_named_in_one_sentence(capsys):
    run(raising(ModuleNotFoundError("No module named 'fastapi'", name="fastapi")), [])
    assert "pip install 'sealrig[server]'" in capsys.readouterr().err


def test_reasons_and_steps_are_listed(capsys):
    run(raising(DeniedError("no", reasons=[{"rule": "images", "seen": "x", "wanted": "y", "fix": "ask"}])), [])
    run(
        raising(VerificationError("no", steps=[Step("good", ok=True, seen="a", wanted="b"), Step("bad", ok=False, seen="b", wanted="c")])),
        [],
    )
    err = capsys.readouterr().err
    assert "images: seen x; wanted y" in err
    assert "fix: ask" in err
    assert "  1 ok     good: seen a; wanted b" in err
    assert "  2 FAILED bad: seen b; wanted c" in err


def test_a_servers_steps_come_with_one_detail(capsys):
    error = SealrigError("no")
    error.details["steps"] = [{"step": "good", "ok": True, "detail": "a"}, {"step": "bad", "ok": False, "detail": "seen b; wanted c"}]
    run(raising(error), [])
    err = capsys.readouterr().err
    assert "  1 ok     good: a\n" in err
    assert "  2 FAILED bad: seen b; wanted c\n" in err


def test_a_failed_document_holds_document_and_error_once(capsys):
    def command(_args):
        console().fail({"ok": False, "steps": [1]}, SealrigError("it is not"))

    assert run(command, ["--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["steps"] == [1]
    assert document["error"]["code"] == "internal"


def test_an_error_after_the_document_does_not_print_a_second_one(capsys):
    def command(_args):
        console().emit({"one": 1})
        raise BundleError("late")

    assert run(command, ["--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"one": 1}


def test_two_documents_are_an_error(capsys):
    def command(_args):
        console().emit({"one": 1})
        console().emit({"two": 2})

    assert run(command, ["--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"one": 1}


def test_interrupt_is_130_in_one_line(capsys):
    assert run(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_command_may_return_its_exit_code():
    assert run(lambda _args: 3, []) == 3
    assert run(lambda _args: None, []) == 0


def test_flags_after_a_double_dash_are_not_ours():
    seen = []
    run(lambda _args: seen.append(console().json), ["x", "--", "--json"])
    assert seen == [False]


def test_a_closed_pipe_ends_quietly(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert run(raising(BrokenPipeError()), []) == 1
    assert not capsys.readouterr().err


def test_what_others_said_cannot_steer_the_terminal(capsys):
    run(raising(BundleError("x\x1b[2J\x9b\u202e\r", seen="\x07bell")), [])
    err = capsys.readouterr().err
    assert not set("\x1b\x9b\u202e\r\x07") & set(err)
    assert printable("a\tb\nc") == "a\tb\nc"


def test_documents_become_json():
    moment = datetime(2026, 1, 2, 3, 4, 5, 6000, tzinfo=UTC)
    who = Whoami(token="token-" + "0" * 32, role="customer", tenant="t")
    value = {"a": (1, LeaseState.CLOSED), "b": Path("/x"), "c": moment, "d": who, "e": Step("s", ok=True, seen="", wanted="")}
    assert json.loads(json.dumps(plain(value))) == {
        "a": [1, "closed"],
        "b": "/x",
        "c": "2026-01-02T03:04:05.006Z",
        "d": {"token": "token-" + "0" * 32, "role": "customer", "tenant": "t"},
        "e": {"step": "s", "ok": True, "seen": "", "wanted": "", "fix": ""},
    }
    with pytest.raises(TypeError):
        plain(b"bytes")


def test_progress_is_silent_without_a_terminal(capsys):
    with Console().progress("sealing") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_amount_and_rate_on_a_terminal_and_one_bar_after_the_other(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Console().progress("hashing") as hashing, Console().progress("uploading") as uploading:
        hashing(1024, 2048)
        hashing(2048, 2048)
        uploading(4096, 4096)
    text = screen.getvalue()
    assert text.index("hashing") < text.index("uploading")
    assert "100%" in text
    assert "2.0/2.0 KiB" in text


def test_progress_shows_the_rate_and_the_time_left(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    seconds = itertools.count()
    monkeypatch.setattr("rich.console.monotonic", lambda: float(next(seconds)))
    with Console().progress("uploading") as uploading:
        for done in range(1, 6):
            uploading(done * 2**20, 100 * 2**20)
    last = screen.getvalue().rpartition("uploading")[2]
    assert re.search(r"\d+(\.\d+)? [kMG]B/s", last), last
    assert re.search(r"\d\d:\d\d", last), last


def test_progress_of_what_is_no_bytes_names_it(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    seconds = itertools.count()
    monkeypatch.setattr("rich.console.monotonic", lambda: float(next(seconds)))
    with Console().progress("exporting", "entries") as exporting:
        for done in range(1, 6):
            exporting(done * 256, 10_000)
    last = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue().rpartition("exporting")[2])
    assert re.search(r"1280/10000 entries, \d+\.\d/s +(\d:)?\d\d:\d\d", last), last


def test_what_a_command_opened_is_closed_however_it_ends():
    closed = []

    def command(_args):
        console().ends.callback(closed.append, 1)
        raise BundleError("x")

    assert run(command, []) == 1
    assert closed == [1]


def test_tables_keep_ids_whole_and_say_when_empty(capsys):
    long = "lease-" + "0" * 32
    here = Console()
    here.table([{"a": long, "b": long, "c": long, "d": long}])
    here.table([], empty="no leases")
    out, err = capsys.readouterr()
    assert out.count(long) == 4
    assert err == "no leases\n"


def test_failed_carries_its_error():
    error = SealrigError("x")
    assert Failed({}, error).error is error
