"""How a run builds its Lightning trainers."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors import callback_connector as connector

from clearn.errors import UserError
from clearn.run.callback import TaskLoop

if TYPE_CHECKING:
    from clearn.run.loop import Run

_OWNED = {
    "max_epochs": "set training.epochs",
    "max_steps": "set training.epochs",
    "logger": "name it under loggers",
    "gradient_clip_val": "set training.clip_grad",
    "enable_checkpointing": "set training.checkpoint_minutes",
    "accumulate_grad_batches": "set training.batch_size",
    **dict.fromkeys(
        ("limit_train_batches", "overfit_batches", "fast_dev_run"),
        "set training.epochs, or stream.train_share or stream.keep_tasks",
    ),
    "max_time": "stop the run with SIGTERM and resume it later",
}
_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
    "use_distributed_sampler": False,
}


if not torch.cuda.is_available():
    # Adam and others ask in every step whether there is a device. Lightning has torch ask NVML,
    # which it loads anew each time; where that knows of none, asking the runtime costs nothing.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


class NoProfiler(PassThroughProfiler):
    """Measures nothing; Lightning's own that does makes a generator for each of its hooks."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """A context that does nothing."""
        return _NOTHING


_NOTHING = nullcontext()
_LOAD = "_load_external_callbacks"
_load_once = cache(getattr(connector, _LOAD))


class TrainerFactory:
    """Builds one Trainer per fit from the user's options and the run's own callback.

    Args:
        run: The run the trainers work for.
        options: The user's keyword arguments for `Trainer`.

    Raises:
        UserError: An option belongs to the run loop, or asks for more than one device.
    """

    def __init__(self, run: Run, options: Mapping[str, Any]) -> None:
        self._run = run
        self._options = {**_DEFAULTS, "profiler": NoProfiler(), **options}
        for name, instead in _OWNED.items():
            if name in options:
                raise UserError(f"trainer.{name}: {options[name]!r} belongs to the run; {instead}")
        devices = self._options["devices"]
        listed = isinstance(devices, list) and len(devices) == 1
        if devices not in (1, "1", "auto") and not listed:
            raise UserError(
                f"trainer.devices: {devices!r} is not valid: a run uses one device (1, or a list "
                "with one index); use the others for further runs of `clearn compare --jobs`"
            )
        if devices == "auto":
            self._options["devices"] = 1
        callbacks = self._options.pop("callbacks", None) or []
        self._callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)

    def __call__(self, tasks: range, resumed: dict[str, Any] | None) -> Trainer:
        """A Trainer for one fit over `tasks`, continuing inside one of them if `resumed`."""
        single = len(tasks) == 1
        trainer = Trainer(
            **self._options,
            max_epochs=self._run.training.epochs if single else 1,
            logger=self._run.tracker,
            enable_checkpointing=False,
            callbacks=[*self._callbacks, TaskLoop(self._run, tasks, self, resumed)],
        )
        if resumed is not None and single:
            # Callbacks see the true epoch, and Lightning stops after the last.
            epoch = self._run.position.epoch
            done = dict.fromkeys(("ready", "started", "processed", "completed"), epoch)
            trainer.fit_loop.epoch_progress.current.load_state_dict(done)
        return trainer

    def callbacks_state(self) -> dict[str, Any]:
        """The state of the user's callbacks, which serve all fits of a run."""
        return {callback.state_key: callback.state_dict() for callback in self._callbacks}

    def load_callbacks(self, state: Mapping[str, Any]) -> None:
        """Give the user's callbacks the state they had; one that was not there begins anew."""
        for callback in self._callbacks:
            if callback.state_key in state:
                callback.load_state_dict(state[callback.state_key])


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning from announcing devices and tips, and from a known warning, for every task.

    Nor does each Trainer look for callbacks of other distributions anew: that reads the entry
    points of all that is installed. Those found serve all runs of the process.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    look_up = getattr(connector, _LOAD)
    setattr(connector, _LOAD, _load_once)
    try:
        with warnings.catch_warnings():
            # torch >= 2.12 deprecates a class that Lightning's data loading makes.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            # A strategy that leaves a part of its net in eval mode means to.
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
            yield
    finally:
        setattr(connector, _LOAD, look_up)
        logger.setLevel(level)
