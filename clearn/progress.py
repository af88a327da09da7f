"""Showing where runs stand: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID

_PLAIN_SECONDS = 10.0
_WIDTHS = {"task": 5, "epoch": 5, "accuracy": 8, "examples/s": 10, "left": 5}


@dataclass(frozen=True)
class ProgressEvent:
    """Where a run stands.

    Attributes:
        task: Index of the current task.
        tasks: Tasks of the stream.
        epoch: Epochs done of the current task.
        epochs: Epochs per task.
        examples_per_s: Examples trained per second, when some last were.
        acc: Mean accuracy on the tasks seen, in [0, 1]; None before the first evaluation.
        done: Share of the run's epochs that is done, in [0, 1].
    """

    task: int
    tasks: int
    epoch: int
    epochs: int
    examples_per_s: float
    acc: float | None
    done: float


class Progress(Protocol):
    """Where a run reports how it goes."""

    def update(self, event: ProgressEvent) -> None:
        """Show where the run stands."""

    def message(self, text: str) -> None:
        """Show one line that stays."""

    def close(self) -> None:
        """Give the terminal back; may be called twice."""


class NullProgress:
    """Shows nothing."""

    def update(self, event: ProgressEvent) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainProgress:
    """Lines on a stream that is no terminal: one after each evaluation, else one in ten seconds.

    Args:
        console: Where the lines go.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._clock = Clock()
        self._shown: tuple[float, float | None] | None = None  # when, accuracy then

    def update(self, event: ProgressEvent) -> None:
        """Print a line when it is time."""
        self._clock.see(event.done)
        now = time.monotonic()
        if self._shown is not None:
            shown, acc = self._shown
            if now - shown < _PLAIN_SECONDS and event.acc == acc:
                return
        self._shown = now, event.acc
        self.message(f"{describe(event)}, {self._clock.left()} left")

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to give back."""


class LiveProgress:
    """One line at the bottom of a terminal that follows the run.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            console=console,
            expand=True,
            transient=True,
        )
        self._clock = Clock()
        self._bar: TaskID | None = None

    def update(self, event: ProgressEvent) -> None:
        """Move the line."""
        self._clock.see(event.done)
        text, left = describe(event), self._clock.left()
        if self._bar is None:
            self._bars.start()
            self._bar = self._bars.add_task(text, total=1.0, left=left)
        self._bars.update(self._bar, description=text, completed=event.done, left=left)

    def message(self, text: str) -> None:
        """Print a line above it."""
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Remove the line and show the cursor again."""
        self._bars.stop()


class RunsProgress:
    """Several runs in one display: a line per run at work, and how many are done.

    Args:
        total: Runs of the experiment.
        done: Runs that were finished before.
        console: Where to show them; stderr when None.
    """

    def __init__(self, total: int, done: int = 0, console: Console | None = None) -> None:
        from rich.live import Live

        self._total = total
        self._done = done
        self._console = console or stderr_console()
        self._events: dict[str, ProgressEvent] = {}
        self._clocks: dict[str, Clock] = {}
        self._shown = time.monotonic()
        self._live = Live(
            console=self._console, get_renderable=self._table, transient=True, refresh_per_second=4
        )
        if self._console.is_terminal:
            self._live.start()

    def update(self, label: str, event: ProgressEvent) -> None:
        """Show where the run called `label` stands."""
        self._events[label] = event
        self._clocks.setdefault(label, Clock()).see(event.done)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._shown >= _PLAIN_SECONDS:
            self._shown = now
            for name, last in self._events.items():
                self.message(f"{name}: {describe(last)}, {self._clocks[name].left()} left")

    def finish(self, label: str, outcome: str = "finished") -> None:
        """Take the run called `label` off the display and leave one line about it."""
        self._done += 1
        event = self._events.pop(label, None)
        acc = "" if event is None or event.acc is None else f", accuracy {_percent(event.acc)}"
        self.message(f"{self._done}/{self._total}  {label}: {outcome}{acc}")

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the display and show the cursor again."""
        self._live.stop()

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column("run", overflow="fold")  # the seed, at its end, tells runs apart
        table.add_column("", width=8 if self._console.width < 100 else 16)
        for name, width in _WIDTHS.items():
            table.add_column(name, justify="right", no_wrap=True, min_width=width)
        for label, event in self._events.items():
            table.add_row(
                Text(label),
                ProgressBar(total=1.0, completed=event.done),
                f"{event.task + 1}/{event.tasks}",
                f"{_epoch(event)}/{event.epochs}",
                _percent(event.acc),
                f"{event.examples_per_s:,.0f}",
                self._clocks[label].left(),
            )
        return Group(table, Text(f"{self._done} of {self._total} runs done"))


class Clock:
    """Estimates the time left from the share that is done and when it was less.

    Resumed runs begin with a share that cost nothing, so the estimate counts from the first
    share seen.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    def see(self, done: float) -> None:
        """Take down the share that is done now."""
        self._last = time.monotonic(), done
        self._first = self._first or self._last

    def left(self) -> str:
        """Hours, minutes and seconds that are left, `-:--` while nothing is known."""
        assert self._first is not None, "see a share first"
        elapsed, gained = self._last[0] - self._first[0], self._last[1] - self._first[1]
        if gained <= 0:
            return "-:--"
        seconds = round(elapsed / gained * (1 - self._last[1]))
        minutes, hours = seconds // 60 % 60, seconds // 3600
        return f"{f'{hours}:{minutes:02}' if hours else minutes}:{seconds % 60:02}"


def describe(event: ProgressEvent) -> str:
    """Where a run stands, in one line; tasks and epochs are counted from one."""
    acc = "" if event.acc is None else f", accuracy {_percent(event.acc)}"
    return (
        f"task {event.task + 1}/{event.tasks}, epoch {_epoch(event)}/{event.epochs}, "
        f"{event.examples_per_s:,.0f} examples/s{acc}"
    )


def _epoch(event: ProgressEvent) -> int:
    """The epoch at work, counted from one."""
    return min(event.epoch + 1, event.epochs)


def _percent(acc: float | None) -> str:
    return "-" if acc is None else f"{100 * acc:.1f} %"


def stderr_console() -> Console:
    """A console on stderr, which leaves stdout to results."""
    from rich.console import Console

    return Console(file=sys.stderr)


def make_progress() -> Progress:
    """What suits stderr: a live line on a terminal, plain lines elsewhere."""
    console = stderr_console()
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)
