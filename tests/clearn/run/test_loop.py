"""The run loop: what is called when, what does not change the numbers, and how it stops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.examples import Examples
from clearn.progress import NullProgress, ProgressEvent
from clearn.run import Run, Training
from clearn.seeding import derive_seed
from clearn.strategies import ER, Naive
from clearn.strategy import Strategy
from clearn.stream import Stream, Task
from tests.clearn.run.conftest import MakeStrategy, MakeStream, assert_equal, weights


def run(strategy: Strategy, stream: Stream, seed: int = 0, **options: Any) -> Run:
    training = Training(**{"epochs": 2, "batch_size": 8, **options})
    return Run(strategy, stream, training=training, seed=seed)


def test_equals_a_plain_torch_loop(make_stream: MakeStream, make_strategy: MakeStrategy) -> None:
    """The whole machinery adds nothing to the numbers of a loop written by hand."""
    stream, ours, plain = make_stream(), make_strategy(lr=0.05), make_strategy(lr=0.05)
    result = run(ours, stream, seed=3).fit()

    net = plain.net
    torch.manual_seed(derive_seed(3, "global"))
    for task in stream:
        net.begin_task(task.index, task.classes, torch.Generator())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        x, y = _read(task.train)
        for epoch in range(2):
            generator = torch.Generator().manual_seed(derive_seed(3, "sampler", task.index, epoch))
            for rows in torch.randperm(len(y), generator=generator).split(8):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
        net.eval()
        for other in stream.tasks[: task.index + 2]:
            x_test, y_test = _read(other.test)
            expected = (net(x_test).argmax(1) == y_test).float().mean().item()
            assert result.matrix[task.index, other.index] == pytest.approx(expected, abs=1e-6)
        net.train()
    assert_equal(weights(ours), weights(plain))


def _read(examples: Examples) -> tuple[Tensor, Tensor]:
    batch = next(examples.batches(len(examples)))
    return batch.x, batch.y


@pytest.mark.parametrize("kind", [Naive, ER])
def test_chunk_size_does_not_matter(
    kind: type[Strategy], make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    outcomes = []
    for chunk_size in (1, 3, 100):
        strategy = make_strategy(kind)
        run(strategy, make_stream(), chunk_size=chunk_size).fit()
        outcomes.append(weights(strategy))
    assert_equal(outcomes[0], outcomes[1])
    assert_equal(outcomes[0], outcomes[2])


def test_chunk_size_does_not_matter_under_autocast(
    make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    """Autocast's cache of casted weights must not outlive a step."""
    outcomes = []
    for chunk_size in (1, 100):
        strategy = make_strategy()
        training = Training(epochs=2, batch_size=8, chunk_size=chunk_size)
        Run(strategy, make_stream(), training=training, trainer={"precision": "bf16-mixed"}).fit()
        outcomes.append(weights(strategy))
    assert_equal(outcomes[0], outcomes[1])


