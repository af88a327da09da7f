"""One run of an experiment by `clearn run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from clearn.compare import read_experiment
from clearn.run.config import resolve_config
from tests.clearn.cli.conftest import Asked, Clearn


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of torch's threads is put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


CELLS = """
baseline: ER
seeds: [3, 4]
threads: 2
streams: {Two: {name: SplitDigits, keep_tasks: 2}, SplitDigits: {}}
strategies: {Naive: {}, Small: {name: ER, buffer_size: 20}, ER: {}}
net: {name: MLP, hidden: [16]}
"""


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ((), "Naive/Two/order0-seed3"),
        (("--strategy", "Small"), "Small/Two/order0-seed3"),
        (("--strategy=Small", "--seed=4"), "Small/Two/order0-seed4"),
        (("--seed", "4", "--stream", "SplitDigits"), "Naive/SplitDigits/order0-seed4"),
    ],
)
@pytest.mark.usefixtures("threads")
def test_one_run_of_an_experiment(
    flags: Sequence[str],
    folder: str,
    clearn: Clearn,
    asked: Asked,
) -> None:
    Path("experiments").mkdir()
    Path("experiments/cells.yaml").write_text(CELLS)
    code, out, err = clearn("run", "--config", "experiments/cells.yaml", *flags)
    assert (code, out) == (0, "")
    assert err == (
        f"{folder}: one of 12 runs of experiments/cells.yaml; choose by "
        "--strategy (Naive, Small, ER), --stream (Two, SplitDigits), --seed (3, 4)\n"
    )
    ((config, record),) = asked
    (cell,) = (c for c in read_experiment(Path("experiments/cells.yaml")).cells if str(c) == folder)
    assert record == cell.folder == Path.cwd() / "results/cells/runs" / folder
    assert config == resolve_config(cell.config)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("threads")
def test_a_changed_run_of_an_experiment_is_kept_elsewhere(clearn: Clearn, asked: Asked) -> None:
    Path("cells.yaml").write_text(CELLS)
    flags = ("--strategy", "Small", "--strategy.lr", "0.5", "--training.epochs", "2")
    code, _, err = clearn("run", "--config", "cells.yaml", *flags)
    assert code == 0
    assert err.startswith("Small/Two/order0-seed3, changed: one of 12 runs of cells.yaml")
    ((config, folder),) = asked
    assert config == resolve_config(
        {
            "strategy": {"name": "ER", "buffer_size": 20, "lr": 0.5},
            "stream": {"name": "SplitDigits", "keep_tasks": 2},
            "net": {"name": "MLP", "hidden": [16]},
            "training": {"epochs": 2},
            "seed": 3,
        }
    )
    assert folder == Path("runs/ER-SplitDigits-seed3")
    assert clearn("run", "--config", "cells.yaml", "--folder", "out").code == 0
    assert asked[1][1] == Path("out")
    _, out, _ = clearn("run", "--config", "cells.yaml", "--strategy", "Small", "--help")
    assert "--strategy.buffer_size" in out


@pytest.mark.usefixtures("threads")
def test_compare_takes_such_a_run_as_done(clearn: Clearn) -> None:
    one = "baseline: Naive\nseeds: [0]\nstreams: {SplitDigits: {keep_tasks: 2}}\n"
    Path("one.yaml").write_text(f"{one}strategies: {{Naive: {{}}}}\n")
    code, out, err = clearn("run", "--config", "one.yaml")
    assert code == 0
    assert "Naive/SplitDigits/order0-seed0: one of 1 run of one.yaml\n" in err
    record = Path("results/one/runs/Naive/SplitDigits/order0-seed0")
    assert f"record: {record.absolute()}" in out
    before = (record / "metrics.json").stat().st_mtime_ns
    code, out, _ = clearn("compare", "one.yaml")
    assert code == 0
    assert (record / "metrics.json").stat().st_mtime_ns == before
    assert Path("results/one/table.csv").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--strategy Smal", "strategy of cells.yaml: 'Smal' is unknown; did you mean Small? Known"),
        ("--stream Three", "stream of cells.yaml: 'Three' is unknown"),
        ("--seed 5", "seed: 5 is not among those of cells.yaml: 3, 4"),
    ],
)
def test_a_run_that_an_experiment_has_not(flags: str, message: str, clearn: Clearn) -> None:
    Path("cells.yaml").write_text(CELLS)
    code, out, err = clearn("run", "--config", "cells.yaml", *flags.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"clearn: error: {message}")
    assert err.count("\n") == 1
