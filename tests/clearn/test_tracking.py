"""One tracker for a whole run: its axes, its mirrors, and what W&B keeps of it."""

from __future__ import annotations

import csv
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from clearn.errors import UserError
from clearn.record import StepLog
from clearn.tracking import Position, Tracker, build_loggers

CONFIG = {
    "strategy": {"name": "ER", "buffer_size": 200},
    "stream": {"name": "SplitDigits", "scenario": "class"},
    "seed": 3,
}
MATRIX = np.array([[0.9, 0.1, np.nan], [0.7, 0.8, 0.2], [0.5, 0.6, 0.75]])


class Fake(Logger):
    """Writes down what reaches it; fails on the given method."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.calls: list[Any] = []
        self._fails = fails

    name = version = "fake"

    def _call(self, method: str, *args: Any) -> None:
        if method == self._fails:
            raise OSError("service is gone")
        self.calls.append((method, *args))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._call("log_metrics", dict(metrics), step)

    def log_hyperparams(self, params: Any, *args: Any) -> None:
        self._call("log_hyperparams", dict(params))

    def save(self) -> None:
        self._call("save")

    def finalize(self, status: str) -> None:
        self._call("finalize", status)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "steps.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Position


def test_position_round_trip() -> None:
    here = Position(task=2, epoch=1, batch=3, step=40, examples_seen=400)
    again = Position()
    again.load_state_dict(here.state_dict())
    assert again == here
    again.next_task()
    assert again == Position(task=3, epoch=0, batch=0, step=40, examples_seen=400)


# The tracker under Lightning


class Learner(LightningModule):
    """Saves parameters and logs from its step, as a strategy may."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("extra/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class Advance(Callback):
    """Moves the run's position as the run loop does, and logs as a user does."""

    def __init__(self, position: Position) -> None:
        self.position = position

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.position.step += 1
        self.position.examples_seen += 4
        trainer.logger.log_metrics({"mine": self.position.step}, step=trainer.global_step)


def two_fits(tracker: Tracker) -> None:
    """One trainer per task over one tracker."""
    module = Learner(lr=0.1)
    data = torch.utils.data.DataLoader(torch.ones(12, 2), batch_size=4)
    for _ in range(2):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=tracker,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Advance(tracker.position)],
        )
        trainer.fit(module, data)
        tracker.log_metrics({"test/accuracy": 0.5 + 0.25 * tracker.position.task})
        tracker.position.next_task()


CONNECTOR = "lightning.pytorch.trainer.connectors.data_connector"


