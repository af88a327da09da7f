"""The part of the run loop that lives inside Lightning's fit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clearn.errors import UserError

if TYPE_CHECKING:
    from clearn.run.feed import Chunk
    from clearn.run.lightning import TrainerFactory
    from clearn.run.loop import Run


class TaskLoop(Callback):
    """Moves the run's position, starts and ends tasks, logs, checkpoints and watches the loss.

    Args:
        run: The run that is being fitted.
        tasks: Indices of the tasks of this fit.
        trainers: Knows the user's callbacks, whose state goes into the checkpoints.
        resumed: The checkpoint this fit continues from inside a task, or None.
    """

    def __init__(
        self,
        run: Run,
        tasks: range,
        trainers: TrainerFactory,
        resumed: dict[str, Any] | None,
    ) -> None:
        self._run = run
        self._tasks = tasks
        self._trainers = trainers
        self._resumed = resumed
        self._saved_at = time.monotonic()
        self._losses: list[torch.Tensor] = []
        self._logged_step = run.position.step
        self._best = (-1.0, 0)  # validation accuracy, epochs since

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizers, made a moment ago, the state they had in the checkpoint."""
        if self._resumed is None:
            return
        state = self._resumed["fit"]
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for config, saved in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
            config.scheduler.load_state_dict(saved)
        trainer.precision_plugin.load_state_dict(state["precision"])
        self._trainers.load_callbacks(state["callbacks"])
        self._best = tuple(state["best"])
        self._logged_step = state["logged_step"]
        self._losses = _unstack(state["losses"], pl_module.device)
        self._run.strategy.tracked = {
            name: _unstack(values, pl_module.device) for name, values in state["tracked"].items()
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back from Lightning, which would raise before the checkpoint is written."""
        self._run.stop.listen()

    def fit_state(self, trainer: Trainer) -> dict[str, Any]:
        """What a checkpoint inside a task holds beyond the strategy."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin.state_dict(),
            "callbacks": self._trainers.callbacks_state(),
            "best": list(self._best),
            "logged_step": self._logged_step,
            "losses": _stack(self._losses),
            "tracked": {name: _stack(v) for name, v in self._run.strategy.tracked.items()},
        }

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, torch.Tensor],
        batch: Chunk,
        batch_idx: int,
    ) -> None:
        """Advance the position past the chunk; log, look for a bad loss, save when it is time."""
        run, here = self._run, self._run.position
        if (batch.task, batch.epoch) < (here.task, here.epoch):
            return  # an epoch of a task that was ended before it
        losses = outputs["losses"]
        self._check_finite(losses)
        count, size = len(run.examples), run.training.batch_size
        total = -(-count // size)
        last = total if batch.last is None else batch.last
        here.batch = last
        here.step += last - batch.first
        here.examples_seen += min(last * size, count) - batch.first * size
        self._losses += losses.unbind()
        if here.step - self._logged_step >= run.training.log_every:
            self._log()
        if last == total:
            self._end_epoch(trainer)
        run.show_progress(total)
        if here.epoch < run.training.epochs and not trainer.should_stop:
            waited = time.monotonic() - self._saved_at
            if waited >= 60 * run.training.checkpoint_minutes or run.stop.signum is not None:
                run.save(self.fit_state(trainer), phase="train")
                self._saved_at = time.monotonic()
                run.stop.raise_if_set()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the last task of this fit, while the module is still on its device."""
        self._log()
        self._run.end_task()
        self._run.save(self.fit_state(trainer), phase="evaluate")

    def _end_epoch(self, trainer: Trainer) -> None:
        run, here = self._run, self._run.position
        here.epoch += 1
        here.batch = 0
        valid = None
        if run.strategy.task.validation is not None and len(self._tasks) == 1:
            valid = run.validate(run.strategy.task.validation)
            run.tracker.log_metrics({"valid/accuracy": valid.accuracy, "valid/loss": valid.loss})
        for config in trainer.lr_scheduler_configs:
            if config.interval == "epoch" and here.epoch % config.frequency == 0:
                run.strategy.lr_scheduler_step(
                    config.scheduler,
                    valid.accuracy if valid and config.reduce_on_plateau else None,
                )
        done = run.strategy.end_epoch(run.strategy.task, valid)
        if run.training.patience is not None and valid is not None:
            best, waited = self._best
            accuracy = valid.accuracy
            self._best = (accuracy, 0) if accuracy > best else (best, waited + 1)
            done |= self._best[1] >= run.training.patience
        last = here.task + 1 == self._tasks.stop
        trainer.should_stop = done and last
        if (done or here.epoch == run.training.epochs) and not last:
            run.end_task()
            here.next_task()
            run.begin_task()
            trainer.strategy.setup_optimizers(trainer)  # fresh, as a new fit would make them

    def _check_finite(self, losses: torch.Tensor) -> None:
        """One synchronisation per chunk."""
        finite = torch.isfinite(losses)
        if bool(finite.all()):
            return
        here, index = self._run.position, int((~finite).nonzero()[0])
        raise UserError(
            f"loss is {losses[index].item()} in task {here.task}, epoch {here.epoch}, batch "
            f"{here.batch + index} (step {here.step + index}); the last good "
            "checkpoint is kept. Lower strategy.lr, set training.clip_grad, or look at the data"
        )

    def _log(self) -> None:
        """Write the means since the last time; synchronises."""
        strategy = self._run.strategy
        means = {f"train/{name}": values for name, values in strategy.tracked.items()}
        if self._losses:
            means["train/loss"] = self._losses
        if means:
            self._run.tracker.log_metrics({n: _stack(v).mean().item() for n, v in means.items()})
        self._losses, strategy.tracked = [], {}
        self._logged_step = self._run.position.step


def _stack(values: list[torch.Tensor]) -> torch.Tensor:
    """Scalars as one tensor `[N]`, which a checkpoint holds more cheaply."""
    return torch.stack(values) if values else torch.empty(0)


def _unstack(values: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    return list(values.to(device).unbind())
