"""How every command talks: one JSON document on stdout with ``--json``, messages and progress on stderr, errors as exit codes.

A command asks for ``console()`` and uses ``say``, ``progress``, ``emit`` and ``fail``; it raises ``SealrigError`` (or the errors of
the policy and attestation packages) for everything else. ``run`` is the only place that turns errors into words and exit codes:
0 done, 1 refused or failed, 2 usage, 124 timed out, 130 interrupted, 143 and the like ended by a signal. No traceback is shown without
``--debug``.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

from sandbox.cli.bars import Bar
from sandbox.cli.plain import plain
from sandbox.cli.problem import EXIT_INTERRUPTED, EXIT_REFUSED, Problem, problem_of
from sandbox.cli.unwinding import Terminated, unwinding

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all (0 where that is not known), in bytes or in what the bar counts."""

TABLE_WIDTH = 500


class Failed(Exception):  # noqa: N818  (not an error of its own: it carries one, with the document to print beside it)
    """A command's whole answer is a document that says no; ``error`` says why."""

    def __init__(self, document: Mapping[str, object], error: Exception) -> None:
        super().__init__(str(error))
        self.document = document
        self.error = error


class Console:
    """What one command says, and where. ``json`` and ``debug`` are the flags that every command has."""

    def __init__(self, *, json_output: bool = False, debug: bool = False) -> None:
        self.json = json_output
        self.debug = debug
        self.ends = ExitStack()
        """What is to be closed when the command is over, however it ends."""
        self._printed = False

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked something: terminal on both ends, and no JSON wanted."""
        return not self.json and sys.stdin.isatty() and sys.stderr.isatty()

    def say(self, message: str) -> None:
        """Tell a person something, on stderr."""
        sys.stderr.write(f"{printable(message)}\n")
        sys.stderr.flush()

    def warn(self, message: str) -> None:
        """Warn a person, on stderr."""
        self.rich().print(f"warning: {printable(message)}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def emit(self, document: object, human: str | Callable[[], object] | None = None) -> None:
        """Print the command's result: the document with ``--json``, else ``human`` (text, or something that prints to stdout).

        Called at most once a run, so that stdout holds exactly one document. Models, data classes, times, paths and enums are
        written as JSON.
        """
        if self.json:
            if self._printed:
                raise RuntimeError("a command printed two documents")
            self._printed = True
            self.print(json.dumps(plain(document), indent=2, ensure_ascii=False))
        elif callable(human):
            human()
        elif human is not None:
            self.print(printable(human))

    def print(self, line: str) -> None:
        """Print one line on stdout as it is; what others wrote must have gone through ``shown`` or ``printable``."""
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def table(self, rows: Sequence[Mapping[str, object]], *, empty: str = "none") -> None:
        """Print rows with the same keys as a table on stdout; ``empty`` goes to stderr where there are none."""
        if not rows:
            self.say(empty)
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in rows[0]:
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(*(Text(shown(value)) for value in row.values()))
        # Ids must stay whole, to be copied and to be read by scripts: the terminal may wrap a long line, the table never does.
        self.rich(stderr=False, width=TABLE_WIDTH).print(table, soft_wrap=True)

    def fields(self, values: Mapping[str, object]) -> None:
        """Print ``name  value`` lines on stdout, aligned."""
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            self.print(f"{name:<{width}}  {shown(value)}".rstrip())

    @contextmanager
    def progress(self, label: str, noun: str = "") -> Iterator[Progress]:
        """Show how much is done with rate and time left, on stderr, while the block runs; silent where stderr is no terminal.

        What is counted are ``noun``, such as ``entries``; bytes without one.
        """
        if not sys.stderr.isatty():
            yield _ignore
            return
        bar = Bar(label, noun, self.rich())
        try:
            yield bar.update
        finally:
            bar.stop()

    def fail(self, document: Mapping[str, object], error: Exception) -> NoReturn:
        """End the command with the error's exit code: the document (plus ``error``) with ``--json``, the error's words on stderr."""
        raise Failed(document, error)

    def report(self, problem: Problem, document: Mapping[str, object] | None = None) -> None:
        """Print an error: words on stderr, and with ``--json`` the one document with ``error`` in it."""
        if self.json and not self._printed:
            self.emit({**(document or {}), "error": {"code": problem.code, "message": problem.message, "details": problem.details}})
        for line, style in problem.lines():
            self.rich().print(printable(line), style=style, markup=False, highlight=False, soft_wrap=True)

    def rich(self, *, stderr: bool = True, width: int | None = None) -> RichConsole:
        """Return a Rich console on stderr (or stdout) as it is now; ``width`` of None is the terminal's."""
        from rich.console import Console as RichConsole

        return RichConsole(stderr=stderr, width=width)


_current: ContextVar[Console | None] = ContextVar("console", default=None)


def console() -> Console:
    """Return the console of the command that runs."""
    found = _current.get()
    if found is None:
        found = Console()
        _current.set(found)
    return found


def run(command: Callable[[Sequence[str]], object], args: Sequence[str]) -> int:
    """Run a parsed-and-invoked command line and return its exit code. ``command`` takes the arguments and may return a code."""
    flags = args[: args.index("--")] if "--" in args else args
    here = Console(json_output="--json" in flags, debug="--debug" in flags)
    token = _current.set(here)
    try:
        with unwinding(), here.ends:
            code = command(args)
    except Terminated as ended:
        try:
            here.say(f"ended by {signal.Signals(ended.number).name}")
        except OSError:  # a terminal that was closed; the interpreter must not try again at exit
            sys.stderr = None
        return 128 + ended.number
    except KeyboardInterrupt:
        here.say("interrupted")
        return EXIT_INTERRUPTED
    except Failed as failed:
        _trace(here)
        problem = problem_of(failed.error)
        here.report(problem, failed.document)
        return problem.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell, and the interpreter must not try again at exit.
        sys.stdout = None  # the documented way to stop the flush at exit
        return EXIT_REFUSED
    except Exception as error:  # noqa: BLE001  (the one place where all errors become words)
        problem = problem_of(error)
        _trace(here)
        here.report(problem)
        return problem.exit_code
    finally:
        _current.reset(token)
    if code == EXIT_INTERRUPTED:
        here.say("interrupted")
    return code if isinstance(code, int) else 0


def _trace(here: Console) -> None:
    if here.debug:
        traceback.print_exc(file=sys.stderr)


def _ignore(_done: int, _total: int) -> None:
    """Take progress and show none."""


def shown(value: object) -> str:
    """Return a value as a person reads it in a table or field."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(shown(item) for item in value) or "-"
    return printable(str(value))


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``1 file``, ``2 files``, ``3 entries``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: control characters but newline and tab are replaced.

    Messages carry what servers, nodes and files said; none of them may move the cursor or rewrite what a person reads.
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
