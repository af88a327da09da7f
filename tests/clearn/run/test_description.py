"""Records of runs made in Python say what was run, and take no other run for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from clearn.errors import UserError
from clearn.nets import Net, SingleHead
from clearn.record import Record
from clearn.run import Run, Training
from clearn.run.config import resolve_config
from clearn.strategies import ER, Naive
from clearn.strategy import Strategy
from clearn.stream import Stream

MakeStream = Callable[..., Stream]
MakeStrategy = Callable[..., Strategy]


def described(strategy: Strategy, stream: Stream, **options: Any) -> dict[str, Any]:
    return Run(strategy, stream, **options).config


def test_the_record_holds_all_options(
    tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    strategy = make_strategy(ER, lr=0.5, buffer_size=7)
    trainer = {"callbacks": [Callback()], "precision": "32-true"}
    training = Training(batch_size=5)
    Run(strategy, make_stream(), training=training, seed=3, folder=tmp_path, trainer=trainer).fit()
    kept = Record(tmp_path).config
    assert kept["strategy"]["name"] == "clearn.strategies.replay.ER"
    options = {name: kept["strategy"][name] for name in ("lr", "buffer_size", "momentum")}
    assert options == {"lr": 0.5, "buffer_size": 7, "momentum": 0.0}
    assert kept["net"]["parameters"] == 12 * 16 + 16 + 32 + 16 * 6 + 6
    assert kept["net"]["head"] == "clearn.nets.heads.SingleHead"
    measures = {key: kept["stream"][key] for key in ("name", "scenario", "tasks", "classes")}
    assert measures == {"name": "arrays", "scenario": "class", "tasks": 3, "classes": 6}
    assert kept["stream"]["examples"] == 6 * 21
    assert (kept["training"]["batch_size"], kept["training"]["epochs"]) == (5, 1)
    assert kept["trainer"] == {"precision": "32-true"}
    assert kept["seed"] == 3


def test_another_run_is_not_taken_for_a_finished_one(
    tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    """Before, the old numbers came back after the script was given another learning rate."""
    Run(make_strategy(lr=0.1), make_stream(), folder=tmp_path).fit()
    said = r"^strategy\.lr: 0\.2 differs from 0\.1 in the record .*name another folder"
    with pytest.raises(UserError, match=said):
        Run(make_strategy(lr=0.2), make_stream(), folder=tmp_path).fit()


@pytest.mark.parametrize(
    "other",
    [
        lambda stream, strategy: (strategy(ER), stream(), {}),
        lambda stream, strategy: (strategy(optimizer={"name": "SGD", "keep": True}), stream(), {}),
        lambda stream, strategy: (strategy(), stream(num_tasks=2), {}),
        lambda stream, strategy: (strategy(), stream(order_seed=4), {}),
        lambda stream, strategy: (strategy(), stream(train_share=0.5), {}),
        lambda stream, strategy: (strategy(), stream(scenario="task"), {}),
        lambda stream, strategy: (strategy(), stream(), {"training": Training(epochs=2)}),
        lambda stream, strategy: (strategy(), stream(), {"seed": 1}),
        lambda stream, strategy: (strategy(), stream(), {"trainer": {"precision": "bf16-true"}}),
    ],
)
def test_what_differs_is_seen(
    other: Callable[[MakeStream, MakeStrategy], tuple[Strategy, Stream, dict[str, Any]]],
    make_stream: MakeStream,
    make_strategy: MakeStrategy,
) -> None:
    first = described(make_strategy(), make_stream())
    assert first == described(make_strategy(), make_stream(), trainer={"callbacks": []})
    strategy, stream, options = other(make_stream, make_strategy)
    assert first != described(strategy, stream, **options)


def test_other_examples_are_another_run(make_strategy: MakeStrategy) -> None:
    """Of equal classes and numbers; the same examples, given otherwise, are not."""
    x, y = torch.randn(60, 12), torch.arange(6).repeat(10)

    def digest(x: torch.Tensor, **options: Any) -> str:
        stream = Stream.from_arrays(x, y, x[:12], y[:12], **options)
        return str(described(make_strategy(), stream)["stream"]["digest"])

    assert digest(x, num_tasks=3) != digest(2 * x, num_tasks=3)
    assert digest(x, num_tasks=3) == digest(x.clone(), classes=np.arange(6).reshape(3, 2))
    few = {"base_classes": 2, "ways": 2, "shots": 5}
    assert digest(x, **few, shot_seed=0) != digest(x, **few, shot_seed=1)


class Scaled(Naive):
    """Options of several constructors, one of them given by another name."""

    def __init__(self, net: Net, scale: float = 2.0, *, act: Any = None, **options: Any) -> None:
        self_made = nn.Linear(1, 1)  # another constructor in between takes nothing from ours
        super().__init__(net, lr=0.1 * scale, **options)
        self.act, self.own = act, self_made


def test_options_of_all_constructors(make_strategy: MakeStrategy) -> None:
    strategy = make_strategy(Scaled, scale=0.5, act=nn.functional.relu, momentum=0.5)
    assert strategy.made_with == {
        "lr": 0.05,
        "momentum": 0.5,
        "weight_decay": 0.0,
        "optimizer": "SGD",
        "scale": 0.5,
        "act": "torch.nn.functional.relu",
    }
    assert "0x" not in str(described(strategy, _tiny()))


def _tiny() -> Stream:
    x, y = torch.randn(4, 12), torch.arange(4) % 2
    return Stream.from_arrays(x, y, x, y, num_tasks=1)


def test_a_lazy_net_is_described() -> None:
    backbone = nn.LazyLinear(16)
    backbone.num_features = 16  # type: ignore[assignment]
    strategy = Naive(Net(backbone, SingleHead(16, 2)))
    assert described(strategy, _tiny())["net"]["parameters"] == 16 * 2 + 2


def test_a_description_is_no_configuration(
    make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    with pytest.raises(UserError, match=r"^made_in: this describes a run made in Python; its scr"):
        resolve_config(described(make_strategy(), make_stream()))


def test_loggers_by_name(
    tmp_path: Path, make_stream: MakeStream, make_strategy: MakeStrategy
) -> None:
    Run(make_strategy(), make_stream(), folder=tmp_path, loggers=["csv"]).fit()
    assert (tmp_path / "csv" / "version_0" / "metrics.csv").exists()
    with pytest.raises(UserError, match=r"^loggers\.0: 'wandbb' is unknown; did you mean wandb"):
        Run(make_strategy(), make_stream(), loggers=["wandbb"])
