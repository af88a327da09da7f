"""The W&B mirror: what an offline run's own file says, resumed or not, and what failures cost."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from clearn import wandb_mirror
from clearn.record import Record
from clearn.tracking import Tracker, build_loggers
from tests.clearn.test_tracking import CONFIG, MATRIX, build, learn, rows
from tests.wandb_file import BLOCK, WandbFile, messages

CHARTS = {
    "mean weight": {"a": [math.nan, 0.5, 0.25], "b": [1.0, 2.0, 3.0]},
    "a/b": [[math.nan, math.nan], [0.5, math.nan]],
}


def tracked(folder: Path) -> Tracker:
    """A tracker over W&B and the record in `folder`."""
    loggers = build_loggers(["wandb"], folder=folder, name="ER-0", group="demo", config=CONFIG)
    return Tracker(Record(folder).steps, loggers)


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
    second.log_charts(CHARTS)
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
    assert len(list(finished.glob("wandb/**/matrix/*.table.json"))) == 1


def test_charts_are_tables(finished: Path) -> None:
    _, resumed = WandbFile.find(finished)
    (row,) = (row for row in resumed.history if "charts/mean weight._type" in row)
    assert row["task"] == 2
    tables = {}
    for name in CHARTS:
        path = next(finished.glob(f"wandb/offline-run-*/files/{row[f'charts/{name}.path']}"))
        content = json.loads(path.read_text())
        tables[name] = content["columns"], content["data"]
    assert tables == {
        "mean weight": (["task", "a", "b"], [[0, None, 1.0], [1, 0.5, 2.0], [2, 0.25, 3.0]]),
        "a/b": (["task", "task 0", "task 1"], [[0, None, None], [1, 0.5, None]]),
    }


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
