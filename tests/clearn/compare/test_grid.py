"""Handing out runs: with workers that are threads, and once with real processes."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clearn.compare.experiment import Cell, Experiment, read_experiment
from clearn.compare.grid import Grid, run_experiment
from clearn.compare.workers import Ended
from clearn.errors import UserError
from clearn.progress import ProgressEvent
from clearn.record import Record, RecordInUse
from clearn.run import Interrupted

Learn = Callable[[Cell], Ended]
EVENT = ProgressEvent(0, 5, 0, 1, 100.0, 0.5, 0.1)


LEARNED: Counter[Path] = Counter()
"""How often `finish` did the work of each record."""


class ThreadWorker:
    """What `Worker` does, in a thread and with a fake run."""

    def __init__(self, said: queue.Queue[Any], learn: Learn) -> None:
        self._said, self._learn = said, learn
        self.cell: Cell | None = None

    def start(self, cell: Cell, config: Any) -> None:
        assert config == {"of": str(cell)}
        self.cell = cell
        threading.Thread(target=self._work, args=(cell,)).start()

    def _work(self, cell: Cell) -> None:
        self._said.put((self, EVENT))
        self._said.put((self, "resumed"))
        self._said.put((self, self._learn(cell)))


class ThreadWorkers:
    def __init__(self, count: int, learn: Learn) -> None:
        self._said: queue.Queue[Any] = queue.Queue()
        self._learn = learn
        self._workers = [ThreadWorker(self._said, learn) for _ in range(count)]
        self.terminated = threading.Event()
        self.most = 0

    @property
    def idle(self) -> list[ThreadWorker]:
        return [worker for worker in self._workers if worker.cell is None]

    @property
    def busy(self) -> list[ThreadWorker]:
        busy = [worker for worker in self._workers if worker.cell is not None]
        self.most = max(self.most, len(busy))
        return busy

    def listen(self, seconds: float) -> list[Any]:
        try:
            return [self._said.get(timeout=seconds)]
        except queue.Empty:
            return []

    def replace(self, worker: ThreadWorker) -> None:
        self._workers[self._workers.index(worker)] = ThreadWorker(self._said, self._learn)

    def terminate(self) -> None:
        self.terminated.set()


class Shown:
    """What `RunsProgress` was told."""

    def __init__(self) -> None:
        self.updates: list[str] = []
        self.messages: list[str] = []
        self.finished: dict[str, str] = {}

    def update(self, label: str, event: ProgressEvent) -> None:
        assert event == EVENT
        self.updates.append(label)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def finish(self, label: str, outcome: str = "finished") -> None:
        assert label not in self.finished
        self.finished[label] = outcome


def finish(cell: Cell) -> Ended:
    """A run that takes no time."""
    record = Record(cell.folder)
    try:
        with record.lock():
            if not record.finished:
                time.sleep(0.01)
                record.finish({"acc": 1.0}, {})
                LEARNED[cell.folder] += 1
    except RecordInUse:
        return Ended("in use")
    return Ended("done")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(**fields: Any) -> Path:
        base = {
            "baseline": "Naive",
            "seeds": [0, 1],
            "streams": {"SplitDigits": {}},
            "strategies": {"Naive": {}, "ER": {}, "Joint": {}},
        }
        path = tmp_path / "experiments/tiny.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(base | fields, sort_keys=False))
        return path

    return write


@pytest.fixture
def experiment(write: Callable[..., Path]) -> Experiment:
    return read_experiment(write())


def grid(experiment: Experiment, learn: Learn, jobs: int = 2) -> tuple[Grid, ThreadWorkers, Shown]:
    configs = {cell: {"of": str(cell)} for cell in experiment.cells}
    workers, shown = ThreadWorkers(jobs, learn), Shown()
    return Grid(experiment.cells, configs, workers, shown), workers, shown  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_every_run_is_learned_once(experiment: Experiment, jobs: int) -> None:
    learned: Counter[str] = Counter()

    def learn(cell: Cell) -> Ended:
        learned[str(cell)] += 1
        return finish(cell)

    made, workers, shown = grid(experiment, learn, jobs)
    assert made.run() == {}
    assert learned == Counter(map(str, experiment.cells))
    assert shown.finished == dict.fromkeys(map(str, experiment.cells), "finished")
    assert set(shown.updates) == set(learned)
    assert f"{experiment.cells[0]}: resumed" in shown.messages
    assert 1 <= workers.most <= jobs


@pytest.mark.parametrize("outcome", ["failed", "died"])
def test_a_failed_run_does_not_stop_the_others(experiment: Experiment, outcome: Any) -> None:
    bad = experiment.cells[1]
    made, workers, shown = grid(
        experiment, lambda cell: Ended(outcome, "no memory") if cell is bad else finish(cell), 1
    )
    before = workers.idle
    assert made.run() == {bad: "no memory"}
    assert all(Record(cell.folder).finished for cell in experiment.cells if cell is not bad)
    assert shown.finished[str(bad)] == "failed: no memory"
    assert (workers.idle == before) == (outcome == "failed")  # a dead process is replaced


def test_a_run_in_use_is_waited_for_while_others_go_on(experiment: Experiment) -> None:
    taken, *others = experiment.cells
    learned = []

    def learn(cell: Cell) -> Ended:
        learned.append(cell)
        if set(learned) == set(others):
            released.set()
        return finish(cell)

    released, held = threading.Event(), threading.Event()

    def other_process() -> None:
        record = Record(taken.folder)
        with record.lock():
            held.set()
            released.wait()
            record.finish({"acc": 1.0}, {})

    thread = threading.Thread(target=other_process)
    thread.start()
    held.wait()
    made, _, shown = grid(experiment, learn, 1)
    assert made.run() == {}
    thread.join()
    assert taken not in learned
    assert shown.finished[str(taken)] == "finished by another process"


def test_a_run_that_the_other_process_gave_up_is_taken_over(experiment: Experiment) -> None:
    taken, *others = experiment.cells
    lock = Record(taken.folder).lock()
    lock.__enter__()
    learned = []

    def learn(cell: Cell) -> Ended:
        learned.append(cell)
        if len(learned) == len(others):
            lock.__exit__(None, None, None)
        return finish(cell)

    made, _, shown = grid(experiment, learn)
    assert made.run() == {}
    assert learned[-1] is taken
    assert shown.finished[str(taken)] == "finished"


def test_a_run_taken_between_look_and_start_goes_back_to_the_queue(experiment: Experiment) -> None:
    refused = []

    def learn(cell: Cell) -> Ended:
        if cell is experiment.cells[0] and not refused:
            refused.append(cell)
            return Ended("in use")
        return finish(cell)

    made, _, _ = grid(experiment, learn)
    assert made.run() == {}
    assert refused
    assert all(Record(cell.folder).finished for cell in experiment.cells)


def test_two_grids_share_the_work(write: Callable[..., Path]) -> None:
    path = write(seeds=list(range(8)))
    grids = [grid(read_experiment(path), finish) for _ in range(2)]
    failures: list[dict[Cell, str]] = []
    threads = [
        threading.Thread(target=lambda made=made: failures.append(made.run()))
        for made, _, _ in grids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [{}, {}]
    cells = read_experiment(path).cells
    assert [LEARNED[cell.folder] for cell in cells] == [1] * len(cells)
    for _, _, shown in grids:
        assert set(shown.finished) == set(map(str, cells))


def test_a_run_that_a_signal_to_its_worker_stopped_goes_on(experiment: Experiment) -> None:
    stopped = []

    def learn(cell: Cell) -> Ended:
        if len(stopped) < 2:
            stopped.append(cell)
            return Ended("stopped")
        return finish(cell)

    made, _, shown = grid(experiment, learn)
    assert made.run() == {}
    assert set(shown.finished) == set(map(str, experiment.cells))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_that_reaches_the_last_run_first_stops_all(
    experiment: Experiment, signum: int
) -> None:
    """Its worker may have said so before the parent looks at its own signal."""
    left = [len(experiment.cells)]

    def learn(cell: Cell) -> Ended:
        left[0] -= 1
        if left[0]:
            return finish(cell)
        time.sleep(0.05)  # until the parent listens
        os.kill(os.getpid(), signum)
        return Ended("stopped")

    made, workers, shown = grid(experiment, learn, jobs=1)
    with pytest.raises(Interrupted):
        made.run()
    assert not workers.busy
    assert len(shown.finished) == len(experiment.cells) - 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_runs_and_starts_no_other(experiment: Experiment, signum: int) -> None:
    started = []

    def learn(cell: Cell) -> Ended:
        started.append(cell)
        if len(started) == 2:
            os.kill(os.getpid(), signum)
        assert workers.terminated.wait(10)
        return Ended("stopped")

    made, workers, shown = grid(experiment, learn)
    with pytest.raises(Interrupted) as caught:
        made.run()
    assert caught.value.signum == signum
    assert len(started) == 2
    assert not workers.busy
    assert shown.finished == {}
    assert any(text.startswith("stopping") for text in shown.messages)


def test_jobs_must_be_positive(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="jobs: 0 is not valid"):
        run_experiment(write(), jobs=0)


# Real processes


TINY: dict[str, Any] = {
    "seeds": [3],
    "streams": {"SplitDigits": {"scenario": "class", "keep_tasks": 2}},
    "strategies": {"Naive": {}, "ER": {"buffer_size": 20}},
    "net": {"name": "MLP", "hidden": [4]},
}


def numbers(results: Path) -> dict[str, str]:
    """The accuracy matrix of each record."""
    return {
        str(path.parent.relative_to(results)): path.read_text()
        for path in sorted(results.rglob("matrix.csv"))
    }


def test_real_runs_end_to_end(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(**TINY | {"strategies": {"Naive": {}, "bad": {"name": "Naive", "lr": -1.0}}})
    with pytest.raises(UserError) as caught:
        run_experiment(path, jobs=1)
    results = tmp_path / "results/tiny"
    assert str(caught.value) == (
        "1 of 2 runs failed: bad/SplitDigits/order0-seed3: "
        "strategy.lr: -1.0 is not valid: expected a number > 0"
    )
    assert set(numbers(results)) == {"runs/Naive/SplitDigits/order0-seed3"}
    assert "1 of 2 runs finished" in (results / "table.md").read_text()
    assert (results / "experiment.yaml").read_text() == path.read_text()

    # What is finished is not run again, and not taken for a run of another experiment.
    metrics = results / "runs/Naive/SplitDigits/order0-seed3/metrics.json"
    before = metrics.stat().st_mtime_ns
    assert run_experiment(write(**TINY | {"strategies": {"Naive": {}}})) == results
    assert metrics.stat().st_mtime_ns == before
    assert "1 of 1 runs finished" in (results / "table.md").read_text()
    changed = write(**TINY | {"strategies": {"Naive": {}}, "training": {"epochs": 2}})
    with pytest.raises(
        UserError, match=r"Naive/.*: training.epochs: 2 differs from 1 in the record"
    ):
        run_experiment(changed)
    assert metrics.stat().st_mtime_ns == before


def test_a_mistake_in_the_last_strategy_is_found_first(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(**TINY | {"strategies": {"Naive": {}, "ER": {"buffer_sise": 20}}})
    with pytest.raises(UserError, match=r"tiny.yaml: ER/SplitDigits/order0-seed3: .*buffer_size"):
        run_experiment(path, jobs=1)
    assert not (tmp_path / "results").exists()
