"""Showing where a run stands."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_SECONDS = 10.0


@dataclass(frozen=True)
class ProgressEvent:
    """Where a run stands.

    Attributes:
        task: Index of the current task.
        tasks: Tasks of the stream.
        epoch: Epochs done of the current task.
        epochs: Epochs per task.
        examples_per_s: Examples trained per second since the last event.
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
