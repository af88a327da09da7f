"""The record: what lies on the disk, when it counts as finished, and whose it is."""

from __future__ import annotations

import csv
import json
import math
import os
import socket
import subprocess
import sys
from getpass import getuser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clearn.environment import environment
from clearn.errors import UserError
from clearn.progress import ProgressEvent
from clearn.record import Record, RecordInUse, StepLog
from clearn.tracking import Position

CONFIG = {"strategy": {"name": "ER", "sizes": (1, 2)}, "seed": 0, "experiment": None}
EVENT = ProgressEvent(
    task=1, tasks=3, epoch=0, epochs=2, examples_per_s=10.0, acc=math.nan, done=0.4
)


def strict(path: Path) -> Any:
    """JSON without the NaN and Infinity that Python alone accepts."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


# The step log


def test_step_log_is_plain_csv_that_gives_back_the_numbers(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.csv")
    values = {"train/loss": 0.1 + 0.2, 'odd, "name"\nhere': math.nan, "big": 1e300}
    log.write(Position(task=1, epoch=2, batch=9, step=7, examples_seen=56), values)
    with log.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["task", "epoch", "step", "examples_seen", "name", "value"]
    assert [row["name"] for row in rows] == list(values)
    assert [(row["task"], row["epoch"], row["step"]) for row in rows] == [("1", "2", "7")] * 3
    assert float(rows[0]["value"]) == 0.1 + 0.2
    assert math.isnan(float(rows[1]["value"]))
    assert b"\r" not in log.path.read_bytes()


def test_lines_are_there_before_the_log_is_flushed(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.csv")
    log.write(Position(), {"a": 1.0})
    assert log.path.read_text().splitlines()[1:] == ["0,0,0,0,a,1.0"]


@given(st.lists(st.lists(st.floats(), max_size=3), max_size=6), st.data())
def test_cut_back_and_written_again_is_as_never_cut(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[float]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    whole, resumed = StepLog(folder / "whole.csv"), StepLog(folder / "resumed.csv")
    kept = data.draw(st.integers(0, len(parts)))
    whole.truncate(0)
    resumed.truncate(0)
    for log in (whole, resumed):
        for step, part in enumerate(parts[:kept]):
            log.write(Position(step=step), {f"m{i}": value for i, value in enumerate(part)})
    offset = resumed.flush()
    assert offset == resumed.path.stat().st_size
    resumed.write(Position(step=99), {"lost": 1.0})
    again = StepLog(resumed.path)  # another process, after the first was killed
    again.truncate(offset)
    for log in (whole, again):
        for step, part in enumerate(parts[kept:], kept):
            log.write(Position(step=step), {f"m{i}": value for i, value in enumerate(part)})
        log.flush()
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_cutting_to_nothing_leaves_the_header(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.csv")
    log.path.write_text("task,epo")  # killed while writing the header
    log.truncate(0)
    assert log.path.read_text() == "task,epoch,step,examples_seen,name,value\n"


def test_log_that_lost_lines_is_not_filled_with_zeros(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.csv")
    log.write(Position(), {"a": 1.0})
    size = log.flush()
    with pytest.warns(UserWarning, match="shorter than when the checkpoint was written"):
        log.truncate(size + 50)
    assert log.path.stat().st_size == size


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a full disk")
def test_full_disk_while_logging_is_a_user_error() -> None:
    log = StepLog(Path("/dev/full"))
    with pytest.raises(UserError, match=r"cannot write to /dev \(No space left on device\)"):
        log.write(Position(), {"a": 1.0})


# Beginning and continuing


def test_new_record_keeps_the_config_and_the_environment(tmp_path: Path) -> None:
    record = Record(tmp_path / "a" / "r")
    config = CONFIG | {"trainer": {"precision": "bf16-mixed"}, "root": Path("data")}
    with record.lock():
        record.create(config)
        assert not record.finished
    kept = yaml.safe_load((record.folder / "config.yaml").read_text())
    assert kept["strategy"] == {"name": "ER", "sizes": [1, 2]}
    assert kept["root"] == "data"
    assert list(kept) == list(config)
    assert record.config == kept
    content = strict(record.folder / "environment.json")
    assert content["precision"] == "bf16-mixed"
    assert {"python", "versions", "device", "threads", "commit", "platform"} <= content.keys()
    assert {"torch", "lightning", "avalanche-lib", "numpy", "clearn"} <= content["versions"].keys()


def test_environment_names_no_person_host_or_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr(socket, "gethostname", lambda: "myhost")
    monkeypatch.setenv("USER", "somebody")
    assert getuser() in ("somebody", os.environ.get("LOGNAME"))

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in strings(item)]
        return [str(value)]

    found = strings(environment())
    for secret in ("0123456789" * 4, "myhost", "somebody", str(Path.home()), os.getcwd()):
        assert not any(secret in text for text in found)


def test_environment_knows_the_commit_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["commit"] is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD")
    assert environment()["commit"] == commit
    (tmp_path / "untracked").write_text("1")
    assert environment()["commit"] == commit
    (tmp_path / "a").write_text("2")
    assert environment()["commit"] == f"{commit}+"


def test_equal_config_continues_and_keeps_what_is_there(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.create(CONFIG)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    record.create({"experiment": None, "seed": 0, "strategy": {"sizes": [1, 2], "name": "ER"}})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"^seed: 1 differs from 0 in the record"),
        ({"strategy": {"name": "Naive", "sizes": [1, 2]}}, r"^strategy\.name: 'Naive' differs"),
        ({"strategy": {"name": "ER"}}, r"^strategy\.sizes: nothing differs from \[1, 2\]"),
        ({"net": {"name": "MLP"}}, r"^net: \{'name': 'MLP'\} differs from nothing"),
        ({"strategy": "ER"}, r"^strategy: 'ER' differs from \{"),
    ],
)
def test_other_config_is_refused_by_its_field(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    record = Record(tmp_path)
    record.create(CONFIG)
    kept = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=message):
        record.create(CONFIG | change)
    assert (tmp_path / "config.yaml").read_bytes() == kept


def test_folder_of_someone_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty and holds no record \(it has thesis.tex\)"):
        Record(tmp_path).create(CONFIG)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    (tmp_path / "config.yaml").write_text("just words")
    with pytest.raises(UserError, match=r"holds no record: config.yaml is missing or unreadable"):
        _ = Record(tmp_path).config
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"holds no record: config.yaml is missing"):
        _ = Record(tmp_path).config


def test_creation_killed_at_any_write_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        pass

    replace = os.replace
    for survived in range(2):
        left = [survived]

        def die(source: Any, target: Any, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Death
            left[0] -= 1
            replace(source, target)

        record = Record(tmp_path / str(survived))
        with monkeypatch.context() as patch, record.lock():
            patch.setattr(os, "replace", die)
            with pytest.raises(Death):
                record.create(CONFIG)
        with record.lock():
            record.create(CONFIG)
        assert {"config.yaml", "environment.json"} <= set(os.listdir(record.folder))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"api_key": "abc"}, r"loggers\.1\.init_args\.api_key"),
        ({"deep": [{"token": "abc"}]}, r"loggers\.1\.init_args\.deep\.0\.token"),
        ({"tracking_uri": "http://service.example"}, r"loggers\.1\.init_args\.tracking_uri"),
        ({"anything": "https://service.example"}, r"loggers\.1\.init_args\.anything"),
    ],
)
def test_secrets_of_loggers_are_refused(
    options: dict[str, Any], field: str, tmp_path: Path
) -> None:
    loggers = ["wandb", {"class_path": "some.Logger", "init_args": options}]
    with pytest.raises(UserError, match=rf"^{field}: a record keeps no key, token or address"):
        Record(tmp_path).create(CONFIG | {"loggers": loggers})
    assert os.listdir(tmp_path) == []


def test_local_addresses_of_loggers_are_kept(tmp_path: Path) -> None:
    options = {"tracking_uri": "file:./runs", "save_dir": "https"}
    config = CONFIG | {"loggers": [{"class_path": "some.Logger", "init_args": options}]}
    Record(tmp_path).create(config)
    assert Record(tmp_path).config["loggers"][0]["init_args"] == options


# The lock


HOLDER = """
import sys
from pathlib import Path
from clearn.record import Record
with Record(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    record = Record(tmp_path / "r")
    command = [sys.executable, "-c", HOLDER, str(record.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(RecordInUse, match=r"r is in use by another process"), record.lock():
            pass
        holder.kill()
    with record.lock(), pytest.raises(RecordInUse), Record(record.folder).lock():
        pass


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    record = Record(tmp_path / "file" / "r")
    with pytest.raises(UserError, match=r"cannot write to .*r \(Not a directory\)"), record.lock():
        pass


# Results


def test_matrix_is_read_back_exactly(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).random((4, 4))
    matrix[np.triu_indices(4, 2)] = np.nan
    matrix[0, 0] = 1 / 3
    Record(tmp_path).write_matrix(matrix)
    header = (tmp_path / "matrix.csv").read_text().splitlines()[0]
    assert header == "after_task,task_0,task_1,task_2,task_3"
    table = np.genfromtxt(tmp_path / "matrix.csv", delimiter=",", skip_header=1)
    np.testing.assert_array_equal(table[:, 0], range(4))
    np.testing.assert_array_equal(table[:, 1:], matrix)


def test_bytes_and_status(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.write_bytes([{"parameters": 10}, {"parameters": 10, "buffer": 2**40}])
    assert strict(tmp_path / "bytes.json")[1] == {"parameters": 10, "buffer": 2**40}
    record.write_status(EVENT)
    status = strict(tmp_path / "status.json")
    assert status == {
        "task": 1, "tasks": 3, "epoch": 0, "epochs": 2,
        "examples_per_s": 10.0, "acc": None, "done": 0.4,
    }  # fmt: skip


def test_status_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    Record(tmp_path / "missing").write_status(EVENT)
    assert os.listdir(tmp_path) == []


def test_result_survives_and_nan_stays_nan(tmp_path: Path) -> None:
    record = Record(tmp_path)
    result = {"matrix": [[0.1 + 0.2, math.nan], [1.0, 0.5]], "bytes": [{"p": 3}], "seconds": [1.5]}
    record.finish({"acc": 0.75, "fwt": math.nan}, result)
    assert strict(tmp_path / "metrics.json")["metrics"] == {"acc": 0.75, "fwt": None}
    assert record.finished
    loaded = Record(tmp_path).load_result()
    np.testing.assert_array_equal(loaded["matrix"], result["matrix"])
    assert loaded["bytes"] == [{"p": 3}]
    metrics = record.load_metrics()
    assert metrics["acc"] == 0.75
    assert math.isnan(metrics["fwt"])


@pytest.mark.parametrize("content", [None, "", '{"metrics": {', "[]", "{}", "null", "\xff"])
def test_only_whole_metrics_mean_finished(content: str | None, tmp_path: Path) -> None:
    record = Record(tmp_path)
    if content is not None:
        (tmp_path / "metrics.json").write_bytes(content.encode("latin-1"))
    assert not record.finished
    with pytest.raises(UserError, match=r"holds no finished record; finish it: clearn resume"):
        record.load_result()
