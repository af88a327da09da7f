"""One tracker for a whole run, which owns its step axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clearn.record import StepLog


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        task: Index of the current task.
        epoch: Epochs done of the current task.
        batch: Batches done of the current epoch.
        step: Steps done in the whole run.
        examples_seen: Examples trained on in the whole run.
    """

    task: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    examples_seen: int = 0

    def next_task(self) -> None:
        """Move to the start of the next task."""
        self.task += 1
        self.epoch = self.batch = 0

    def state_dict(self) -> dict[str, int]:
        """The attributes by name."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)


class Tracker(Logger):
    """Stub."""

    def __init__(self, steps: StepLog | None, loggers: Sequence[Logger] = ()) -> None:
        super().__init__()
        self.position = Position()
        self._steps = steps
        self._loggers = list(loggers)

    @property
    def name(self) -> str:
        return "clearn"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._steps is not None:
            self._steps.write(self.position, metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_matrix(self, matrix: NDArray[np.float64]) -> None:
        pass

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        pass

    def log_artifacts(self, folder: Path) -> None:
        pass

    def close(self, status: str) -> None:
        pass
