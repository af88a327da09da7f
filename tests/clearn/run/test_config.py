"""A run as a mapping: defaults, types, names, and the run that comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from clearn.errors import UserError
from clearn.fields import read_yaml
from clearn.nets import Net, build_net
from clearn.run import Run, Training, config
from clearn.run.config import build_run, find_strategy, resolve_config, run_name
from clearn.strategies import ER, Naive
from clearn.streams import build_stream

SMALL: dict[str, Any] = {
    "strategy": {"name": "ER", "buffer_size": 30, "momentum": 0.5},
    "stream": {"name": "SplitDigits", "num_tasks": 5, "keep_tasks": 2},
    "net": {"name": "MLP", "hidden": [16]},
    "training": {"epochs": 1, "batch_size": 32},
    "seed": 3,
}

GOLDEN = """
strategy:
  name: ER
  buffer: reservoir
  buffer_size: 30
  buffer_bytes: null
  replay_batch_size: null
  lr: 0.1
  momentum: 0.5
  weight_decay: 0.0
  optimizer: SGD
stream:
  name: SplitDigits
  num_tasks: 5
  scenario: class
  classes: null
  class_order: null
  order_seed: null
  split: classes
  keep_tasks: 2
  validation: 0.0
  train_share: 1.0
  labels_per_class: null
  label_share: null
  label_file: null
  label_seed: null
  pool: all
  pool_decay: none
  pool_least: 5
  image_size: null
net:
  name: MLP
  head: auto
  weights: null
  hidden: [16]
  dropout: 0.0
  bias: true
training:
  epochs: 1
  batch_size: 32
  eval_batch_size: 512
  chunk_size: 16
  evaluate: seen+next
  evaluate_every: 1
  patience: null
  clip_grad: null
  checkpoint_minutes: 10.0
  log_every: 50