@pytest.mark.parametrize("every", [2, 3])
def test_several_tasks_in_one_fit_give_the_same_weights(
    every: int, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    one, many = make_strategy(ER, momentum=0.9), make_strategy(ER, momentum=0.9)
    full = run(one, make_stream()).fit()
    sparse = run(many, make_stream(), evaluate_every=every).fit()
    assert_equal(weights(one), weights(many))
    evaluated = [i for i in range(3) if (i + 1) % every == 0 or i == 2]
    np.testing.assert_array_equal(sparse.matrix[evaluated], full.matrix[evaluated])
    assert np.isnan(np.delete(sparse.matrix, evaluated, axis=0)).all()
    assert len(sparse.bytes) == 3


class Spy(Naive):
    """Writes down the order of calls."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[str] = []

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.calls.append(f"begin {task.index}")

    def examples(self, task: Task, past: Sequence[Task]) -> Examples:
        self.calls.append(f"examples {task.index} after {[t.index for t in past]}")
        return super().examples(task, past)

    def loss(self, batch: Batch) -> Tensor:
        assert self.training
        self.calls.append(f"loss {self.task.index}")
        return super().loss(batch)

    def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
        assert not self.training
        self.calls.append(f"predict {task_id}")
        return super().predict(x, task_id)

    def end_task(self, task: Task) -> None:
        self.calls.append(f"end {task.index}")

    def configure_optimizers(self) -> Any:
        self.calls.append("optimizer")
        return super().configure_optimizers()


@pytest.mark.parametrize("every", [1, 2])
def test_order_of_calls(every: int, make_stream: MakeStream, make_strategy: MakeStrategy) -> None:
    spy = make_strategy(Spy)
    stream = make_stream(2, scenario="task")
    run(spy, stream, epochs=1, batch_size=30, evaluate_every=every).fit()
    steps = [f"begin {t}" for t in range(0)]
    for task in range(2):
        past = list(range(task))
        steps += [f"begin {task}", f"examples {task} after {past}", "optimizer"]
        steps += [f"loss {task}"] * 2 + [f"end {task}"]
        if every == 1 or task == 1:
            steps += ["predict 0", "predict 1"]
    assert spy.calls == ["predict 0", "predict 1", *steps]


def test_same_seed_same_numbers_other_seed_other_numbers(
    make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    outcomes = []
    for seed in (0, 0, 1):
        strategy = make_strategy()
        run(strategy, make_stream(), seed=seed).fit()
        outcomes.append(weights(strategy))
        torch.randn(seed + 5)  # what happens outside does not matter
    assert_equal(outcomes[0], outcomes[1])
    name = "net.head.linear.weight"
    key = name if name in outcomes[0] else next(k for k in outcomes[0] if k.endswith("weight"))
    assert not torch.equal(outcomes[0][key], outcomes[2][key])


def test_step_axis_is_continuous_over_tasks(
    tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    training = Training(epochs=2, batch_size=8, log_every=1, chunk_size=1)
    Run(make_strategy(), make_stream(), training=training, folder=tmp_path / "r").fit()
    lines = (tmp_path / "r" / "steps.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    losses = [row for row in rows if row["name"] == "train/loss"]
    steps = [int(row["step"]) for row in losses]
    assert steps == list(range(1, 3 * 2 * 6 + 1))
    seen = [int(row["examples_seen"]) for row in losses]
    assert seen[-1] == 3 * 2 * 42
    assert seen == sorted(seen)


class Explodes(Naive):
    """The loss of the given step is not finite."""

    def loss(self, batch: Batch) -> Tensor:
        loss = super().loss(batch)
        self.steps_taken = getattr(self, "steps_taken", 0) + 1
        return loss * float("nan") if self.steps_taken == 12 + 6 + 3 else loss


def test_nan_loss_names_the_place_and_keeps_the_checkpoint(
    tmp_path: Path,
    make_stream: MakeStream,
    make_strategy: MakeStrategy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = Training(epochs=2, batch_size=8, chunk_size=4)
    broken = Run(make_strategy(Explodes), make_stream(), training=training, folder=tmp_path / "r")
    with pytest.raises(UserError, match=r"loss is nan in task 1, epoch 1, batch 2 \(step 20\)"):
        broken.fit()
    assert len(list((tmp_path / "r" / "checkpoints").glob("*.ckpt"))) == 1
    whole = make_strategy()
    run(whole, make_stream(), chunk_size=4).fit()
    monkeypatch.setattr(Explodes, "loss", Naive.loss)
    repaired = make_strategy(Explodes)
    Run(repaired, make_stream(), training=training, folder=tmp_path / "r").fit()
    assert_equal(weights(whole), weights(repaired))


def test_the_rate_shown_is_that_of_training(
    make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    class Slow(Naive):
        """Takes long to test."""

        def predict(self, x: Tensor, task_id: int | None = None) -> Tensor:
            time.sleep(0.02)
            return super().predict(x, task_id)

    class Events(NullProgress):
        """Keeps what is shown."""

        def __init__(self) -> None:
            self.all: list[ProgressEvent] = []

        def update(self, event: ProgressEvent) -> None:
            self.all.append(event)

    progress = Events()
    Run(make_strategy(Slow), make_stream(), progress=progress).fit()
    pairs = zip(progress.all, progress.all[1:], strict=False)
    tested = [(before, after) for before, after in pairs if before.acc != after.acc]
    assert len(tested) == 3
    for before, after in tested:
        assert before.examples_per_s == after.examples_per_s > 0


def test_finished_record_is_read_not_run(
    tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    first = Run(make_strategy(Spy), make_stream(), folder=tmp_path / "r").fit()
    spy = make_strategy(Spy)
    again = Run(spy, make_stream(), folder=tmp_path / "r").fit()
    assert spy.calls == []
    np.testing.assert_array_equal(again.matrix, first.matrix)
    assert again.metrics == first.metrics
    assert again.bytes == first.bytes


def test_early_stopping_stops_each_task(
    tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    stream = make_stream(validation=0.2)
    training = Training(epochs=50, batch_size=8, patience=2, evaluate="all")
    task = Run(make_strategy(lr=1e-9), stream, training=training)
    task.fit()
    # With no progress at all the first epoch is the best and two more are waited for.
    assert task.position.step == 3 * 3 * -(-len(stream[0].train) // 8)
    assert not np.isnan(task.result.matrix).any()
    with pytest.raises(UserError, match=r"training.patience: 2 needs a validation share"):
        Run(make_strategy(), make_stream(), training=training)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 3}, r"trainer\.max_epochs: 3 belongs to the run; set training\.epochs"),
        ({"devices": 2}, r"trainer\.devices: 2 is not valid"),
        (
            {"limit_train_batches": 2},
            r"limit_train_batches: 2 belongs to the run; set",
        ),
        ({"fast_dev_run": True}, r"trainer\.fast_dev_run: True belongs to the run"),
        ({"max_time": "00:00:01:00"}, r"trainer\.max_time: .* stop the run with SIGTERM"),
    ],
)
def test_trainer_options_that_belong_to_the_run(
    options: dict[str, Any], message: str, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    with pytest.raises(UserError, match=message):
        Run(make_strategy(), make_stream(), trainer=options)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"chunk_size": 0},
        {"evaluate": "some"},
        {"patience": 0},
        {"patience": 2, "evaluate_every": 2},
        {"clip_grad": 0.0},
        {"checkpoint_minutes": -1.0},
        {"log_every": 0},
        {"epochs": True},
    ],
)
def test_training_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"training\.{next(iter(options))}: "):
        Training(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is to be looked for")
def test_nvml_is_not_asked_in_every_step(
    make_stream: MakeStream, make_strategy: MakeStrategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: asked.append(0) or -1)
    run(make_strategy(optimizer="Adam", lr=0.01), make_stream()).fit()
    assert len(asked) < 20  # in 36 steps
