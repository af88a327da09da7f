"""Experiment files: the grid against a slow product, and one line for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clearn.compare.experiment import Experiment, read_experiment
from clearn.errors import UserError

BASE: dict[str, Any] = {
    "baseline": "Naive",
    "seeds": [0, 1],
    "streams": {"SplitDigits": {"scenario": "class"}},
    "strategies": {"Naive": {}, "ER": {"buffer_size": 200}},
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Experiment]:
    def read(text: str | None = None, **fields: Any) -> Experiment:
        path = tmp_path / "digits.yaml"
        path.write_text(yaml.safe_dump(BASE | fields, sort_keys=False) if text is None else text)
        return read_experiment(path, tmp_path / "out")

    return read


def test_one_cell(read: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = read(
        net={"name": "MLP", "hidden": [8]}, training={"epochs": 3}, loggers=["wandb"], seeds=[7]
    )
    _, cell = experiment.cells
    assert (cell.strategy, cell.stream, cell.order, cell.seed) == ("ER", "SplitDigits", 0, 7)
    assert cell.folder == tmp_path / "out/runs/ER/SplitDigits/order0-seed7"
    assert str(cell) == "ER/SplitDigits/order0-seed7"
    assert cell.config == {
        "strategy": {"name": "ER", "buffer_size": 200},
        "stream": {"name": "SplitDigits", "scenario": "class"},
        "net": {"name": "MLP", "hidden": [8]},
        "training": {"epochs": 3},
        "loggers": ["wandb"],
        "seed": 7,
        "experiment": "digits",
    }


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=3, unique=True),
)
def test_the_grid_is_a_product(
    tmp_path_factory: pytest.TempPathFactory,
    strategies: int,
    streams: int,
    seeds: list[int],
    orders: list[int | None],
) -> None:
    path = tmp_path_factory.mktemp("grid") / "e.yaml"
    fields = {
        "baseline": "s0",
        "seeds": seeds,
        "orders": orders,
        "streams": {f"d{k}": {"name": "SplitDigits"} for k in range(streams)},
        "strategies": {f"s{k}": {"name": "Naive"} for k in range(strategies)},
    }
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    expected = []
    for position, order_seed in enumerate(orders):
        for seed in seeds:
            for stream in range(streams):
                for strategy in range(strategies):
                    folder = f"runs/s{strategy}/d{stream}/order{position}-seed{seed}"
                    expected.append((folder, order_seed, seed))
    found = [
        (
            str(cell.folder.relative_to(path.parent)),
            cell.config["stream"].get("order_seed"),
            cell.seed,
        )
        for cell in read_experiment(path, path.parent).cells
    ]
    assert found == expected
    assert len({folder for folder, _, _ in found}) == len(found)


def test_own_options_go_over_the_shared_ones(read: Callable[..., Experiment]) -> None:
    experiment = read(
        seeds=[0],
        net={"name": "MLP", "hidden": [8]},
        training={"epochs": 3, "batch_size": 16},
        strategies={
            "Naive": None,
            "long": {"name": "Naive", "lr": 0.5, "training": {"epochs": 9}},
            "wide": {"name": "Naive", "net": {"hidden": [99]}},
            "conv": {"name": "Naive", "net": "LeNet", "trainer": {"precision": "64-true"}},
        },
    )
    naive, long, wide, conv = (cell.config for cell in experiment.cells)
    assert naive["training"] == {"epochs": 3, "batch_size": 16}
    assert naive["strategy"] == {"name": "Naive"}
    assert long["training"] == {"epochs": 9, "batch_size": 16}
    assert long["strategy"] == {"name": "Naive", "lr": 0.5}
    assert wide["net"] == {"name": "MLP", "hidden": [99]}
    assert conv["net"] == {"name": "LeNet"}  # hidden belongs to the MLP
    assert conv["trainer"] == {"precision": "64-true"}
    assert "trainer" not in naive


def test_where_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside, outside = tmp_path / "experiments/a/b.yaml", tmp_path / "elsewhere/c.yaml"
    for path in (inside, outside):
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(BASE))
    first, second = read_experiment(inside), read_experiment(Path("elsewhere/c.yaml"))
    assert (first.name, first.folder) == ("a/b", tmp_path / "results/a/b")
    assert (second.name, second.folder) == ("c", tmp_path / "results/c")
    assert first.title == "a/b"
    assert read_experiment(inside, tmp_path / "x").folder == tmp_path / "x"


def test_the_copy_kept_with_the_results_goes_on_there(tmp_path: Path) -> None:
    """Without records, of which none may be committed, when its folder is named."""
    folder = tmp_path / "results/a/digits"
    folder.mkdir(parents=True)
    copy = folder / "experiment.yaml"
    copy.write_text(yaml.safe_dump(BASE))
    fresh = read_experiment(copy, folder)
    assert (fresh.name, fresh.folder) == ("a/digits", folder)
    record = folder / "runs/ER/SplitDigits/order0-seed0/config.yaml"
    record.parent.mkdir(parents=True)
    record.write_text("{experiment: a/original}")
    assert (read_experiment(copy).name, read_experiment(copy).folder) == ("a/original", folder)


def test_a_file_of_that_name_beside_single_runs_is_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results in its folder would replace files that lie there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/ER-SplitDigits-seed0").mkdir(parents=True)
    (tmp_path / "runs/ER-SplitDigits-seed0/config.yaml").write_text("{}")
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(BASE))
    assert read_experiment(path).folder == tmp_path / "results/experiment"


def test_each_strategy_may_have_a_baseline_of_its_own(read: Callable[..., Experiment]) -> None:
    assert read(baseline={"ER": "Naive"}).baseline == {"ER": "Naive"}


def test_what_is_compared(read: Callable[..., Experiment]) -> None:
    assert read().metric == "acc"
    assert read(metric="avg_incremental_acc").metric == "avg_incremental_acc"


def test_a_stream_may_have_a_net_and_training_of_its_own(read: Callable[..., Experiment]) -> None:
    """What a strategy says of its own goes over that, and both over what is shared."""
    experiment = read(
        net={"name": "MLP", "hidden": [8]},
        training={"epochs": 3, "batch_size": 5},
        streams={
            "SplitDigits": None,
            "photos": {"name": "SplitCIFAR10", "net": "LeNet", "training": {"epochs": 7}},
        },
        strategies={"Naive": None, "small": {"name": "Naive", "training": {"batch_size": 1}}},
    )
    found = {(c.strategy, c.stream): c.config for c in experiment.cells}
    assert found["Naive", "SplitDigits"]["net"] == {"name": "MLP", "hidden": [8]}
    assert found["Naive", "photos"]["net"] == {"name": "LeNet"}
    assert found["Naive", "photos"]["training"] == {"epochs": 7, "batch_size": 5}
    assert found["small", "photos"]["training"] == {"epochs": 7, "batch_size": 1}
    assert found["small", "photos"]["stream"] == {"name": "SplitCIFAR10"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": None}, "seeds: missing; expected a list of different integers"),
        ({"strategies": None}, "strategies: missing"),
        (
            {"baseline": "naive"},
            "baseline: 'naive' is unknown; did you mean Naive\\? Known: ER, Naive",
        ),
        ({"baseline": ["Naive"]}, "baseline: .* is unknown"),
        ({"baseline": {"ER": "Joint"}}, "baseline: 'Joint' is unknown"),
        ({"baseline": {"Joint": "ER"}}, "baseline: 'Joint' is unknown"),
        ({"baseline": {"ER": "ER"}}, r"baseline\.ER: a strategy is not compared with itself"),
        ({"metric": "accuracy"}, "metric: 'accuracy' is unknown; did you mean acc"),
        ({"strategys": {}}, "field: 'strategys' is unknown; did you mean strategies"),
        ({"seeds": []}, r"seeds: \[\] is not valid: expected a list"),
        ({"seeds": 3}, "seeds: 3 is not valid"),
        ({"seeds": [0, "1"]}, "seeds: '1' is not valid"),
        ({"seeds": [True]}, "seeds: True is not valid"),
        ({"seeds": [-1]}, "seeds: -1 is not valid"),
        ({"seeds": [2, 1, 2]}, "seeds: 2 is given twice"),
        ({"orders": [None, None]}, "orders: null is given twice"),
        ({"orders": ["a"]}, "orders: 'a' is not valid"),
        ({"orders": []}, r"orders: \[\] is not valid"),
        (
            {"orders": [1], "streams": {"SplitDigits": {"order_seed": 2}}},
            "streams.SplitDigits.order_seed: orders is given too",
        ),
        ({"streams": {}}, "streams: {} is not valid: expected streams by label"),
        ({"streams": ["SplitDigits"]}, "streams: .* is not valid: expected streams by label"),
        ({"strategies": {"Naive": 3}}, "strategies.Naive: 3 is not valid: expected options"),
        ({"strategies": {"Naive": {"net": 3}}}, "strategies.Naive.net: 3 is not valid"),
        ({"strategies": {"a/b": {}, "Naive": {}}}, "strategies: the label 'a/b' names a folder"),
        ({"strategies": {"..": {}, "Naive": {}}}, r"the label '\.\.' names a folder"),
        ({"strategies": {" x": {}, "Naive": {}}}, "the label ' x' names a folder"),
        ({"strategies": {"x" * 101: {}, "Naive": {}}}, "the label 'xxx"),
        ({"strategies": {"": {}, "Naive": {}}}, "the label '' names a folder"),
        ({"strategies": {1: {}, "Naive": {}}}, "strategies: the label 1 is not text; quote it"),
        ({"strategies": {"Naive": {}, "naive": {}}}, "Naive and naive would share a folder"),
        ({"net": 3}, "net: 3 is not valid: expected options"),
        ({"training": [1]}, "training: .* is not valid"),
        ({"loggers": "wandb"}, "loggers: 'wandb' is not valid: expected a list"),
        ({"title": 3}, "title: 3 is not valid: expected text"),
        ({"threads": 0}, "threads: 0 is not valid: expected an integer >= 1"),
    ],
)
def test_mistakes_take_one_line(
    read: Callable[..., Experiment], tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(**fields)
    assert str(caught.value).startswith(f"{tmp_path / 'digits.yaml'}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0\nstreams: {", "not valid YAML in line 2, column 8"),
        ("- a", r"expected a mapping of fields, found \['a'\]"),
        ("strategies:\n  ER: {}\n  ER: {lr: 1}\n", "ER: given 2 times"),
    ],
)
def test_files_that_are_no_experiment(
    read: Callable[..., Experiment], text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(text)
    assert len(str(caught.value).splitlines()) == 1
