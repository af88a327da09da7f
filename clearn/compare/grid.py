"""The runs of an experiment, in local processes."""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from clearn.compare.experiment import Cell, Experiment, read_experiment
from clearn.compare.workers import Ended, Resolved, Worker, Workers, resolve
from clearn.errors import UserError
from clearn.files import write_atomic
from clearn.progress import ProgressEvent, RunsProgress
from clearn.record import Record, RecordInUse

_POLL_SECONDS = 0.5


def run_experiment(path: Path, *, jobs: int | None = None, folder: Path | None = None) -> Path:
    """Run what is not finished of an experiment, then write its report.

    Finished runs are skipped and broken ones resumed; a run that another process works on is left
    to it and collected at the end. Each run has its own number of threads (`threads` of the
    experiment, 1 by default), so that numbers on the CPU do not depend on `jobs`.

    Args:
        path: The experiment's YAML file.
        jobs: Runs at a time, >= 1; by default as many as there are cores for.
        folder: Where the results go; by default as `read_experiment` says.

    Returns:
        The folder of the results.

    Raises:
        UserError: The experiment is not valid, in which case no run was started; or runs failed,
            after all others are finished and the report on them is written.
        Interrupted: SIGINT or SIGTERM came; all runs can be resumed.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs: {jobs} is not valid: expected an integer >= 1")
    experiment = read_experiment(path, folder)
    total = len(experiment.cells)
    left = [cell for cell in experiment.cells if not Record(cell.folder).finished]
    jobs = min(jobs or max(1, _cores() // experiment.threads), len(left))
    spread = not any("devices" in cell.config.get("trainer", {}) for cell in experiment.cells)
    progress = RunsProgress(total, done=total - len(left))
    with closing(progress), Workers(jobs, experiment.threads, spread=spread) as workers:
        from clearn.compare.report import write_report  # while they import torch

        configs = _checked(experiment, workers.idle[0].resolve if left else resolve)
        write_atomic(experiment.folder / "experiment.yaml", experiment.text)
        failures = Grid(left, configs, workers, progress).run()
    if len(failures) < total:
        write_report(experiment.folder)
    if failures:
        raise UserError(_failed(failures, total))
    return experiment.folder


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(
    experiment: Experiment, resolve: Callable[[list[dict[str, Any]]], list[Resolved]]
) -> dict[Cell, dict[str, Any]]:
    """The resolved config of every cell, each compared with the record that is there already.

    Runs that differ in their seed alone are resolved once.
    """
    kinds = {(cell.strategy, cell.stream, cell.order): cell for cell in experiment.cells}
    answers = dict(zip(kinds, resolve([cell.config for cell in kinds.values()]), strict=True))
    resolved = {}
    for cell in experiment.cells:
        answer = answers[cell.strategy, cell.stream, cell.order]
        try:
            if isinstance(answer, UserError):
                raise answer
            resolved[cell] = answer | {"seed": cell.seed}
            if (cell.folder / "config.yaml").exists():
                Record(cell.folder).create(resolved[cell])  # refuses another config
        except UserError as error:
            raise UserError(f"{experiment.path}: {cell}: {error}") from error
    return resolved


class Grid:
    """The runs that are left, handed out to workers until none is.

    Args:
        left: The cells to run.
        configs: Their resolved configs.
        workers: Processes to run them.
        progress: Where to show how they go.
    """

    def __init__(
        self,
        left: Sequence[Cell],
        configs: Mapping[Cell, dict[str, Any]],
        workers: Workers,
        progress: RunsProgress,
    ) -> None:
        self._queue = deque(left)
        self._configs = configs
        self._workers = workers
        self._progress = progress
        self._failures: dict[Cell, str] = {}

    def run(self) -> dict[Cell, str]:
        """Run all; returns why in one line for each that failed.

        Raises:
            Interrupted: SIGINT or SIGTERM came; every run has written a checkpoint.
        """
        from clearn.run.signals import catch_signals

        with catch_signals() as stop:
            while self._queue or self._workers.busy:
                if stop.signum is not None:
                    self._stop()
                    stop.raise_if_set()
                self._hand_out()
                self._listen()
        return self._failures

    def _hand_out(self) -> None:
        for worker in self._workers.idle:
            cell = self._next()
            if cell is None:
                return
            worker.start(cell, self._configs[cell])

    def _next(self) -> Cell | None:
        """The next cell that no other process works on, or has finished meanwhile."""
        for _ in range(len(self._queue)):
            cell = self._queue.popleft()
            record = Record(cell.folder)
            try:
                with record.lock():
                    finished = record.finished
            except RecordInUse:
                self._queue.append(cell)
                continue
            if not finished:
                return cell
            self._progress.finish(str(cell), "finished by another process")
        return None

    def _listen(self) -> None:
        """Wait a little for what the workers have to say."""
        if not self._workers.busy:
            if self._queue:
                time.sleep(_POLL_SECONDS)
            return
        for worker, said in self._workers.listen(_POLL_SECONDS):
            cell = worker.cell
            assert cell is not None, "only a worker with a cell speaks"
            if isinstance(said, ProgressEvent):
                self._progress.update(str(cell), said)
            elif isinstance(said, str):
                self._progress.message(f"{cell}: {said}")
            else:
                self._ended(worker, cell, said)

    def _ended(self, worker: Worker, cell: Cell, ended: Ended) -> None:
        worker.cell = None
        if ended.outcome in ("in use", "stopped"):  # by a signal to this worker, or to all
            self._queue.append(cell)
        elif ended.outcome in ("failed", "died"):
            self._failures[cell] = ended.reason
            self._progress.finish(str(cell), f"failed: {ended.reason}")
            if ended.outcome == "died":
                self._workers.replace(worker)
        elif ended.outcome == "done":
            self._progress.finish(str(cell))

    def _stop(self) -> None:
        """Let every run write its checkpoint."""
        self._progress.message("stopping; every run writes a checkpoint first")
        self._workers.terminate()
        while self._workers.busy:
            self._listen()


def _failed(failures: Mapping[Cell, str], total: int) -> str:
    """One line that names the failed runs, those with one reason together."""
    reasons = defaultdict(list)
    for cell, reason in failures.items():
        reasons[reason].append(str(cell))
    named = "; ".join(f"{', '.join(cells)}: {reason}" for reason, cells in reasons.items())
    return f"{len(failures)} of {total} runs failed: {named}"
