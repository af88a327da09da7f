"""run, compare, resume and report, end to end on real digits."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from clearn.cli import commands
from clearn.errors import UserError
from clearn.run.config import build_run, resolve_config
from tests.clearn.cli.conftest import Asked, Clearn

QUICK = ("--stream.keep_tasks", "2", "--net.hidden", "[16]")


def test_without_arguments(clearn: Clearn, asked: Asked) -> None:
    assert clearn("run") == (0, "", "")
    ((config, folder),) = asked
    assert config == resolve_config({"strategy": "ER", "stream": "SplitDigits"})
    assert folder == Path("runs/ER-SplitDigits-seed0")


FLAGS = (
    *("--strategy", "ER", "--strategy.buffer_size", "500"),
    *("--stream", "SplitDigits", "--stream.num_tasks", "5", "--stream.classes", "[[0,1],[2]]"),
    *("--net", "MLP", "--net.hidden", "[64]", "--training.epochs", "2"),
    *("--trainer.precision", "bf16-mixed", "--loggers", "[csv]", "--seed", "1"),
    *("--experiment", "digits"),
)
FIELDS: dict[str, Any] = {
    "strategy": {"name": "ER", "buffer_size": 500},
    "stream": {"name": "SplitDigits", "num_tasks": 5, "classes": [[0, 1], [2]]},
    "net": {"name": "MLP", "hidden": [64]},
    "training": {"epochs": 2},
    "trainer": {"precision": "bf16-mixed"},
    "loggers": ["csv"],
    "seed": 1,
    "experiment": "digits",
}


def test_flags_and_yaml_say_the_same(clearn: Clearn, asked: Asked) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(FIELDS))
    with_equals = ["--strategy=ER", *FLAGS[2:]]
    with_equals[with_equals.index("[csv]")] = "csv"
    assert clearn("run", *FLAGS).code == 0
    assert clearn("run", *with_equals).code == 0
    assert clearn("run", "--config", "run.yaml", "--folder", "out").code == 0
    assert [config for config, _ in asked] == [resolve_config(FIELDS)] * 3
    assert asked[2][1] == Path("out")


def test_flags_override_the_file(clearn: Clearn, asked: Asked) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(FIELDS))
    flags = ("--strategy.lr", "0.5", "--training.batch_size", "8", "--seed", "9")
    accelerator = ("--trainer.accelerator", "cpu")
    assert clearn("run", *flags, "--config", "run.yaml", *accelerator).code == 0
    assert asked[-1][0] == resolve_config(
        FIELDS
        | {
            "strategy": {"name": "ER", "buffer_size": 500, "lr": 0.5},
            "training": {"epochs": 2, "batch_size": 8},
            "trainer": {"precision": "bf16-mixed", "accelerator": "cpu"},
            "seed": 9,
        }
    )
    assert clearn("run", "--config", "run.yaml", "--strategy", "Naive").code == 0
    assert asked[-1][0] == resolve_config(FIELDS | {"strategy": "Naive"})
    Path("short.yaml").write_text("strategy: Naive\nstream: SplitDigits\n")
    assert clearn("run", "--config=short.yaml", "--strategy.lr=0.5").code == 0
    assert asked[-1][0]["strategy"]["lr"] == 0.5


def test_default_folders_do_not_mix_runs(clearn: Clearn, asked: Asked) -> None:
    def ask(*flags: str) -> Path:
        clearn("run", *flags)
        config, folder = asked[-1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
        return folder

    first = Path("runs/ER-SplitDigits-seed0")
    assert ask() == first
    assert ask("--strategy.lr", "0.5") == Path(f"{first}-2")
    assert ask("--strategy.lr", "0.7") == Path(f"{first}-3")
    assert ask("--strategy.lr", "0.5") == Path(f"{first}-2")
    assert ask() == first


def test_run_prints_the_result_and_keeps_the_record(clearn: Clearn) -> None:
    flags = ("run", *QUICK, "--loggers", "[csv]", "--seed", "4")
    code, out, err = clearn(*flags)
    assert code == 0
    assert "accuracy in %  task 0" in out
    assert "\nACC " in out
    assert "forgetting" in out
    assert "record: runs/ER-SplitDigits-seed4" in out
    assert "Warning" not in err
    assert "finished" not in err
    record = Path("runs/ER-SplitDigits-seed4")
    kept = yaml.safe_load((record / "config.yaml").read_text())
    assert kept == resolve_config(kept)
    assert (record / "csv").is_dir()

    again = clearn(*flags)
    assert (again.code, again.out) == (0, out)
    assert again.err == "the record is finished; nothing is left to run\n"
    assert clearn("run", "--config", str(record / "config.yaml"), "--folder", "copy").code == 0
    assert Path("copy/matrix.csv").read_text() == (record / "matrix.csv").read_text()


class StopOnce(Callback):
    """Sends this process a signal after the first chunk, once."""

    left = 0

    def __init__(self, signum: int) -> None:
        self.signum = signum

    def on_train_batch_end(self, *args: Any) -> None:
        if StopOnce.left:
            StopOnce.left -= 1
            os.kill(os.getpid(), self.signum)


def test_interrupt_says_how_to_resume(clearn: Clearn) -> None:
    callback = {"class_path": f"{__name__}.StopOnce", "init_args": {"signum": int(signal.SIGINT)}}
    Path("run.yaml").write_text(yaml.safe_dump({**FIELDS, "trainer": {"callbacks": [callback]}}))
    whole = clearn("run", "--config", "run.yaml", "--folder", "whole")
    assert whole.code == 0
    StopOnce.left = 1
    code, out, err = clearn("run", "--config", "run.yaml", "--folder", "out")
    assert (code, out) == (130, "")
    assert err.endswith(
        "clearn: stopped by SIGINT; the record can be resumed, with: clearn resume out\n"
    )
    resumed = clearn("resume", "out")
    assert resumed.code == 0
    assert Path("out/matrix.csv").read_text() == Path("whole/matrix.csv").read_text()


def test_resume_finishes_all_records_under_a_folder(clearn: Clearn, asked: Asked) -> None:
    config = resolve_config(FIELDS)
    for name, finished in (("b/x", False), ("a/y", False), ("a/z", True)):
        folder = Path("some") / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        if finished:
            (folder / "metrics.json").write_text('{"metrics": {}, "result": {}}')
    tracker = Path("some/a/z/wandb/run-1/files/config.yaml")  # W&B's own, in a run that is online
    tracker.parent.mkdir(parents=True)
    tracker.write_text("_wandb: {}")
    assert clearn("resume", "some") == (0, "3 records, 2 of them to finish\n", "")
    assert asked == [(config, Path("some/a/y")), (config, Path("some/b/x"))]


def test_resume_takes_as_many_threads_as_the_run_began_with(
    clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert clearn("run", *QUICK, "--folder", "out").code == 0
    assert asked == []
    environment = json.loads(Path("out/environment.json").read_text())
    Path("out/environment.json").write_text(json.dumps(environment | {"threads": 3}))
    assert clearn("resume", "out").code == 0
    assert asked == [3]


def test_resume_goes_on_after_a_run_that_fails(
    clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = []

    def fit(config: Mapping[str, Any], folder: Path) -> int:
        resumed.append(folder.name)
        if folder.name == "a":
            raise UserError("loss is nan")
        return 0

    monkeypatch.setattr(commands, "_fit", fit)
    for name, content in {"a": "{}", "b": "{}", "c": "{"}.items():
        folder = Path("some") / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(content)
    code, _, err = clearn("resume", "some")
    assert resumed == ["a", "b"]
    assert code == 2
    assert err.count("\n") == 1
    assert "2 of 3 runs failed: some/a: loss is nan; some/c: " in err


EXPERIMENT = """
baseline: Naive
seeds: [0]
streams: {SplitDigits: {keep_tasks: 2}}
strategies: {Naive: {}, ER: {buffer_size: 20}}
net: {name: MLP, hidden: [16]}
training: {epochs: 1}
"""


def test_compare_is_handed_what_was_asked_for(
    clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, int | None, Path | None]] = []

    def run_experiment(path: Path, *, jobs: int | None, folder: Path | None) -> Path:
        calls.append((path, jobs, folder))
        return folder or Path("results/tiny")

    monkeypatch.setattr("clearn.compare.run_experiment", run_experiment)
    monkeypatch.setattr(
        "clearn.cli.show.print_comparison",
        lambda folder: print(f"report: {folder / 'report.html'}"),
    )
    assert clearn("compare", "tiny.yaml") == (0, "report: results/tiny/report.html\n", "")
    assert clearn("compare", "tiny.yaml", "--jobs", "3", "--folder", "out").code == 0
    Path("out").mkdir()
    Path("out/experiment.yaml").write_text(EXPERIMENT)
    assert clearn("resume", "out").code == 0
    kept = Path("out/experiment.yaml")
    assert calls == [
        (Path("tiny.yaml"), None, None),
        (Path("tiny.yaml"), 3, Path("out")),
        (kept, None, Path("out")),
    ]


@pytest.mark.slow
def test_compare_report_and_resume(clearn: Clearn) -> None:
    Path("tiny.yaml").write_text(EXPERIMENT)
    code, out, err = clearn("compare", "tiny.yaml", "--jobs", "1", "--folder", "results")
    assert code == 0, err
    assert out.endswith("report: results/report.html\n")
    report = Path("results/report.html")
    table = Path("results/table.csv").read_text()
    report.unlink()
    assert clearn("report", "results").code == 0
    assert report.is_file()
    report.unlink()
    assert clearn("resume", "results").code == 0
    assert report.is_file()
    assert Path("results/table.csv").read_text() == table


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("cells.yaml --seed 1", "cells.yaml stands alone; give a file of fields as --config FILE"),
        ("--strategy Er", "strategy: 'Er' is unknown; did you mean ER"),
        ("--stream SplitDigts", "stream: 'SplitDigts' is unknown; did you mean SplitDigits"),
        ("--net MPL", "net.name: 'MPL' is unknown; did you mean MLP"),
        (
            "--strategy.buffr_size 3",
            "option: '--strategy.buffr_size' is unknown; did you mean --st",
        ),
        ("--strategy.buffer_size x", "strategy.buffer_size: 'x' is not valid: expected an integer"),
        ("--strategy.buffer_size", "argument --strategy.buffer_size: expected one argument"),
        (
            "--strategy.buffer_size 0",
            "strategy.buffer_size: 0 is not valid: expected an integer >= 1",
        ),
        ("--training.epochs 0", "training.epochs: 0 is not valid: expected an integer >= 1"),
        ("--trainer.max_epochs 1", "trainer.max_epochs: 1 belongs to the run"),
        ("--trainer.precison 16", "option of trainer: 'trainer.precison' is unknown; did you mean"),
        ("--stream.classes [[0,1],[1,2]]", "stream.classes: "),
        ("--stream.classes [[0,1],[98,2]]", "stream.classes: "),
        ("--stream.classes [[0,1],[]]", "stream.classes: "),
        ("--config absent.yaml", "absent.yaml: cannot be read"),
        ("--config broken.yaml", "broken.yaml: not valid YAML in line 1"),
        ("--config half.yaml", "strategy: missing"),
        ("--config wrong.yaml", "stream.num_tasks: 'five' is not valid: expected an integer"),
        ("--config odd.yaml", "field: 'sed' is unknown; did you mean seed"),
        ("--folder broken.yaml", "folder: "),
        ("--folder full", "folder: full is not empty and holds no record"),
    ],
)
def test_errors_name_the_field_its_value_and_what_is_allowed(
    flags: str, message: str, clearn: Clearn
) -> None:
    Path("broken.yaml").write_text("strategy: [ER")
    Path("half.yaml").write_text("stream: SplitDigits")
    Path("wrong.yaml").write_text("strategy: ER\nstream: {name: SplitDigits, num_tasks: five}")
    Path("odd.yaml").write_text("strategy: ER\nstream: SplitDigits\nsed: 1")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("mine")
    code, out, err = clearn("run", *flags.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"clearn: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
        ("pathlib.Path.mkdir", OSError(errno.EROFS, "Read-only file system")),
    ],
)
def test_full_disk_and_read_only_folder(
    call: str, error: OSError, clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(call, fail)
    code, out, err = clearn("run", *QUICK, "--folder", "out/record")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("clearn: error: ")
    assert "out/record" in last
    assert str(error.strerror) in last


def test_strategy_in_the_current_folder(clearn: Clearn) -> None:
    Path("my_own.py").write_text(
        "from clearn.strategies import Naive\n\n\n"
        "class Mine(Naive):\n"
        '    """Mine alone."""\n\n'
        "    def __init__(self, net, *, weight: float = 2.0, **options):\n"
        "        super().__init__(net, **options)\n"
    )
    code, out, _ = clearn("run", "--strategy", "my_own:Mine", "--help")
    assert code == 0
    assert "Mine alone" in out
    assert "--strategy.weight WEIGHT" in out
    code, out, err = clearn("run", "--strategy", "my_own:Mine", *QUICK)
    assert code == 0, err
    assert "record: runs/Mine-SplitDigits-seed0" in out


def test_two_processes_do_not_run_into_one_folder(clearn: Clearn) -> None:
    run = build_run({"strategy": "Naive", "stream": "SplitDigits"}, Path("out"))
    assert run.record is not None
    with run.record.lock():
        code, out, err = clearn("run", "--strategy", "Naive", "--folder", "out")
    assert (code, out) == (2, "")
    assert "out is in use by another process" in err.splitlines()[-1]


@pytest.mark.slow
def test_terminated_process_can_be_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clearn", "run", "--folder", "out", *QUICK]
    process = subprocess.Popen(
        [*command, "--training.epochs", "100000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out/status.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (143, "")
    assert err.splitlines()[-1].endswith("with: clearn resume out")
    assert "Traceback" not in err
    assert "Warning" not in err
    assert list((tmp_path / "out/checkpoints").glob("*.ckpt"))
