"""The loop over tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clearn.chart import plain_charts
from clearn.errors import UserError
from clearn.progress import NullProgress, Progress, ProgressEvent
from clearn.record import Record
from clearn.run.checkpoint import Checkpoints
from clearn.run.description import describe_run
from clearn.run.evaluate import accuracy, validate
from clearn.run.feed import Feed
from clearn.run.lightning import TrainerFactory, quiet_lightning
from clearn.run.result import Result
from clearn.run.signals import StopRequest, catch_signals
from clearn.run.training import Training
from clearn.seeding import Generators
from clearn.tracking import Position, Tracker, build_loggers

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import Logger

    from clearn.examples import Examples
    from clearn.strategy import Strategy, Validation
    from clearn.stream import Stream

_PROGRESS_SECONDS = 0.5


class Run:
    """One strategy learns one stream under one seed.

    With a folder the run keeps a record there and continues from its last good checkpoint when
    there is one; on the CPU the result is bit-identical to that of an uninterrupted run. A run
    object is used once.

    Args:
        strategy: A fresh strategy.
        stream: The stream to learn.
        training: How to train and evaluate.
        seed: Drives all random draws of the run, except the net's initial weights and what the
            stream drew when they were made.
        folder: The record's folder, or None to keep nothing.
        config: The resolved configuration, kept in the record; when missing, a description of the
            arguments. A record goes on only with an equal one.
        trainer: Keyword arguments for Lightning's `Trainer`: precision, accelerator, callbacks.
        loggers: Where to mirror the record: "wandb", "csv", "tensorboard", or as
            `clearn.tracking.build_loggers` takes them, or Lightning loggers.
        progress: Where to show progress.

    Raises:
        UserError: An argument does not fit the others.
    """

    examples: Examples
    """What the current task is trained on."""

    def __init__(
        self,
        strategy: Strategy,
        stream: Stream,
        *,
        training: Training | None = None,
        seed: int = 0,
        folder: Path | str | None = None,
        config: Mapping[str, Any] | None = None,
        trainer: Mapping[str, Any] | None = None,
        loggers: Sequence[Logger | str | Mapping[str, Any]] = (),
        progress: Progress | None = None,
    ) -> None:
        self.strategy = strategy
        self.stream = stream
        self.training = training or Training()
        self.generators = Generators(seed)
        self.record = None if folder is None else Record(Path(folder))
        self.config = dict(
            config or describe_run(strategy, stream, self.training, trainer or {}, seed)
        )
        self.progress: Progress = progress or NullProgress()
        self.position = Position()
        mirrors = build_loggers(
            loggers,
            folder=self.record.folder if self.record else None,
            name=f"{type(strategy).__name__}-{stream.name}-seed{seed}",
            group=None,
            config=self.config,
        )
        self.tracker = Tracker(self.record.steps if self.record else None, mirrors)
        self.tracker.position = self.position
        self.stop = StopRequest()
        self.result = Result.empty(
            [len(task.test) for task in stream], self.record.folder if self.record else None
        )
        self._new_trainer = TrainerFactory(self, trainer or {})
        self._checkpoints = Checkpoints(self.record.folder / "checkpoints") if self.record else None
        self._clock = 0.0
        self._shown = (0.0, 0)
        self._rate = 0.0
        if self.training.patience is not None and any(t.validation is None for t in stream):
            raise UserError(
                f"training.patience: {self.training.patience} needs a validation share; "
                "set stream.validation, for example to 0.1"
            )

    def fit(self) -> Result:
        """Learn the stream to its end; return at once when the record is finished already.

        Raises:
            Interrupted: SIGTERM or SIGINT came; a checkpoint has been written.
            UserError: The loss became NaN or infinite, the record is in use, cannot be written, or
                is that of another run.
        """
        with ExitStack() as stack:
            if self.record is not None:
                stack.enter_context(self.record.lock())
                self.record.create(self.config)
                if self.record.finished:
                    self.result.load_state_dict(self.record.load_result())
                    return self.result
            self.stop = stack.enter_context(catch_signals())
            stack.enter_context(quiet_lightning())
            status = "failed"
            try:
                self.tracker.begin(self.config)
                self._learn()
                self._finish()
                status = "success"
            finally:
                self.tracker.close(status)
                self.progress.close()
        return self.result

    # The stream

    def _learn(self) -> None:
        self.generators.seed_global()
        self.strategy.clip_grad = self.training.clip_grad
        self.strategy.epochs = self.training.epochs
        self.strategy.prepare(self.stream, self.generators)
        resumed = self._load()
        self._shown = time.monotonic(), self.position.examples_seen
        if resumed is None:
            self._place(self._new_trainer(range(1), None))
            self._evaluate_untrained()
        elif resumed["phase"] == "evaluate":
            self._place(self._new_trainer(range(1), None))
            self._new_trainer.load_callbacks(resumed["fit"]["callbacks"])
            self._evaluate()
            self.position.next_task()
            resumed = None
        while self.position.task < len(self.stream):
            every = self.training.evaluate_every
            first = self.position.task // every * every
            self._fit(range(first, min(first + every, len(self.stream))), resumed)
            resumed = None
            self._evaluate()
            self.position.next_task()

    def _fit(self, tasks: range, resumed: dict[str, Any] | None) -> None:
        """Train on `tasks`, or what is left of them, inside one Lightning fit."""
        trainer = self._new_trainer(tasks, resumed)
        self._place(trainer)
        self._clock = time.perf_counter()
        self._shown = time.monotonic(), self.position.examples_seen
        if resumed is None:
            self.begin_task()
        feed = Feed(
            self.position,
            tasks,
            epochs=self.training.epochs,
            batch_size=self.training.batch_size,
            chunk_size=self.training.chunk_size,
            generators=self.generators,
            examples=lambda: self.examples,
            device=self.strategy.device,
        )
        try:
            trainer.fit(self.strategy, train_dataloaders=feed)
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            self.stop.raise_if_set()
            raise
        self.stop.raise_if_set()
        self._place(trainer)  # Lightning moves the module to the CPU when a fit ends

    def begin_task(self) -> None:
        """Tell the strategy that the task at the position begins."""
        self.strategy.task = self.stream[self.position.task]
        self.strategy.begin_task(self.strategy.task)
        self._set_examples()

    def end_task(self) -> None:
        """Tell the strategy that its task has ended; take down seconds and bytes."""
        self.strategy.end_task(self.strategy.task)
        self._take_seconds()
        self.result.bytes.append(self.strategy.bytes_stored())

    def _set_examples(self) -> None:
        task = self.strategy.task
        self.examples = self.strategy.examples(task, self.stream.tasks[: task.index])

    def _take_seconds(self) -> None:
        now = time.perf_counter()
        self.result.train_seconds[self.strategy.task.index] += now - self._clock
        self._clock = now

    def _place(self, trainer: Trainer) -> None:
        self.strategy.to(trainer.strategy.root_device)

    # Evaluation

    def evaluate(
        self, task: int, examples: Examples, check: Callable[[], None] = lambda: None
    ) -> float:
        """Accuracy in [0, 1] on examples of a task, whose id is given in the task scenario.

        Args:
            task: Index of the task.
            examples: What to evaluate on.
            check: Called before every batch; may raise to leave.
        """
        self.strategy.eval()
        try:
            return accuracy(
                self.strategy,
                examples,
                task if self.stream.scenario == "task" else None,
                batch_size=self.training.eval_batch_size,
                check=check,
            )
        finally:
            self.strategy.train()

    def validate(self, examples: Examples) -> Validation:
        """Accuracy and loss of the strategy on validation examples of the current task."""
        self.strategy.eval()
        try:
            return validate(
                self.strategy,
                examples,
                self.strategy.task.index if self.stream.scenario == "task" else None,
                batch_size=self.training.eval_batch_size,
            )
        finally:
            self.strategy.train()

    def _evaluate_untrained(self) -> None:
        started = time.perf_counter()
        for task in self.stream:
            self.result.baseline[task.index] = self.evaluate(
                task.index, task.test, self.stop.raise_if_set
            )
        self.result.eval_seconds[0] += time.perf_counter() - started

    def _evaluate(self) -> None:
        """Fill the row of the matrix for the task just learned."""
        self.show_progress(0, force=True)  # before time goes into tests
        started, row = time.perf_counter(), self.position.task
        count = len(self.stream) if self.training.evaluate == "all" else row + 2
        for task in self.stream.tasks[:count]:
            self.result.matrix[row, task.index] = self.evaluate(
                task.index, task.test, self.stop.raise_if_set
            )
        self.result.eval_seconds[row] += time.perf_counter() - started
        seen = self.result.matrix[row, : row + 1]
        scores = {f"test/task_{j}": float(score) for j, score in enumerate(seen)}
        self.tracker.log_metrics({"test/accuracy": self.result.seen_accuracy(row), **scores})
        if self.record is not None:
            self.record.write_matrix(self.result.matrix)
            self.record.write_bytes(self.result.bytes)
        self.show_progress(0, force=True)

    # Checkpoints and the record

    def save(self, fit: dict[str, Any], phase: Literal["train", "evaluate"]) -> None:
        """Write a checkpoint from which this run continues bit-identically.

        Args:
            fit: The state of optimizers, schedulers and callbacks.
            phase: What comes next: training on the task at the position, or its evaluation.
        """
        if self._checkpoints is None or self.record is None:
            return
        if phase == "train":
            self._take_seconds()
        self._checkpoints.save(
            {
                "phase": phase,
                "position": self.position.state_dict(),
                "strategy": self.strategy.state_dict(),
                "fit": fit,
                "generators": self.generators.state_dict(),
                "result": self.result.state_dict(),
                "steps_offset": self.record.steps.flush(),
            }
        )

    def _load(self) -> dict[str, Any] | None:
        """Continue from the last good checkpoint, if there is one."""
        if self._checkpoints is None or self.record is None:
            return None
        state = self._checkpoints.load()
        self.record.steps.truncate(0 if state is None else state["steps_offset"])
        if state is None:
            return None
        self.position.load_state_dict(state["position"])
        self.result.load_state_dict(state["result"])
        self.strategy.task = self.stream[self.position.task]
        self.strategy.load_state_dict(state["strategy"])
        if state["phase"] == "train":
            self._set_examples()
        self.generators.load_state_dict(state["generators"])  # last: the above may have drawn
        here, epochs = self.position, self.training.epochs
        epoch = f"epoch {min(here.epoch + 1, epochs)}/{epochs}"
        self.progress.message(f"resumed at task {here.task + 1}/{len(self.stream)}, {epoch}")
        return state

    def _finish(self) -> None:
        self.result.extra = self.strategy.metrics()
        self.result.charts = plain_charts(self.strategy.charts(), len(self.stream))
        self.tracker.log_matrix(self.result.matrix)
        self.tracker.log_summary(self.result.metrics)
        self.tracker.log_charts(self.result.charts)
        if self.record is not None:
            exported = self.strategy.export(self.record.folder)
            self.tracker.log_artifacts(self.record.folder, exported)
            self.record.steps.flush()
            self.record.finish(self.result.metrics, self.result.state_dict())
        if self._checkpoints is not None:
            self._checkpoints.finish()

    def show_progress(self, batches: int, *, force: bool = False) -> None:
        """Show where the run stands, at most twice a second unless forced.

        Args:
            batches: Batches in the current epoch.
            force: Show it now.
        """
        now, here = time.monotonic(), self.position
        elapsed, seen = now - self._shown[0], here.examples_seen - self._shown[1]
        if elapsed < _PROGRESS_SECONDS and not force:
            return
        if seen > 0 and elapsed > 0:
            self._rate = seen / elapsed
        done = here.task * self.training.epochs + here.epoch + here.batch / max(batches, 1)
        event = ProgressEvent(
            task=here.task,
            tasks=len(self.stream),
            epoch=here.epoch,
            epochs=self.training.epochs,
            examples_per_s=self._rate,
            acc=self._accuracy_so_far(),
            done=done / (len(self.stream) * self.training.epochs),
        )
        self._shown = now, here.examples_seen
        self.progress.update(event)
        if self.record is not None:
            self.record.write_status(event)

    def _accuracy_so_far(self) -> float | None:
        evaluated = [task for task, row in enumerate(self.result.matrix) if row[0] == row[0]]
        return self.result.seen_accuracy(evaluated[-1]) if evaluated else None