trainer: {}
loggers: []
seed: 3
experiment: null
"""


class Demanding(Naive):
    """A strategy of somebody else.

    Args:
        net: The network to train.
        strength: Has no default.
        untyped: Has no type.
        sizes: A list.
        **options: As of any strategy.
    """

    def __init__(
        self,
        net: Net,
        *,
        strength: float,
        untyped=7,
        sizes: tuple[int, ...] = (1, 2),
        **options: Any,
    ) -> None:
        super().__init__(net, **options)
        self.given = (strength, untyped, sizes)


DEMANDING = f"{__name__}:Demanding"


def test_defaults_are_filled_in() -> None:
    assert resolve_config(SMALL) == yaml.safe_load(GOLDEN)


def test_resolved_config_resolves_to_itself_and_survives_yaml(tmp_path: Path) -> None:
    config = SMALL | {
        "trainer": {"precision": "bf16-mixed", "devices": 1},
        "loggers": ["csv", {"class_path": "a.b", "init_args": {"x": [1]}}],
        "stream": {"name": "SplitDigits", "classes": [[1, 2], [3]], "scenario": "task"},
    }
    resolved = resolve_config(config)
    assert resolve_config(resolved) == resolved
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(resolved))
    assert resolve_config(read_yaml(path)) == resolved
    assert resolved["trainer"] == {"precision": "bf16-mixed", "devices": 1}
    assert resolved["loggers"] == config["loggers"]
    assert resolved["stream"]["classes"] == [[1, 2], [3]]


def test_bare_names_are_short_for_mappings() -> None:
    short = resolve_config({"strategy": "Naive", "stream": "SplitDigits", "loggers": "csv"})
    long = {"strategy": {"name": "Naive"}, "stream": {"name": "SplitDigits"}, "loggers": ["csv"]}
    assert short == resolve_config(long | {"net": {"name": "MLP"}, "seed": 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, r"field: 'sead' is unknown; did you mean seed"),
        ({"strategy": None}, r"strategy.name: None is not valid: expected a name"),
        ({"strategy": "nave"}, r"strategy: 'nave' is unknown; did you mean Naive"),
        ({"strategy": "no.where:X"}, r"strategy: 'no.where:X' cannot be imported"),
        ({"strategy": "clearn.strategies:X"}, r"strategy: .* cannot be imported: .*'X'"),
        ({"strategy": "torch:nn"}, r"strategy: 'torch:nn' is <module .*: expected a subclass"),
        ({"strategy": "torch.nn:Linear"}, r"strategy: 'torch.nn:Linear' is <class .*: expected"),
        ({"strategy": {"buffer_size": 3}}, r"strategy.name: None is not valid"),
        ({"strategy": {"name": "ER", "buffer_size": "x"}}, r"strategy.buffer_size: 'x' is not"),
        ({"strategy": {"name": "ER", "buffer_size": 2.5}}, r"2.5 is not valid: expected an integ"),
        ({"strategy": {"name": "ER", "lr": True}}, r"strategy.lr: True is not valid: expected a n"),
        (
            {"strategy": {"name": "ER", "lr": None}},
            r"strategy.lr: null is not valid: expected a nu",
        ),
        (
            {"strategy": {"name": "ER", "bufer_size": 1}},
            r"option of strategy ER: 'strategy.bufer_size' is unknown; did you mean strategy.buff",
        ),
        ({"strategy": {"name": "Naive", "buffer_size": 1}}, r"option of strategy Naive"),
        ({"strategy": {"name": DEMANDING}}, r"strategy.strength: missing; expected a number"),
        ({"stream": "SplitDigit"}, r"stream: 'SplitDigit' is unknown; did you mean SplitDigits"),
        (
            {"stream": {"name": "SplitDigits", "scenario": "clas"}},
            r"stream.scenario: 'clas' is not valid: expected task or class or domain",
        ),
        (
            {"stream": {"name": "SplitDigits", "classes": [[1, "a"]]}},
            r"stream.classes: \[\[1, 'a'\]\] is not valid: expected a list \(each a list",
        ),
        ({"net": "MPL"}, r"net.name: 'MPL' is unknown; did you mean MLP"),
        ({"net": {"name": "MLP", "hidden": 3}}, r"net.hidden: 3 is not valid: expected a list"),
        ({"net": {"head": "round"}}, r"net.head: 'round' is not valid: expected auto or single"),
        ({"training": [1]}, r"training: \[1\] is not valid: expected a mapping"),
        ({"training": {"epoch": 1}}, r"'training.epoch' is unknown; did you mean training.epochs"),
        ({"training": {"patience": "x"}}, r"training.patience: 'x' .* expected an integer or null"),
        ({"trainer": {"precison": 1}}, r"'trainer.precison' is unknown; did you mean trainer.prec"),
        ({"trainer": {"precision": "half"}}, r"trainer.precision: 'half' is not valid"),
        ({"seed": "a"}, r"seed: 'a' is not valid: expected an integer"),
        ({"seed": -1}, r"seed: -1 is not valid: expected an integer >= 0"),
        ({"loggers": 3}, r"loggers: 3 is not valid: expected a list"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve_config(SMALL | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["strategy", "stream"])
def test_a_missing_part_is_named(part: str) -> None:
    config = {name: value for name, value in SMALL.items() if name != part}
    with pytest.raises(UserError, match=f"{part}: missing"):
        resolve_config(config)


@pytest.mark.parametrize(
    "name", ["ER", "clearn.strategies.replay:ER", "clearn.strategies.replay.ER"]
)
def test_strategy_by_name_and_by_class_path(name: str) -> None:
    assert find_strategy(name) is ER
    assert run_name(resolve_config(SMALL | {"strategy": name})) == "ER-SplitDigits-seed3"


@pytest.mark.parametrize(
    ("experiment", "folder", "name"),
    [
        ("digits", "runs/ER small/Digits/order1-seed3", "ER small-Digits-order1-seed3"),
        (None, "runs/ER small/Digits/order1-seed3", "ER-SplitDigits-seed3"),
        ("digits", "runs/mine", "ER-SplitDigits-seed3"),
        ("digits", None, "ER-SplitDigits-seed3"),
    ],
)
def test_trackers_name_a_run_of_an_experiment_by_its_labels(
    experiment: str | None,
    folder: str | None,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = []
    monkeypatch.setattr(config, "build_loggers", lambda *_, name, **__: named.append(name) or [])
    place = None if folder is None else tmp_path / folder
    build_run(SMALL | {"experiment": experiment}, place)
    assert named == [name]


def test_strategy_of_another_package_gets_its_options_in_their_types() -> None:
    options = {"strength": 2, "untyped": "u", "sizes": [5], "lr": 0.5}
    config = resolve_config(SMALL | {"strategy": {"name": DEMANDING, **options}})
    assert config["strategy"] == {
        "name": DEMANDING, "strength": 2.0, "untyped": "u", "sizes": [5],
        "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "optimizer": "SGD",
    }  # fmt: skip
    strategy = build_run(config).strategy
    assert isinstance(strategy, Demanding)
    assert strategy.given == (2.0, "u", (5,))
    assert strategy.lr == 0.5


def test_equal_to_the_same_run_made_in_python(tmp_path: Path) -> None:
    torch.randn(7)  # what happened before does not matter
    configured = build_run(SMALL, tmp_path / "r")
    result = configured.fit()
    stream = build_stream("SplitDigits", num_tasks=5, keep_tasks=2)
    net = build_net("MLP", stream, hidden=(16,), seed=3)
    strategy = ER(net, buffer_size=30, momentum=0.5)
    made = Run(strategy, stream, training=Training(epochs=1, batch_size=32), seed=3)
    np.testing.assert_array_equal(result.matrix, made.fit().matrix)
    for a, b in zip(configured.strategy.parameters(), strategy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_record_holds_the_resolved_config_and_gives_the_run_again(tmp_path: Path) -> None:
    first = build_run(SMALL, tmp_path / "a").fit()
    kept = read_yaml(tmp_path / "a" / "config.yaml")
    assert kept == resolve_config(SMALL)
    np.testing.assert_array_equal(build_run(kept, tmp_path / "b").fit().matrix, first.matrix)


def test_first_weights_follow_the_seed_alone() -> None:
    def weights(**change: Any) -> torch.Tensor:
        return next(build_run(SMALL | change).strategy.parameters())

    assert torch.equal(weights(), weights(strategy="Naive", training={"epochs": 9}))
    assert not torch.equal(weights(), weights(seed=4))


def test_labels_are_drawn_by_the_seed_of_the_run_unless_they_have_their_own() -> None:
    def labelled(seed: int, **stream: Any) -> list[list[int]]:
        small = {"name": "SplitDigits", "num_tasks": 2, "labels_per_class": 2, **stream}
        run = build_run(SMALL | {"stream": small, "seed": seed})
        return [task.train.rows.tolist() for task in run.stream]

    assert labelled(3) == labelled(3, label_seed=3) == labelled(4, label_seed=3)
    assert labelled(3) != labelled(4)
    build_run(SMALL | {"seed": 4})  # a stream whose examples are all labelled


def test_a_record_of_another_config_is_refused_even_when_finished(tmp_path: Path) -> None:
    build_run(SMALL, tmp_path).fit()
    with pytest.raises(UserError, match=r"training.epochs: 2 differs from 1"):
        build_run(SMALL | {"training": {"epochs": 2, "batch_size": 32}}, tmp_path)
    build_run(SMALL, tmp_path)


def test_a_record_from_before_an_option_goes_on_with_its_default(tmp_path: Path) -> None:
    build_run(SMALL, tmp_path).fit()
    config = tmp_path / "config.yaml"
    kept = read_yaml(config)
    del kept["stream"]["validation"], kept["training"]["log_every"]
    text = yaml.safe_dump(kept)
    config.write_text(text)
    build_run(SMALL, tmp_path).fit()
    assert config.read_text() == text
    with pytest.raises(UserError, match=r"stream.validation: 0.5 differs from 0.0"):
        build_run(SMALL | {"stream": dict(kept["stream"], validation=0.5)}, tmp_path)


def test_trainer_options_reach_lightning() -> None:
    callback = {
        "class_path": "lightning.pytorch.callbacks.LambdaCallback",
        "init_args": {},
    }
    run = build_run(SMALL | {"trainer": {"callbacks": [callback], "precision": "bf16-mixed"}})
    trainer = run._new_trainer(range(1), None)
    assert trainer.precision == "bf16-mixed"
    assert "LambdaCallback" in [type(c).__name__ for c in trainer.callbacks]


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"accelerator": "nonsense"}, r"trainer: .*nonsense.* is not valid"),
        ({"max_epochs": 3}, r"trainer.max_epochs: 3 belongs to the run"),
    ],
)
def test_what_lightning_refuses_is_refused_before_anything_is_written(
    trainer: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        build_run(SMALL | {"trainer": trainer}, tmp_path / "r")
    assert not (tmp_path / "r").exists()
