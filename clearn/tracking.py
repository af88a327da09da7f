"""One tracker for a whole run: it owns the step axis and mirrors the record to other loggers."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from clearn.errors import UserError, unknown_name
from clearn.wandb_mirror import WandbMirror, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clearn.chart import Chart
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

    def axes(self) -> dict[str, int]:
        """What every logged value is placed by, without the step."""
        return {"task": self.task, "epoch": self.epoch, "examples_seen": self.examples_seen}

    def state_dict(self) -> dict[str, int]:
        """The attributes by name."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)


class Tracker(Logger):
    """The one logger all trainers of a run are given.

    Lightning and the user's callbacks log through it as through any logger. Each trainer counts
    its steps from zero and finalizes its loggers when a fit ends; the tracker puts every value at
    the run's own position instead, and ends the loggers once, in `close`.

    The record is the truth: what cannot be written there stops the run. A mirror that fails is
    left out from then on, with one warning.

    Args:
        steps: The record's log, or None without a record.
        loggers: Lightning loggers that mirror it.
    """

    position: Position

    def __init__(self, steps: StepLog | None, loggers: Sequence[Logger] = ()) -> None:
        super().__init__()
        self.position = Position()
        self.loggers = list(loggers)
        self._steps = steps
        self._hyperparams: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """The tool's name."""
        return "clearn"

    @property
    def version(self) -> str:
        """Empty: a run is known by its folder."""
        return ""

    @property
    def save_dir(self) -> str | None:
        """The record's folder, where Lightning's callbacks put what they write."""
        return None if self._steps is None else str(self._steps.path.parent)

    @property
    def experiment(self) -> Any:
        """The native object of the first mirror (W&B's run, say), None without mirrors."""
        return self.loggers[0].experiment if self.loggers else None  # type: ignore[attr-defined]

    def begin(self, config: Mapping[str, Any]) -> None:
        """Let the mirrors start and take down the run's configuration, before it trains."""

        def log(logger: Logger) -> None:
            if isinstance(logger, WandbMirror):
                logger.begin()
            else:
                logger.log_hyperparams(dict(config))

        self._mirror(log)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values at the run's position; `step`, which restarts with each fit, is ignored."""
        axes = self.position.axes()
        kept = {k: float(v) for k, v in metrics.items() if k not in axes and k != "step"}
        if not kept:
            return
        if self._steps is not None:
            self._steps.write(self.position, kept)
        self._mirror(lambda logger: logger.log_metrics(kept | axes, self.position.step))

    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace, *args: Any, **options: Any
    ) -> None:
        """Mirror parameters the strategy saved; Lightning repeats them with every fit."""
        given = vars(params) if isinstance(params, Namespace) else dict(params)
        new = {k: v for k, v in given.items() if (k, v) not in self._hyperparams.items()}
        if new:
            self._hyperparams |= new
            self._mirror(lambda logger: logger.log_hyperparams(new))

    def log_matrix(self, matrix: NDArray[np.float64]) -> None:
        """Mirror the accuracy matrix `[T, T]` to loggers that show tables and images."""
        step, axes = self.position.step, self.position.axes() | {"task": len(matrix) - 1}
        self._mirror(lambda logger: logger.log_matrix(matrix, step, axes), WandbMirror)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Mirror the summary of a finished run."""
        defined = {name: value for name, value in metrics.items() if value == value}

        def log(logger: Logger) -> None:
            if isinstance(logger, WandbMirror):
                logger.log_summary(defined)
            else:
                summary = {f"summary/{name}": value for name, value in defined.items()}
                logger.log_metrics(summary, self.position.step)

        self._mirror(log)

    def log_charts(self, charts: Mapping[str, Chart]) -> None:
        """Mirror the strategy's own charts to loggers that show tables."""
        if charts:
            self._mirror(lambda logger: logger.log_charts(charts, self.position.step), WandbMirror)

    def log_artifacts(self, folder: Path, exported: Sequence[Path] = ()) -> None:
        """Mirror files of a record to loggers that keep artifacts.

        Args:
            folder: The record's; its last checkpoint is mirrored.
            exported: What the strategy wrote.
        """
        checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"))
        if checkpoints:
            self._mirror(lambda logger: logger.log_checkpoint(checkpoints[-1]), WandbMirror)
        for path in exported:
            self._mirror(partial(WandbMirror.log_file, path=path), WandbMirror)

    def save(self) -> None:
        """Let the mirrors write what they hold back."""
        self._mirror(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        """Called by Lightning at the end of every fit, which does not end the run."""
        self.save()

    def close(self, status: str) -> None:
        """End the mirrors; `status` is "success" or "failed"."""
        self._mirror(lambda logger: logger.finalize(status))
        self._mirror(lambda logger: logger.close(status), WandbMirror)

    def _mirror(self, call: Callable[[Any], None], kind: type[Logger] = Logger) -> None:
        for logger in [each for each in self.loggers if isinstance(each, kind)]:
            self._attempt(call, logger)

    def _attempt(self, call: Callable[[Any], None], logger: Logger) -> None:
        try:
            call(logger)
        except Exception as error:
            self.loggers.remove(logger)
            warnings.warn(
                f"{type(logger).__name__} failed and is left out from here on; the record is "
                f"complete without it ({type(error).__name__}: {first_line(error)})",
                stacklevel=4,
            )
            if isinstance(logger, WandbMirror):
                with suppress(Exception):
                    logger.close("failed")


def build_loggers(
    specs: Sequence[Logger | str | Mapping[str, Any]],
    *,
    folder: Path | None,
    name: str,
    group: str | None,
    config: Mapping[str, Any],
) -> list[Logger]:
    """Make the loggers a configuration names; none of them writes before it is used.

    Args:
        specs: Each "wandb", "csv" or "tensorboard", the same with options
            (`{name: wandb, project: mine}`), or any Lightning logger
            (`{class_path: package.module.Class, init_args: {...}}`), or one that is made.
        folder: The record, into which the named ones write; None for the working directory.
        name: What the run is called.
        group: The experiment it belongs to.
        config: The run's configuration.

    Raises:
        UserError: A logger is unknown, or does not take its options.
    """
    known: dict[str, Callable[..., Logger]] = {
        "wandb": lambda **options: WandbMirror(
            folder, **({"name": name, "group": group} | options), config=config
        ),
        "csv": lambda **options: CSVLogger(folder or ".", **({"name": "csv"} | options)),
        "tensorboard": lambda **options: TensorBoardLogger(
            folder or ".", **({"name": "tensorboard"} | options)
        ),
    }
    loggers = []
    for index, spec in enumerate([specs] if isinstance(specs, str) else specs):
        if isinstance(spec, Logger):
            loggers.append(spec)
            continue
        field = f"loggers.{index}"
        if not isinstance(spec, str | Mapping):
            raise UserError(f"{field}: a {type(spec).__name__} is no Lightning logger")
        options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
        if "class_path" in options:
            make, options = _by_path(options["class_path"], field), options.get("init_args") or {}
        else:
            kind = str(options.pop("name", None))
            if kind not in known:
                raise unknown_name(field, kind, known)
            make = known[kind]
        try:
            loggers.append(make(**options))
        except (TypeError, ModuleNotFoundError) as error:
            raise UserError(f"{field}: {spec!r} cannot be made: {error}") from error
    return loggers


def _by_path(path: str, field: str) -> Callable[..., Logger]:
    from importlib import import_module

    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{field}.class_path: {path!r} cannot be imported ({error}); expected "
            "package.module.Class"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Logger)):
        raise UserError(f"{field}.class_path: {path!r} is not a Lightning logger")
    return found
