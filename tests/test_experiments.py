"""Every experiment that is kept can be run, and those of WSN have the nets of its paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clearn.compare import Experiment, read_experiment
from clearn.masks import maskable
from clearn.nets import net_builder
from clearn.run.config import resolve_config
from clearn.run.training import Training

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_experiment_can_be_run(path: Path) -> None:
    experiment = read_experiment(path)
    kinds = {(cell.strategy, cell.stream): cell.config for cell in experiment.cells}
    for config in kinds.values():
        resolved = resolve_config(config)
        Training(**resolved["training"])
    command = f"clearn compare {path.relative_to(ROOT)}"
    assert command in experiment.text, f"its comment lacks the command: {command}"


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        ("pmnist", (1, 28, 28), 88_400),
        ("five_datasets", (3, 32, 32), 1_090_140),
        ("omniglot_rotation", (1, 32, 32), 24_436_400),
        ("cifar100_split", (3, 32, 32), 6_499_328),
        ("cifar100_superclass", (3, 32, 32), 2_986_500),
        ("tiny_imagenet", (3, 64, 64), 2_743_520),
        ("tiny_imagenet_table", (3, 64, 64), 2_743_520),
    ],
)
def test_weights_to_mask_as_counted_in_the_authors_code(
    name: str, shape: tuple[int, ...], weights: int
) -> None:
    (net,) = {str(c.config["net"]): c.config["net"] for c in _wsn(name).cells}.values()
    options = {option: value for option, value in net.items() if option not in ("name", "head")}
    with torch.device("meta"):
        backbone = net_builder(net["name"])(shape, **options)
    assert sum(weight.numel() for weight in maskable(backbone).values()) == weights
    assert sum(weight.numel() for weight in backbone.parameters()) == weights


def test_the_run_for_a_cpu_is_one_of_the_table() -> None:
    (cell,) = _wsn("tiny_imagenet").cells
    config = resolve_config(cell.config) | {"experiment": None}
    of_table = [
        resolve_config(other.config) | {"experiment": None}
        for other in _wsn("tiny_imagenet_table").cells
        if (other.order, other.strategy) == (0, "WSN-c0.1")
    ]
    assert of_table == [config]


def _wsn(name: str) -> Experiment:
    return read_experiment(ROOT / "experiments/wsn" / f"{name}.yaml")
