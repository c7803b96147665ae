"""What a person sees of the demo while it happens: on stdout, or on stderr where stdout belongs to ``--json``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.cli.demo.assets import Answer


@dataclass(frozen=True)
class StepDone:
    """One of the ten steps, done: its name, how long it took, whether it held."""

    step: str
    seconds: float
    ok: bool


class Screen:
    """Prints the story and keeps its steps."""

    def __init__(self, *, to_stderr: bool) -> None:
        """Write to stdout or stderr, in colour where that is a terminal."""
        self._out = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
        self.steps: list[StepDone] = []

    def say(self, text: str, style: str = "") -> None:
        """Print a line."""
        self._out.print(Text(text, style=style))

    def person(self, name: str, what: str) -> None:
        """Say whose turn it is."""
        self._out.print(Text.assemble(("\n" + name, "bold"), f"  {what}"))

    def typed(self, words: str) -> None:
        """Show a command as the person would type it."""
        self._out.print(Text(f"    $ {words}", style="dim"))

    def note(self, text: str) -> None:
        """Print something that a step showed."""
        self._out.print(Text(f"      {text}"))

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show that something is under way, where a terminal can show that."""
        with self._out.status(Text(text)):
            yield

    @contextmanager
    def step(self, number: int, title: str) -> Iterator[None]:
        """Time a step that happens inside the block."""
        start = time.monotonic()
        try:
            with self.busy(f"{number}  {title}"):
                yield
        except BaseException:
            self.done(number, title, time.monotonic() - start, ok=False)
            raise
        self.done(number, title, time.monotonic() - start)

    def done(self, number: int, title: str, seconds: float, *, ok: bool = True) -> None:
        """Print a step that has ended, and keep it."""
        self.steps.append(StepDone(f"{number} {title}", round(max(seconds, 0.0), 3), ok))
        mark = ("✓", "green") if ok else ("✗", "red")
        self._out.print(Text.assemble("  ", mark, (f" {number:2d}  ", "bold"), f"{title:<74}", (f"{max(seconds, 0.0):7.2f} s", "cyan")))

    def answers(self, answers: Sequence[Answer]) -> None:
        """Print what the model said about each file beside what the file is."""
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in ("file", "what it is", "must say", "says", "score"):
            table.add_column(column, no_wrap=True)
        for item in answers:
            said = Text(item.seen, style="green" if item.ok else "bold red")
            table.add_row(item.file, item.origin, item.wanted, said, f"{item.score:.4f}")
        self._out.print()
        self._out.print(table)
        self._out.print()
