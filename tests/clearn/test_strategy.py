"""The contract's base class: arguments, defaults, hooks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.nets import build_net
from clearn.preprocess import Preprocess
from clearn.run import Run, Training
from clearn.seeding import Generators
from clearn.strategies import Naive
from clearn.strategy import Strategy


def prepared(tiny_stream: Any, kind: type[Strategy] = Naive, **options: Any) -> Strategy:
    stream = tiny_stream(**{"scenario": "class"} | options)
    strategy = kind(build_net("MLP", stream, seed=0))
    strategy.prepare(stream, Generators(0))
    strategy.task = stream[0]
    return strategy


def batch_of(strategy: Strategy, task: int = 0) -> Batch:
    return next(strategy.stream[task].train.batches(6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"strategy\.lr: 0\.0 is not valid: expected a number > 0"),
        ({"momentum": 1.0}, r"strategy\.momentum: 1\.0 is not valid: expected 0 <= number < 1"),
        ({"momentum": -0.1}, r"strategy\.momentum: -0\.1"),
        ({"weight_decay": -1.0}, r"strategy\.weight_decay: -1\.0 is not valid: expected >= 0"),
    ],
)
def test_options_are_checked(options: dict[str, float], message: str, tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=message):
        Naive(build_net("MLP", tiny_stream()), **options)


def test_a_bare_module_is_no_net() -> None:
    with pytest.raises(UserError, match=r"a Linear is not a clearn\.nets\.Net; wrap it"):
        Naive(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_net_without_anything_to_train(tiny_stream: Any) -> None:
    stream = tiny_stream()
    net = build_net("MLP", stream).requires_grad_(False)
    with pytest.raises(UserError, match=r"^net: nothing of it is trained by Naive, since all"):
        Run(Naive(net), stream, trainer={"accelerator": "cpu"}).fit()


def test_neither_loss_nor_step(tiny_stream: Any) -> None:
    strategy = prepared(tiny_stream, Strategy)
    with pytest.raises(UserError, match=r"defines neither loss\(batch\) nor step\(batch\)"):
        strategy.loss(batch_of(strategy))


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_task_id_reaches_the_net_in_the_task_scenario_only(
    scenario: str, tiny_stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, given = prepared(tiny_stream, scenario=scenario), []
    forward = strategy.net.forward

    def spy(x: torch.Tensor, task_id: Any = None) -> torch.Tensor:
        given.append(task_id)
        return forward(x, task_id)

    monkeypatch.setattr(strategy.net, "forward", spy)
    logits = strategy.logits(batch_of(strategy, 1))
    assert logits.shape == (6, strategy.stream.num_classes)
    assert given == [1 if scenario == "task" else None]


def test_trains_on_the_task_alone(tiny_stream: Any) -> None:
    strategy = prepared(tiny_stream)
    tasks = strategy.stream.tasks
    assert strategy.examples(tasks[1], tasks[:1]) is tasks[1].train


def test_bytes_are_those_of_the_state_of_the_net(tiny_stream: Any) -> None:
    strategy = prepared(tiny_stream)
    strategy.register_buffer("other", torch.zeros(1000))
    weights = sum(p.numel() for p in strategy.net.parameters())
    buffers = sum(b.numel() * b.element_size() for b in strategy.net.buffers())
    assert strategy.bytes_stored() == {"parameters": 4 * weights + buffers}


def test_tracked_values_are_logged_as_means(tiny_stream: Any, tmp_path: Path) -> None:
    class Tracks(Naive):
        def loss(self, batch: Batch) -> torch.Tensor:
            self.steps = getattr(self, "steps", 0) + 1
            self.track("count", torch.tensor(float(self.steps)))
            return super().loss(batch)

    training = Training(batch_size=8, chunk_size=1, log_every=2)
    Run(
        Tracks(build_net("MLP", tiny_stream(), seed=0)),
        tiny_stream(),
        training=training,
        folder=tmp_path / "r",
    ).fit()
    with (tmp_path / "r" / "steps.csv").open() as file:
        values = [float(r["value"]) for r in csv.DictReader(file) if r["name"] == "train/count"]
    assert values == [1.5, 3.5, 5.5, 7.5, 9.5, 11.5]  # 12 steps, two per line


def test_replayed_examples_are_augmented_like_training_batches(tiny_stream: Any) -> None:
    images = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8)
    strategy = prepared(tiny_stream)
    strategy.stream.preprocess = Preprocess([0.5], [0.25], padding=2, flip=True)
    generator = Generators(0).get("replay augmentation")
    expected = strategy.stream.preprocess.train(images, generator)
    assert torch.equal(strategy.augment(images), expected)
    assert not torch.equal(strategy.augment(images), expected)  # drawn afresh


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_clipped_to_the_norm_of_the_run(tiny_stream: Any, scaled: bool) -> None:
    """Also where a scaler multiplies them until the step, as on CUDA with 16-mixed."""
    stream, norms = tiny_stream(), []

    class Norms(Naive):
        def update(self, optimizer: Any) -> None:
            before = [p.detach().clone() for p in self.net.parameters()]
            super().update(optimizer)
            steps = [a - p for a, p in zip(before, self.net.parameters(), strict=True)]
            norms.append(torch.cat([s.flatten() for s in steps]).norm().item() / self.lr)

    for clip in (None, 0.01):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if scaled else []
        Run(
            Norms(build_net("MLP", stream, seed=0)),
            stream,
            training=Training(clip_grad=clip),
            trainer={"accelerator": "cpu", "plugins": plugins},
        ).fit()
    whole, clipped = norms[: len(norms) // 2], norms[len(norms) // 2 :]
    assert min(whole) > 0.02
    assert clipped == pytest.approx([0.01] * len(clipped), rel=1e-2)


def test_weight_decay_and_momentum_are_those_of_sgd(tiny_stream: Any) -> None:
    stream = tiny_stream()
    strategy = Naive(build_net("MLP", stream), lr=0.3, momentum=0.5, weight_decay=0.01)
    strategy.task = stream[0]
    optimizer: Any = strategy.configure_optimizers()
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.5, 0.01)
    assert [id(p) for p in group["params"]] == [id(p) for p in strategy.net.parameters()]
