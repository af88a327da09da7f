"""A run that is stopped goes on as if it had not been."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from clearn.batch import Batch
from clearn.run import Interrupted, Run, Training
from clearn.run.result import Result
from clearn.strategies import ER, Naive
from clearn.strategy import Strategy, Validation
from clearn.stream import Task
from tests.clearn.run.conftest import MakeStrategy, MakeStream, assert_equal, weights


class StopAt(Callback):
    """Sends a signal to this process when the given chunk of the run has ended."""

    def __init__(self, chunk: int, signum: int) -> None:
        self.left = chunk
        self.signum = signum

    def on_train_batch_end(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("chunk", [1, 6, 7, 13, 35, 36])
def test_signal_stops_and_resume_is_bit_identical(
    chunk: int, signum: int, tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    training = Training(epochs=2, batch_size=8, chunk_size=1)
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "buffer_size": 20}
    whole = make_strategy(ER, **options)
    expected = Run(whole, make_stream(), training=training, folder=tmp_path / "whole").fit()

    stopped = make_strategy(ER, **options)
    trainer = {"callbacks": [StopAt(chunk, signum)]}
    with pytest.raises(Interrupted) as caught:
        Run(stopped, make_stream(), training=training, folder=tmp_path / "r", trainer=trainer).fit()
    assert caught.value.signum == signum
    assert not (tmp_path / "r" / "metrics.json").exists()

    resumed = make_strategy(ER, **options)
    torch.manual_seed(999)
    result = Run(resumed, make_stream(), training=training, folder=tmp_path / "r").fit()
    np.testing.assert_array_equal(result.matrix, expected.matrix)
    assert_equal(weights(resumed), weights(whole))
    assert _final(tmp_path / "r")["fit"]["optimizers"][0]["state"].keys()
    _assert_same(_final(tmp_path / "r"), _final(tmp_path / "whole"))
    assert (tmp_path / "r" / "steps.csv").read_text() == (
        tmp_path / "whole" / "steps.csv"
    ).read_text()


def _final(folder: Path) -> dict[str, Any]:
    (newest,) = (folder / "checkpoints").iterdir()  # a finished run keeps one
    state: dict[str, Any] = torch.load(newest, weights_only=True)
    del state["fit"]["callbacks"]  # the one that stops the run is in there
    return {key: state[key] for key in ("strategy", "fit", "generators", "position")}


def _assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            _assert_same(left, right)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


class Watches(Naive):
    """Tracks a number of its own in every step."""

    def loss(self, batch: Batch) -> Tensor:
        loss = super().loss(batch)
        self.track("twice", 2 * loss.detach())
        return loss


def test_tracked_numbers_are_logged_as_means_and_survive_a_stop(
    tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    training = Training(epochs=2, batch_size=8, chunk_size=1, log_every=5)
    stop = {"callbacks": [StopAt(8, signal.SIGTERM)]}
    Run(make_strategy(Watches), make_stream(), training=training, folder=tmp_path / "whole").fit()
    stopped = Run(
        make_strategy(Watches),
        make_stream(),
        training=training,
        folder=tmp_path / "r",
        trainer=stop,
    )
    with pytest.raises(Interrupted):
        stopped.fit()
    Run(make_strategy(Watches), make_stream(), training=training, folder=tmp_path / "r").fit()
    text = (tmp_path / "r" / "steps.csv").read_text()
    assert text == (tmp_path / "whole" / "steps.csv").read_text()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    loss = {row[2]: float(row[5]) for row in rows if row[4] == "train/loss"}
    twice = {row[2]: float(row[5]) for row in rows if row[4] == "train/twice"}
    assert len(loss) == 9  # after steps 5, 10 and 12 of every task
    assert twice.keys() == loss.keys()
    assert all(twice[step] == pytest.approx(2 * loss[step]) for step in loss)


class Epochs(Naive):
    """Writes down of which task an epoch was, and whether it was validated."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.told: list[tuple[int, bool]] = []

    def end_epoch(self, task: Task, validation: Validation | None) -> bool:
        self.told.append((task.index, validation is not None))
        return super().end_epoch(task, validation)


@pytest.mark.parametrize("after", [1, 3, 4, 7])
def test_resumed_in_the_last_of_several_tasks_in_one_fit(
    after: int, tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    """Such a fit has no validation after each epoch, however many tasks of it are left."""
    training = Training(epochs=2, batch_size=8, chunk_size=1, evaluate_every=2, log_every=3)
    whole, stopped, resumed = (make_strategy(Epochs) for _ in range(3))

    def run(strategy: Strategy, name: str, **options: Any) -> Result:
        stream = make_stream(validation=0.2)
        folder = tmp_path / name
        return Run(strategy, stream, training=training, folder=folder, trainer=options).fit()

    expected = run(whole, "whole")
    with pytest.raises(Interrupted):
        run(stopped, "r", callbacks=[StopAt(after, signal.SIGTERM)])
    result = run(resumed, "r")
    assert {kind for task, kind in whole.told if task < 2} == {False}
    assert stopped.told + resumed.told == whole.told
    np.testing.assert_array_equal(result.matrix, expected.matrix)
    assert_equal(weights(resumed), weights(whole))
    steps = (tmp_path / "r/steps.csv").read_text()
    assert steps == (tmp_path / "whole/steps.csv").read_text()


class Counts(Callback):
    """Counts the chunks of the whole run, as part of its state."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


@pytest.mark.parametrize("chunk", [5, 12])
def test_callbacks_go_on_and_new_ones_begin(
    chunk: int, tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    """Also when the run was stopped between two tasks, 12 chunks apart."""

    def run(*callbacks: Callback) -> None:
        Run(
            make_strategy(),
            make_stream(),
            training=Training(epochs=2, batch_size=8, chunk_size=1),
            folder=tmp_path,
            trainer={"callbacks": list(callbacks)},
        ).fit()

    with pytest.raises(Interrupted):
        run(Counts(), StopAt(chunk, signal.SIGTERM))
    counts, new = Counts(), EarlyStopping("train/loss", patience=100, strict=False)
    run(new, counts)
    assert counts.count == 36


def test_a_second_ctrl_c_is_granted_at_once(
    tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    class Impatient(Callback):
        def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    options = {"callbacks": [Impatient()]}
    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        Run(make_strategy(), make_stream(), folder=tmp_path, trainer=options).fit()
    assert Run(make_strategy(), make_stream(), folder=tmp_path).fit().matrix.shape == (3, 3)
