"""Runs of Relational Experience Replay: schedule, bases, what is reported, odd input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.laboratory import copy_state, differences
from clearn.nets import Net, build_net
from clearn.run import Result, Run, Training
from clearn.seeding import Generators
from clearn.strategies import ER, RER
from clearn.stream import Stream, Task
from clearn.testing import check_strategy
from tests.strategies.rer_steps import (
    BASES,
    Attention,
    Layers,
    each_base,
    gradient,
    in_task_one,
    net_of,
)


class Spy(RER):
    """Takes down when the relation network learns and weighs, and its parameters after tasks."""

    run: Run

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.index == 0:
            self.learned: list[tuple[int, ...]] = []
            self.applied: list[tuple[int, ...]] = []
            self.relations = [copy_state(dict(self.relation.named_parameters()))]

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.relations.append(copy_state(dict(self.relation.named_parameters())))

    def learn_relation(self, batch: Batch) -> None:
        self.learned.append(self.now)
        super().learn_relation(batch)

    def weights(self, losses: Any, logits: Any) -> Sequence[float | Tensor]:
        given = super().weights(losses, logits)
        if any(isinstance(each, Tensor) for each in given):
            self.applied.append(self.now)
        return given

    @property
    def now(self) -> tuple[int, ...]:
        """Task, epoch and step, as the run counts them where it hands out one batch at a time."""
        here = self.run.position
        return here.task, here.epoch, here.batch


def run(strategy: ER, stream: Stream, trainer: Any = None, **training: Any) -> Result:
    options = {"epochs": 2, "batch_size": 7, "chunk_size": 1} | training
    loop = Run(strategy, stream, training=Training(**options), seed=3, trainer=trainer)
    if isinstance(strategy, Spy):
        strategy.run = loop
    return loop.fit()


@pytest.mark.parametrize("relation", ["learned", "random", "fixed"])
@each_base
def test_only_a_learned_relation_changes_and_only_after_task_0(
    base: Any, relation: Any, tiny_stream: Any
) -> None:
    stream = tiny_stream(scenario="class")
    strategy = Spy(net_of(Layers, stream), base=base, relation=relation, warm_up=0)
    run(strategy, stream)
    drawn, first, second, third = strategy.relations
    assert all(bool((value != 0).all()) for value in drawn.values())
    assert not differences(drawn, first)
    changes = relation == "learned"
    assert set(differences(first, second)) == (set(drawn) if changes else set())
    assert set(differences(second, third)) == (set(drawn) if changes else set())
    assert {task for task, *_ in strategy.applied} == (set() if relation == "fixed" else {1, 2})


@each_base
def test_relation_network_is_drawn_from_the_seed(base: Any, tiny_stream: Any) -> None:
    """As `nn.Linear` is; not in the constructor, and other weights for another seed."""
    stream = tiny_stream(scenario="class")
    drawn = []
    for seed in (0, 0, 1):
        strategy = RER(net_of(Layers, stream), base=base)
        assert not any(p.any() for p in strategy.relation.parameters())
        strategy.prepare(stream, Generators(seed))
        drawn.append(copy_state(strategy.relation.state_dict()))
    assert not differences(drawn[0], drawn[1])
    assert len(set(differences(drawn[0], drawn[2]))) == 6
    branches = len(BASES[base][1])
    assert sum(value.numel() for value in drawn[0].values()) == {2: 130, 3: 179}[branches]
    for name, value in drawn[0].items():
        bound = (16 if name.startswith("output") else branches) ** -0.5
        assert 0.3 * bound < value.abs().max() <= bound


@pytest.mark.parametrize("how", ["fixed", "constant", "constant, last layer"])
@pytest.mark.parametrize("capacity", [5, 30])
@each_base
def test_base_comes_out_bit_by_bit(base: Any, capacity: int, how: str, tiny_stream: Any) -> None:
    """Be it that no weights are learned, or that all that are learned are the base's constants.

    In the latter case every step is preceded by one on the relation network, which draws from the
    buffer, goes through dropout and meets normalisations. A capacity below the batch size leaves
    examples without a partner.
    """
    method, constants = BASES[base]
    stream = tiny_stream(scenario="class")
    options = {"buffer_size": capacity, "lr": 0.05, "momentum": 0.5, "weight_decay": 1e-3}

    def net() -> Net:
        return net_of(Layers, stream, "growing", noise=nn.Dropout(0.3))

    expected = method(net(), **options)
    run(expected, stream)
    relation: Any = "fixed" if how == "fixed" else "learned"
    last_layer = how.endswith("last layer")
    ours = Spy(net(), base=base, relation=relation, last_layer=last_layer, warm_up=0, **options)
    if relation == "learned":
        weigh: Any = ours.relation.forward
        replaced: Any = ours.relation
        replaced.forward = lambda u, n: torch.tensor(constants) + 0.0 * weigh(u, n)
    run(ours, stream)
    steps = 0 if relation == "fixed" else 2 * 2 * 5
    assert len(ours.learned) == len(ours.applied) == steps
    assert not differences(expected.net.state_dict(), ours.net.state_dict())
    assert not differences(expected.buffer.state_dict(), ours.buffer.state_dict())


@pytest.mark.parametrize(
    ("epochs", "options", "warm_up", "period"),
    [
        (1, {}, 1, 1),
        (2, {}, 2, 1),
        (5, {}, 3, 1),
        (10, {}, 6, 1),
        (29, {}, 15, 2),
        (50, {}, 26, 5),
        (4, {"warm_up": 0, "period": 3}, 0, 3),
        (4, {"warm_up": 3}, 3, 1),
        (3, {"warm_up": 9, "period": 7}, 9, 7),
        (3, {"warm_up": 1, "period": 8}, 1, 8),  # an epoch has 7 steps
    ],
)
def test_schedule(
    epochs: int, options: dict[str, int], warm_up: int, period: int, tiny_stream: Any
) -> None:
    stream = tiny_stream(scenario="class", num_tasks=2)
    strategy: Any = Spy(net_of(Layers, stream, norm=False), **options)
    strategy.learn_relation = lambda batch: strategy.learned.append(strategy.now)
    run(strategy, stream, epochs=epochs)
    steps = [(1, epoch, step) for epoch in range(epochs) for step in range(7)]
    assert strategy.learned == [s for s in steps if (s[2] + 1) % period == 0]
    assert strategy.applied == [s for s in steps if s[1] >= warm_up]


@pytest.mark.parametrize(
    ("base", "options"),
    # The second stands in the middle of a period, and after the warm-up, when it is resumed.
    [("ER", {"warm_up": 0}), ("ERACE", {"warm_up": 1, "period": 4}), ("DERpp", {"warm_up": 0})],
)
def test_contract(base: str, options: dict[str, int]) -> None:
    check_strategy(RER, base=base, buffer_size=20, lr=0.05, **options)


@each_base
def test_state_goes_round_and_can_be_converted(base: Any, tiny_stream: Any) -> None:
    """Adam goes on where it was, in another object and in another type."""
    stream = tiny_stream(scenario="class")
    first, batch = in_task_one(net_of(Layers, stream), stream, base, dtype=torch.float32)
    other, _ = in_task_one(net_of(Layers, stream), stream, base, dtype=torch.float32)
    first.learn_relation(batch)
    assert differences(first.state_dict(), other.state_dict())
    other.load_state_dict(first.state_dict())
    other.generators.load_state_dict(first.generators.state_dict())
    assert not differences(first.state_dict(), other.state_dict())
    for strategy in (first, other):
        strategy.learn_relation(batch)
    assert not differences(first.state_dict(), other.state_dict())
    before = copy_state(first.relation.state_dict())
    first.to(torch.float64)
    first.learn_relation(replace(batch, x=batch.x.double(), raw=batch.raw.double()))
    for name, parameter in first.relation.named_parameters():
        assert parameter.dtype == torch.float64
        assert not torch.equal(parameter, before[name].double())
        assert first._adam.state[parameter]["exp_avg"].dtype == torch.float64
        assert float(first._adam.state[parameter]["step"]) == 3


# What is reported


class Recomputing(Spy):
    """Keeps the weights of every step, computed example by example."""

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.index == 0:
            self.steps: list[tuple[int, list[list[float]]]] = []

    def weights(self, losses: Any, logits: Any) -> Sequence[float | Tensor]:
        given, before = super().weights(losses, logits), len(self.applied)
        if before > len(self.steps):
            expected = self.slowly(losses, logits)
            self.steps.append((self.task.index, expected))
            for k, (ours, constant) in enumerate(zip(given, self.constants, strict=True)):
                row = [pair[k] for pair in expected]
                row += [constant] * (len(losses[k]) - len(row))
                torch.testing.assert_close(ours, torch.tensor(row))
        return given

    def slowly(self, losses: Any, logits: Any) -> list[list[float]]:
        """Weights `[N, K]`, from the equations of the relation network."""
        net, branches = self.relation, range(len(losses))
        rows = []
        for i in range(min(len(each) for each in losses)):
            u = torch.stack([losses[k][i] for k in branches])
            n = torch.stack([logits[k][i][logits[k][i] > -1000].square().sum() for k in branches])
            left = (net.losses.weight @ u + net.losses.bias).clamp(min=0)
            right = (net.norms.weight @ n.sqrt() + net.norms.bias).clamp(min=0)
            logit = net.output.weight @ (left + right) + net.output.bias
            rows.append((1 / (1 + torch.exp(-logit))).tolist())
        return rows


@pytest.mark.parametrize("replay", [None, 3, 9])
@each_base
def test_reported_weights_are_those_applied(
    base: Any, replay: int | None, tiny_stream: Any
) -> None:
    """Their means per task, to which each step contributes alike; none in task 0."""
    stream = tiny_stream(scenario="class")
    net = net_of(Layers, stream, "growing")
    strategy = Recomputing(net, base=base, warm_up=1, period=2, replay_batch_size=replay)
    strategy.constants = BASES[base][1]
    result = run(strategy, stream, epochs=3)
    assert len(strategy.steps) == 2 * 2 * 5
    names = {"DERpp": ["new", "logits", "labels"]}.get(base, ["new", "replayed"])
    means = [(task, torch.tensor(rows).mean(dim=0)) for task, rows in strategy.steps]
    overall = torch.stack([mean for _, mean in means]).mean(dim=0)
    chart = strategy.charts()["mean weight"]
    assert list(chart) == names
    for k, name in enumerate(names):
        assert strategy.metrics()[f"weight_{name}"] == pytest.approx(float(overall[k]), rel=1e-5)
        assert math.isnan(chart[name][0])
        for task in (1, 2):
            of_task = [float(mean[k]) for index, mean in means if index == task]
            assert chart[name][task] == pytest.approx(sum(of_task) / len(of_task), rel=1e-5)
    assert result.charts.keys() == {"mean weight"}


@pytest.mark.parametrize("options", [{"relation": "fixed"}, {}, {"warm_up": 5}])
def test_nothing_is_reported_where_no_weight_was_applied(
    options: dict[str, Any], tiny_stream: Any
) -> None:
    """With one epoch, and by default two, all are of the warm-up."""
    stream = tiny_stream(scenario="class")
    strategy = RER(net_of(Layers, stream), **options)
    run(strategy, stream)
    assert not strategy.metrics()
    assert all(
        math.isnan(mean) for line in strategy.charts()["mean weight"].values() for mean in line
    )


# Bad and odd input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "DER"}, r"strategy\.base: 'DER' is unknown; .*DERpp, ER, ERACE"),
        ({"relation": "none"}, r"strategy\.relation: 'none' is unknown; .*fixed, learned, random"),
        ({"warm_up": -1}, r"strategy\.warm_up: -1 is not valid: expected >= 0"),
        ({"period": 0}, r"strategy\.period: 0 is not valid: expected >= 1"),
        ({"base": "DERpp", "alpha": -1.0}, r"strategy\.alpha: -1\.0 is not valid"),
        ({"base": "DERpp", "beta": math.nan}, r"strategy\.beta: nan is not valid"),
        ({"replay_batch_size": 0}, r"strategy\.replay_batch_size: 0 is not valid"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=message):
        RER(build_net("MLP", tiny_stream()), **options)


def test_a_head_that_does_not_train_cannot_look_ahead(tiny_stream: Any) -> None:
    net = build_net("MLP", tiny_stream())
    net.head.requires_grad_(False)
    RER(net)
    with pytest.raises(UserError, match=r"strategy\.last_layer: the net's head does not train"):
        RER(net, last_layer=True)


def test_weights_are_whole_floats_under_autocast(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy, _ = in_task_one(net_of(Layers, stream), stream, "ER", dtype=torch.float32, warm_up=0)
    losses = [torch.rand(6) for _ in range(2)]
    logits = [torch.randn(6, stream.num_classes) for _ in range(2)]
    plain = strategy.weights(losses, logits)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = strategy.weights(losses, logits)
    for ours, expected in zip(mixed, plain, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("stream_options", "size", "batch_size", "epochs"),
    [
        ({}, 3, 7, 2),
        ({}, 1, 8, 2),
        ({}, 1, 1, 2),
        ({}, 20, 1, 1),
        ({"num_tasks": 1}, 20, 16, 2),
        ({}, 200, 100, 3),
    ],
    ids=["small", "one slot", "one and one", "batch of one", "one task", "large batch"],
)
@pytest.mark.parametrize("last_layer", [False, True], ids=["full", "last layer"])
@each_base
def test_odd_sizes(
    base: Any,
    last_layer: bool,
    stream_options: dict[str, int],
    size: int,
    batch_size: int,
    epochs: int,
    tiny_stream: Any,
) -> None:
    stream = tiny_stream(scenario="class", **stream_options)
    net = net_of(Layers, stream, norm=False, noise=nn.Dropout(0.2))
    strategy = Spy(
        net, base=base, buffer_size=size, last_layer=last_layer, lr=0.01, warm_up=epochs - 1
    )
    run(strategy, stream, epochs=epochs, batch_size=batch_size)
    steps = -(-len(stream[0].train) // batch_size)
    assert len(strategy.learned) == epochs * steps * (len(stream) - 1)
    assert len(strategy.applied) == steps * (len(stream) - 1)
    assert all(bool(torch.isfinite(p).all()) for p in strategy.parameters())


def test_one_slot_behind_a_normalisation_of_images() -> None:
    """Statistics over the pixels of one image."""
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    stream = Stream.from_arrays(*(images, torch.arange(16) % 4) * 2, num_tasks=2, scenario="class")
    strategy = Spy(build_net("ResNet18", stream, width=2, seed=0), buffer_size=1, warm_up=0)
    run(strategy, stream, epochs=1, batch_size=4)
    assert len(strategy.learned) == len(strategy.applied) == 2
    assert all(bool(torch.isfinite(p).all()) for p in strategy.parameters())


@each_base
def test_trains_attention(base: Any, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = Spy(net_of(Attention, stream, dropout=0.1), base=base, warm_up=0)
    before = copy_state(strategy.net.state_dict())
    run(strategy, stream, epochs=1)
    assert len(strategy.learned) == len(strategy.applied) == 2 * 5
    assert len(differences(strategy.relations[1], strategy.relations[2])) == 6
    assert (
        set(differences(before, strategy.net.state_dict()))
        >= dict(strategy.net.named_parameters()).keys()
    )
    assert all(bool(torch.isfinite(p).all()) for p in strategy.parameters())


@pytest.mark.parametrize("last_layer", [False, True], ids=["full", "last layer"])
@each_base
def test_relation_network_stays_in_long_floats(
    base: Any, last_layer: bool, tiny_stream: Any
) -> None:
    """Its gradient under autocast is the one without: passes and update are in float32."""
    stream = tiny_stream(scenario="class")
    strategy, batch = in_task_one(
        net_of(Layers, stream), stream, base, dtype=torch.float32, last_layer=last_layer
    )
    state = copy_state(strategy.generators.state_dict())
    expected = gradient(strategy, batch)
    strategy.generators.load_state_dict(state)
    strategy.generators._generators.pop("relation buffer")
    with torch.autocast("cpu", torch.bfloat16):
        strategy.net(batch.x)  # fills the cache of casts
        found = gradient(strategy, batch)
    for ours, plain in zip(found, expected, strict=True):
        assert torch.equal(ours, plain)


def test_short_floats(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = Spy(net_of(Layers, stream), base="DERpp", warm_up=0, replay_batch_size=5)
    run(strategy, stream, {"precision": "bf16-mixed"})
    assert strategy.applied
    assert all(bool(torch.isfinite(p).all()) for p in strategy.parameters())
    assert all(p.dtype == torch.float32 for p in strategy.parameters())
