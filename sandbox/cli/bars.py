"""Progress bars: how much of how much, the rate, the time left. Everything that takes long draws the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task, TaskID
    from rich.text import Text


class Bar:
    """A bar that appears with the first news and stands when all is done, so that several steps show one after the other."""

    def __init__(self, label: str, noun: str, console: Console) -> None:
        self._label, self._noun, self._console = label, noun, console
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def update(self, done: int, total: int) -> None:
        """Show ``done`` of ``total``; with all of it done the bar stands, and the next call starts another."""
        if self._bars is None or self._task is None:
            self._bars, self._task = self._start()
        self._bars.update(self._task, completed=done, total=total or None)
        if total and done >= total:
            self.stop()

    def stop(self) -> None:
        """Leave the bar as it stands."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None

    def _start(self) -> tuple[Progress, TaskID]:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            *(_counts(self._noun) if self._noun else _bytes()),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        bars.start()
        return bars, bars.add_task(self._label, total=None)


def _bytes() -> tuple[ProgressColumn, ...]:
    from rich.progress import DownloadColumn, TransferSpeedColumn

    return DownloadColumn(binary_units=True), TransferSpeedColumn()


def _counts(noun: str) -> tuple[ProgressColumn, ...]:
    from rich.progress import MofNCompleteColumn, ProgressColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{noun}, {speed:,.1f}/s" if speed else noun)

    return MofNCompleteColumn(), Rate()
