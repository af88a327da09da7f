"""One tracker for a whole run: its axes, its mirrors, and what W&B keeps of it."""

from __future__ import annotations

import csv
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from PIL import Image

from clearn import wandb_mirror
from clearn.errors import UserError
from clearn.record import Record, StepLog
from clearn.tracking import Position, Tracker, build_loggers
from tests.wandb_file import BLOCK, WandbFile, messages

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


# W&B


def tracked(folder: Path) -> Tracker:
    """A tracker over W&B and the record in `folder`."""
    loggers = build_loggers(["wandb"], folder=folder, name="ER-0", group="demo", config=CONFIG)
    return Tracker(Record(folder).steps, loggers)


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


def end_service() -> None:
    """Let W&B's service, which writes its file behind the run's back, come to its end."""
    import wandb

    wandb.teardown()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a run that was stopped after two tasks and resumed."""
    folder = tmp_path_factory.mktemp("record")
    first = tracked(folder)
    learn(first, range(2))
    first.close("failed")
    second = tracked(folder)
    learn(second, range(1, 3))
    second.log_matrix(MATRIX)
    second.log_summary({"acc": 0.61, "fwt": math.nan})
    (folder / "checkpoints").mkdir()
    for name in ("00000004-aa.ckpt", "00000005-bb.ckpt"):
        (folder / "checkpoints" / name).write_text(name)
    second.log_artifacts(folder)
    second.close("success")
    end_service()
    return folder


def test_resume_keeps_one_run_id(finished: Path) -> None:
    stopped, resumed = WandbFile.find(finished)
    assert stopped.run_id == resumed.run_id
    assert json.loads((finished / "wandb.json").read_text()) == {"id": resumed.run_id}
    assert (stopped.exit_code, resumed.exit_code) == (1, 0)


def test_run_is_named_grouped_and_configured(finished: Path) -> None:
    for file in WandbFile.find(finished):
        run = file.run
        assert (run.project, run.display_name, run.run_group) == ("clearn", "ER-0", "demo")
        assert (run.job_type, list(run.tags)) == ("ER", ["SplitDigits", "class"])
        assert {key: file.config[key] for key in CONFIG} == CONFIG


def test_axes(finished: Path) -> None:
    for file in WandbFile.find(finished):
        assert file.axes["train/*"] == file.axes["valid/*"] == "examples_seen"
        assert file.axes["test/*"] == file.axes["matrix/*"] == "task"
        assert {"task", "examples_seen"} <= file.axes.keys()
        assert not any("global_step" in name for row in file.history for name in row)


def test_history_is_continuous_over_tasks_and_resume(finished: Path) -> None:
    stopped, resumed = WandbFile.find(finished)
    assert stopped.column("_step") == [1, 2, 3, 4]
    assert resumed.column("_step") == [3, 4, 5, 6]
    assert stopped.column("examples_seen") == [10, 20, 30, 40]
    assert resumed.column("examples_seen") == [30, 40, 50, 60]
    assert resumed.column("train/loss") == pytest.approx([1 / 3, 1 / 4, 1 / 5, 1 / 6])
    scores = [
        (row["task"], row["test/accuracy"])
        for file in (stopped, resumed)
        for row in file.history
        if "test/accuracy" in row
    ]
    expected = [(0, 0.9), (1, 0.75), (1, 0.75), (2, 1.85 / 3)]
    assert scores == [(task, pytest.approx(score)) for task, score in expected]


def test_matrix_is_one_table_and_one_image(finished: Path) -> None:
    _, resumed = WandbFile.find(finished)
    (row,) = (row for row in resumed.history if "matrix/table._type" in row)
    files = next(finished.glob(f"wandb/offline-run-*/files/{row['matrix/table.path']}")).parent
    assert row["task"] == 2
    table = json.loads((files / Path(row["matrix/table.path"]).name).read_text())
    assert table["columns"] == ["after task", "task 0", "task 1", "task 2"]
    assert table["data"] == [[0, 0.9, 0.1, None], [1, 0.7, 0.8, 0.2], [2, 0.5, 0.6, 0.75]]
    path = next(finished.glob(f"wandb/offline-run-*/files/{row['matrix/image.path']}"))
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
    assert len(list(finished.glob("wandb/**/*.png"))) == 1
    assert len(list(finished.glob("wandb/**/*.table.json"))) == 1


def test_summary_and_artifact(finished: Path) -> None:
    _, resumed = WandbFile.find(finished)
    assert resumed.summary["acc"] == 0.61
    assert "fwt" not in resumed.summary  # undefined
    assert resumed.artifacts[f"checkpoint-{resumed.run_id}"] == "model"
    content = max(finished.glob("wandb/offline-run-*/*.wandb")).read_bytes()
    assert b"00000005-bb.ckpt" in content
    assert b"00000004-aa.ckpt" not in content


def test_record_holds_no_key_and_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "0123456789abcdef" * 3
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://tracker.clearn-test.example:9")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_USERNAME", "clearn-test-user")
    end_service()  # which has read the environment before
    tracker = tracked(tmp_path)
    learn(tracker, range(1))
    tracker.close("success")
    end_service()
    (file,) = WandbFile.find(tmp_path)
    assert file.run.host == ""
    names = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in names)
    for path in names:
        content = path.read_bytes()
        for secret in (key, "clearn-test.example", "clearn-test-user"):
            assert secret.encode() not in content, path
    assert not list(tmp_path.rglob("debug*.log"))


def test_killed_run_keeps_its_rows(tmp_path: Path) -> None:
    """W&B buffers for 15 s by default, and its service ends at once when the run is killed."""
    tracker = tracked(tmp_path)
    learn(tracker, range(2))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 10
    while len(path.read_bytes()) < 1000 and time.monotonic() < deadline:
        time.sleep(0.1)
    file = WandbFile(path)
    assert file.exit_code is None
    assert file.column("_step") == [1, 2, 3]  # the last row is open until the next step
    tracker.close("failed")


def test_nothing_is_begun_before_the_first_value(tmp_path: Path) -> None:
    tracker = tracked(tmp_path)
    assert isinstance(tracker.loggers[0], WandbLogger)
    tracker.close("success")
    assert os.listdir(tmp_path) == []


def test_wandb_that_cannot_start_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def broken(**options: Any) -> None:
        logs = Path(options["dir"]) / "wandb" / "run-x" / "logs"
        logs.mkdir(parents=True)
        (logs / "debug.log").write_text("https://tracker.example")
        raise wandb.errors.CommError("no answer\nfrom https://tracker.example")

    monkeypatch.setattr(wandb, "init", broken)
    tracker = tracked(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn(tracker, range(3))
        tracker.log_matrix(MATRIX)
        tracker.close("success")
    (warning,) = caught
    assert "WandbMirror failed and is left out" in str(warning.message)
    assert "no answer" in str(warning.message)
    assert "tracker.example" not in str(warning.message)
    assert not list(tmp_path.rglob("*.log"))
    assert len(rows(tmp_path)) == 9


def test_service_that_does_not_answer_leaves_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    init = wandb.init

    def no_network(**options: Any) -> Any:
        if options["mode"] != "offline":
            raise wandb.errors.CommError("timed out")
        return init(**options)

    monkeypatch.setattr(wandb, "init", no_network)
    (logger,) = build({"name": "wandb", "mode": "online"}, folder=tmp_path)
    tracker = Tracker(None, [logger])
    with pytest.warns(UserWarning, match=r"kept offline; send it later: wandb sync .*timed out"):
        tracker.begin(CONFIG)
    learn(tracker, range(1))
    tracker.close("success")
    end_service()
    (file,) = WandbFile.find(tmp_path)
    assert file.column("_step") == [1, 2]


@pytest.mark.parametrize(
    ("environment", "settings", "netrc", "expected"),
    [
        ({}, {}, None, "offline"),
        ({"WANDB_MODE": "online"}, {}, None, None),
        ({"WANDB_MODE": "disabled"}, {}, None, None),
        ({}, {"mode": "disabled"}, None, None),
        ({}, {"api_key": "k"}, None, None),
        ({"WANDB_IDENTITY_TOKEN_FILE": "f"}, {}, None, None),
        ({}, {}, "machine api.wandb.ai login user password k", None),
        ({}, {}, "machine other.example login user password k", "offline"),
        ({}, {}, "not a netrc file", "offline"),
    ],
)
def test_offline_unless_logged_in_or_asked(
    environment: dict[str, str],
    settings: dict[str, str],
    netrc: str | None,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
        (tmp_path / "netrc").chmod(0o600)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = {"mode": "online", "api_key": None, "base_url": "https://api.wandb.ai"} | settings
    assert wandb_mirror.default_mode(SimpleNamespace(**given)) == expected


# Other loggers


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
        folder=tmp_path,
    )
    assert isinstance(loggers[0], WandbLogger)
    assert loggers[0].name == "mine"
    assert isinstance(loggers[1], CSVLogger)
    assert loggers[1].name == "own"
    assert str(loggers[2].save_dir) == str(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
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


# The reader


def test_reader_refuses_damage(finished: Path, tmp_path: Path) -> None:
    path = next(finished.glob("wandb/offline-run-*/*.wandb"))
    content = bytearray(path.read_bytes())
    copy = tmp_path / "copy.wandb"
    for position in (0, 5, 20, len(content) // 2):
        damaged = content.copy()
        damaged[position] ^= 1
        copy.write_bytes(damaged)
        with pytest.raises(ValueError, match="copy"):
            list(messages(copy))
    copy.write_bytes(content[:-3])
    with pytest.raises(ValueError, match="ends in the middle"):
        list(messages(copy))


def test_reader_joins_messages_over_blocks(tmp_path: Path) -> None:
    tracker = tracked(tmp_path)
    text = "x" * (2 * BLOCK)
    tracker.loggers[0].experiment.config.update({"long": text})
    for step in range(300):
        tracker.position.step = step
        tracker.log_metrics({"train/loss": float(step)})
    tracker.close("success")
    end_service()
    (file,) = WandbFile.find(tmp_path)
    assert file.config["long"] == text
    assert file.column("train/loss") == list(range(300))