@pytest.fixture
def _calm() -> Iterator[None]:
    """Lightning advises more workers, which a test does not need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{CONNECTOR}._worker_check", lambda **options: None)
        yield


# Lightning 2.6 asks torch 2.14 in a way that torch deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.usefixtures("_calm")
def test_second_fit_continues_the_axes(tmp_path: Path) -> None:
    fake = Fake()
    tracker = Tracker(StepLog(tmp_path / "steps.csv"), [fake])
    two_fits(tracker)
    tracker.close("success")
    for name in ("mine", "extra/loss"):
        found = [row for row in rows(tmp_path) if row["name"] == name]
        assert [row["task"] for row in found] == ["0"] * 3 + ["1"] * 3
    mine = [row for row in rows(tmp_path) if row["name"] == "mine"]
    assert [int(row["step"]) for row in mine] == [1, 2, 3, 4, 5, 6]
    assert [int(row["examples_seen"]) for row in mine] == [4, 8, 12, 16, 20, 24]
    assert {row["name"] for row in rows(tmp_path)} == {"mine", "extra/loss", "test/accuracy"}
    logged = [call for call in fake.calls if call[0] == "log_metrics" and "mine" in call[1]]
    assert logged[-1] == (
        "log_metrics", {"mine": 6.0, "task": 1, "epoch": 0, "examples_seen": 24}, 6,
    )  # fmt: skip
    assert [call for call in fake.calls if call[0] == "log_hyperparams"] == [
        ("log_hyperparams", {"lr": 0.1})
    ]
    assert [call for call in fake.calls if call[0] == "finalize"] == [("finalize", "success")]
    assert fake.calls[-1] == ("finalize", "success")


def test_without_record_and_mirrors_nothing_happens() -> None:
    tracker = Tracker(None)
    tracker.log_metrics({"a": 1.0})
    tracker.log_matrix(MATRIX)
    tracker.log_summary({"acc": 1.0})
    tracker.log_charts({"a": {"b": [1.0]}})
    tracker.finalize("success")
    tracker.close("success")
    assert tracker.save_dir is None
    assert tracker.experiment is None


def test_mirrors_take_down_the_config_first(tmp_path: Path) -> None:
    fake = Fake()
    (wandb,) = build("wandb", folder=tmp_path)
    tracker = Tracker(None, [fake, wandb])
    tracker.begin(CONFIG)
    assert fake.calls == [("log_hyperparams", CONFIG)]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    tracker.close("success")


@pytest.mark.parametrize("method", ["log_metrics", "log_hyperparams", "save", "finalize"])
def test_failing_mirror_is_left_out_with_one_warning(method: str, tmp_path: Path) -> None:
    broken, good = Fake(fails=method), Fake()
    tracker = Tracker(StepLog(tmp_path / "steps.csv"), [broken, good])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            tracker.position.step = step
            tracker.log_metrics({"a": 1.0})
            tracker.log_hyperparams({"lr": step})
            tracker.finalize("success")
        tracker.log_summary({"acc": 0.5, "fwt": math.nan})
        tracker.close("success")
    (warning,) = caught
    assert "Fake failed and is left out" in str(warning.message)
    assert "service is gone" in str(warning.message)
    assert len(rows(tmp_path)) == 3
    summary = {"summary/acc": 0.5}
    assert good.calls[-2:] == [("log_metrics", summary, 2), ("finalize", "success")]


def test_record_that_fails_stops_the_run(tmp_path: Path) -> None:
    tracker = Tracker(StepLog(tmp_path / "missing" / "steps.csv"), [Fake()])
    with pytest.raises(UserError, match="cannot write to"):
        tracker.log_metrics({"a": 1.0})


def learn(tracker: Tracker, tasks: range) -> None:
    """Log what a run logs, two steps a task."""
    for task in tasks:
        tracker.position = Position(task=task, step=2 * task, examples_seen=20 * task)
        for _ in range(2):
            tracker.position.step += 1
            tracker.position.examples_seen += 10
            tracker.log_metrics({"train/loss": 1 / tracker.position.step})
        tracker.finalize("success")  # Lightning does, after each fit
        tracker.log_metrics({"test/accuracy": MATRIX[task, : task + 1].mean()})
        tracker.position.next_task()


def build(*specs: Any, folder: Path | None) -> list[Logger]:
    return build_loggers(specs, folder=folder, name="run", group=None, config=CONFIG)


def test_csv_logger_gets_the_axes(tmp_path: Path) -> None:
    tracker = Tracker(None, build("csv", folder=tmp_path))
    learn(tracker, range(2))
    tracker.close("success")
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    losses = [row for row in table if row["train/loss"]]
    assert [row["step"] for row in losses] == ["1", "2", "3", "4"]
    assert [row["task"] for row in losses] == ["0", "0", "1", "1"]
    assert [row["examples_seen"] for row in losses] == ["10", "20", "30", "40"]


def test_loggers_by_name_and_by_path(tmp_path: Path) -> None:
    path = "lightning.pytorch.loggers.CSVLogger"
    loggers = build(
        {"name": "wandb", "project": "mine", "tags": ["a"], "mode": "disabled"},
        {"class_path": path, "init_args": {"save_dir": str(tmp_path), "name": "own"}},
        "tensorboard",
        made := CSVLogger(tmp_path),
        folder=tmp_path,
    )
    assert loggers[3] is made
    assert isinstance(loggers[0], WandbLogger)
    assert loggers[0].name == "mine"
    assert isinstance(loggers[1], CSVLogger)
    assert loggers[1].name == "own"
    assert str(loggers[2].save_dir) == str(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, r"^loggers\.0: a int is no Lightning logger"),
        ("wandbb", r"^loggers\.0: 'wandbb' is unknown; did you mean wandb\?"),
        ({"project": "x"}, r"^loggers\.0: 'None' is unknown"),
        ({"name": "wandb", "projekt": "x"}, r"^loggers\.0: .*projekt"),
        ({"class_path": "no.such.Logger"}, r"^loggers\.0\.class_path: 'no\.such\.Logger' cannot"),
        ({"class_path": "Logger"}, r"^loggers\.0\.class_path: 'Logger' cannot"),
        ({"class_path": "pathlib.Path"}, r"^loggers\.0\.class_path: .* is not a Lightning logger"),
    ],
)
def test_loggers_that_cannot_be_made(spec: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build(spec, folder=tmp_path)
