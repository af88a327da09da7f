"""The optimizer of a strategy: by name, afresh for every task or kept; its bytes, charts, state."""

from __future__ import annotations

import copy
import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.errors import UserError
from clearn.nets import build_net
from clearn.optim import OPTIMIZERS, TAGOptimizer, TAGRMSprop, TaskOptimizer
from clearn.run import Run, Training
from clearn.strategies import Naive
from clearn.testing import check_strategy
from tests.strategies.by_hand import batches

Named = list[tuple[str, nn.Parameter]]
SHAPES = {"a": (3, 4), "b": (5,), "c": ()}


def parameters(names: str = "abc") -> Named:
    generator = torch.Generator().manual_seed(0)
    drawn = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
    return [(name, nn.Parameter(drawn[name])) for name in names]


def steps(optimizer: torch.optim.Optimizer, named: Named, count: int, seed: int) -> None:
    """Steps along random gradients, which depend on the seed and on the parameter's name only."""
    for step in range(count):
        for name, param in named:
            draws = torch.Generator().manual_seed(1000 * seed + 10 * step + ord(name))
            param.grad = torch.randn(param.shape, generator=draws)
        optimizer.step()


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_names(name: str) -> None:
    chosen = TaskOptimizer(name, lr=0.25)
    named = parameters()
    optimizer = chosen.for_task(named, 0)
    assert type(optimizer) is OPTIMIZERS[name]
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(p is q for p, (_, q) in zip(held, named, strict=True))
    tag = name.startswith("TAG")
    assert (len(chosen.state_dict()) == 1) == tag  # nothing of one that is not kept
    assert (chosen.for_task(named, 1) is optimizer) == tag


def test_options_are_passed_on() -> None:
    choice = {"name": "AdamW", "betas": [0.5, 0.75], "amsgrad": True}
    (group,) = (
        TaskOptimizer(choice, lr=0.1, weight_decay=0.3).for_task(parameters(), 0).param_groups
    )
    assert list(group["betas"]) == [0.5, 0.75]
    assert (group["lr"], group["weight_decay"], group["amsgrad"]) == (0.1, 0.3, True)
    assert choice == {"name": "AdamW", "betas": [0.5, 0.75], "amsgrad": True}
    (group,) = TaskOptimizer("RMSprop", lr=0.1, momentum=0.5).for_task(parameters(), 0).param_groups
    assert group["momentum"] == 0.5
    choice = {"name": "TAGAdam", "b": 7, "counter": "official"}
    (group,) = TaskOptimizer(choice, lr=0.1).for_task(parameters(), 0).param_groups
    assert (group["b"], group["counter"]) == (7, "official")
    for knowledge in ("bfloat16", torch.bfloat16):  # a config can only name it
        choice = {"name": "TAGRMSprop", "knowledge": knowledge}
        (group,) = TaskOptimizer(choice, lr=0.1).for_task(parameters(), 0).param_groups
        assert group["knowledge"] is torch.bfloat16


def test_no_weight_decay_is_none_in_adamw_too() -> None:
    """Its own default is another one than the strategy's, which the record of a run shows."""
    (group,) = TaskOptimizer("AdamW", lr=0.1).for_task(parameters(), 0).param_groups
    assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    ("choice", "numbers", "message"),
    [
        ("adam", {}, r"^strategy\.optimizer: 'adam' is unknown; did you mean Adam"),
        ({"betas": [0.9, 0.9]}, {}, r"^strategy\.optimizer: 'None' is unknown"),
        (
            {"name": "Adam", "beta": 0.9},
            {},
            r"^strategy\.optimizer, option of Adam: 'beta' is unknown; did you mean betas",
        ),
        ({"name": "TAGAdam", "betas": [0.9]}, {}, r"^strategy\.optimizer: betas: .*two numbers"),
        ({"name": "TAGAdam", "betas": 0.9}, {}, r"^strategy\.optimizer: betas: .*two numbers"),
        ({"name": "TAGAdagrad", "counter": "fixed"}, {}, r"option of TAGAdagrad: 'counter'"),
        ({"name": "Adam", "params": []}, {}, r"option of Adam: 'params' is unknown"),
        ({"name": "Adam", "lr": 1.0}, {}, r"^strategy\.optimizer\.lr: set strategy\.lr in its"),
        ({"name": "SGD", "momentum": 0.9}, {}, r"^strategy\.optimizer\.momentum: set strategy\.m"),
        ("Adam", {"momentum": 0.9}, r"^strategy\.momentum: 0\.9 is not valid: Adam has no momentu"),
        (
            "TAGRMSprop",
            {"weight_decay": 0.1},
            r"^strategy\.weight_decay: 0\.1 is not valid: TAGRMSprop has no weight_decay",
        ),
        ({"name": "SGD", "keep": 1}, {}, r"^strategy\.optimizer\.keep: 1 is .*expected true or fa"),
        (
            {"name": "TAGAdam", "keep": False},
            {},
            r"^strategy\.optimizer\.keep: False is not valid for TAGAdam: expected true, for it",
        ),
        ({"name": "Adam", "betas": [2.0, 0.9]}, {}, r"^strategy\.optimizer: .*beta"),
        ({"name": "TAGRMSprop", "b": -1.0}, {}, r"^strategy\.optimizer: b: -1\.0 is not valid"),
        (
            {"name": "TAGAdam", "knowledge": "int8"},
            {},
            r"^strategy\.optimizer: knowledge: int8",
        ),
    ],
)
def test_what_is_not_valid_is_told_at_once(
    choice: Any, numbers: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TaskOptimizer(choice, lr=0.1, **numbers)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "Adam"])
def test_kept_is_one_optimizer_for_the_stream(name: str, keep: bool, tiny_stream: Any) -> None:
    """And otherwise there is a fresh one for each task, bit for bit."""
    stream = tiny_stream(scenario="class", num_tasks=2)
    net = build_net("MLP", stream, head="single", seed=0, hidden=(7,))
    plain = copy.deepcopy(net)
    strategy = Naive(net, lr=0.01, optimizer={"name": name, "keep": keep})
    Run(strategy, stream, seed=1, training=Training(epochs=2, batch_size=7)).fit()
    optimizer = OPTIMIZERS[name](plain.parameters(), lr=0.01)  # type: ignore[call-arg]
    for task in stream:
        if not keep:
            optimizer = OPTIMIZERS[name](plain.parameters(), lr=0.01)  # type: ignore[call-arg]
        for epoch in range(2):
            for batch in batches(task, seed=1, epoch=epoch, batch_size=7):
                optimizer.zero_grad()
                cross_entropy(plain(batch.x), batch.y).backward()
                optimizer.step()
    for key, value in plain.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key
    assert ("optimizer" in strategy.bytes_stored()) == keep


def test_contract_of_a_kept_optimizer() -> None:
    check_strategy(
        Naive,
        scenarios=["task"],
        heads=["multi"],
        optimizer={"name": "Adam", "keep": True},
        lr=0.01,
    )


@pytest.mark.parametrize("choice", [{"name": "SGD", "keep": True}, "TAGRMSprop"])
def test_a_growing_head_does_not_go_with_it(choice: Any, tiny_stream: Any) -> None:
    net = build_net("MLP", tiny_stream(scenario="class"), head="growing")
    with pytest.raises(UserError, match=r"^net\.head: growing is not valid with an optimizer that"):
        Naive(net, optimizer=choice)


def test_parameters_that_are_gone_or_replaced() -> None:
    chosen = TaskOptimizer({"name": "Adam", "keep": True}, lr=0.1)
    named = parameters()
    chosen.for_task(named, 0)
    with pytest.raises(UserError, match=r"^strategy\.optimizer: b is gone or replaced"):
        chosen.for_task([named[0], named[2]], 1)
    with pytest.raises(UserError, match=r"^strategy\.optimizer: c is gone or replaced"):
        chosen.for_task([*named[:2], ("c", nn.Parameter(torch.zeros(())))], 1)
    fresh = TaskOptimizer({"name": "Adam", "keep": True}, lr=0.1)
    fresh.load_state_dict(chosen.state_dict())
    with pytest.raises(UserError, match=r"^strategy\.optimizer: b is gone or replaced"):
        fresh.for_task([named[0], named[2]], 1)


@pytest.mark.parametrize("name", ["Adam", "TAGRMSprop"])
def test_added_parameters(name: str) -> None:
    """They stand between the others, begin with no past, and are told apart in a state."""
    choice = {"name": name, "keep": True}
    first, named = TaskOptimizer(choice, lr=0.1), parameters()
    steps(first.for_task([named[0], named[2]], 0), [named[0], named[2]], 3, seed=0)
    optimizer = first.for_task(named, 1)
    steps(optimizer, named, 3, seed=1)
    _, param = parameters()[1]
    alone = OPTIMIZERS[name]([param], lr=0.1)  # type: ignore[call-arg]
    steps(alone, [("b", param)], 3, seed=1)
    assert torch.equal(param, named[1][1])

    other, copies = TaskOptimizer(choice, lr=0.1), [(n, copy.deepcopy(p)) for n, p in named]
    other.load_state_dict(through_a_file(first.state_dict()))
    for chosen, each in ((first, named), (other, copies)):
        steps(chosen.for_task(each, 2), each, 3, seed=2)
    for (_, ours), (_, theirs) in zip(named, copies, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("moment", ["inside", "between"])
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "Adam", "TAGRMSprop", "TAGAdam"])
def test_state_goes_round(name: str, moment: str) -> None:
    choice = {"name": name, "keep": True}
    momentum = 0.9 if name == "SGD" else 0.0
    first, named = TaskOptimizer(choice, lr=0.1, momentum=momentum), parameters()
    steps(first.for_task(named, 0), named, 3, seed=0)
    steps(first.for_task(named, 1), named, 2, seed=1)
    saved = first.state_dict()
    other, copies = TaskOptimizer(choice, lr=0.1, momentum=momentum), copy.deepcopy(named)
    other.load_state_dict(saved)  # not through a file: they must not share anything afterwards
    again = TaskOptimizer(choice, lr=0.1, momentum=momentum)
    again.load_state_dict(through_a_file(saved))
    reloaded, more = TaskOptimizer(choice, lr=0.1, momentum=momentum), copy.deepcopy(named)
    reloaded.load_state_dict(again.state_dict())  # from one that has not met its parameters
    index = 1 if moment == "inside" else 2
    for chosen, each in ((first, named), (other, copies), (reloaded, more)):
        steps(chosen.for_task(each, index), each, 4, seed=2)
    for ours, one, two in zip(named, copies, more, strict=True):
        assert torch.equal(ours[1], one[1])
        assert torch.equal(ours[1], two[1])
    assert repr(other.charts(3)) == repr(first.charts(3)) == repr(reloaded.charts(3))


@pytest.mark.parametrize("choice", ["Adam", {"name": "Adam", "keep": True}, "TAGAdam"])
def test_state_before_the_first_task(choice: Any) -> None:
    first, other = TaskOptimizer(choice, lr=0.1), TaskOptimizer(choice, lr=0.1)
    other.load_state_dict(through_a_file(first.state_dict()))
    results = []
    for chosen in (first, other):
        named = parameters()
        steps(chosen.for_task(named, 0), named, 2, seed=0)
        results.append([param.detach() for _, param in named])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_bytes_are_those_of_the_state() -> None:
    count = sum(math.prod(shape) for shape in SHAPES.values())
    assert count == 18
    for choice, expected in [
        ("Adam", {}),
        ({"name": "Adam", "keep": True}, {"optimizer": 2 * 18 * 4 + 3 * 4}),  # a step each
        ({"name": "SGD", "keep": True}, {"optimizer": 0}),
    ]:
        chosen, named = TaskOptimizer(choice, lr=0.1), parameters()
        assert chosen.bytes_stored() == {}
        steps(chosen.for_task(named, 0), named, 1, seed=0)
        assert chosen.bytes_stored() == expected


def test_bytes_of_tag_grow_by_two_numbers_a_parameter() -> None:
    chosen, named = TaskOptimizer("TAGRMSprop", lr=0.1), parameters()
    for task in range(4):
        steps(chosen.for_task(named, task), named, 2, seed=task)
        stored = chosen.bytes_stored()["optimizer"]
        least = 2 * (task + 1) * 18 * 4
        assert least <= stored <= least + task * len(named) * 4  # a similarity per tensor and task


def test_charts_show_the_mean_weight_of_each_earlier_task() -> None:
    chosen, named = TaskOptimizer({"name": "TAGRMSprop", "b": 3}, lr=0.1), parameters()
    assert chosen.charts(4) == {}
    own = TAGRMSprop([p for _, p in parameters()], lr=0.1, b=3)
    expected = []
    for task in range(3):
        steps(chosen.for_task(named, task), named, 3, seed=task)
        mirror = list(zip("abc", own.param_groups[0]["params"], strict=True))
        steps(own, mirror, 3, seed=task)
        mean = own.similarity().mean.double()
        assert mean.shape == (task, 3)
        expected.append([(12 * row[0] + 5 * row[1] + row[2]).item() / 18 for row in mean])
        (table,) = chosen.charts(4).values()
        assert [len(row) for row in table] == [4] * 4  # type: ignore[union-attr]
        found = torch.tensor(table, dtype=torch.float64)
        known = torch.ones(4, 4).tril(-1).bool()
        known[task + 1 :] = False
        assert torch.equal(found.isfinite(), known)
        wanted = torch.tensor([number for row in expected for number in row], dtype=torch.float64)
        torch.testing.assert_close(found[known], wanted, rtol=1e-5, atol=0)
        own.end_task()
    assert list(chosen.charts(4)) == ["weight of earlier tasks"]
    assert repr(chosen.charts(4)) == repr(chosen.charts(4))


def test_weights_by_parameter_are_written_out(tmp_path: Path) -> None:
    chosen, named = TaskOptimizer({"name": "TAGRMSprop", "b": 3}, lr=0.1), parameters()
    assert chosen.export(tmp_path) == []
    assert TaskOptimizer("Adam", lr=0.1).export(tmp_path) == []
    means = []
    for task in range(3):
        held = named if task else named[:2]  # c has no gradient in the first task
        optimizer = chosen.for_task(named, task)
        assert isinstance(optimizer, TAGOptimizer)
        for _, param in named:
            param.grad = None
        steps(optimizer, held, 3, seed=task)
        means.append(optimizer.similarity().mean)
    again = TaskOptimizer({"name": "TAGRMSprop", "b": 3}, lr=0.1)
    again.load_state_dict(through_a_file(chosen.state_dict()))
    for each in (chosen, again):
        (path,) = each.export(tmp_path)
        assert path.name == "tag_weights.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        expected = [
            (task, earlier, "abc"[column], float(mean[earlier, column]))
            for task, mean in enumerate(means)
            for earlier in range(task)
            for column in range(3)
            if not math.isnan(mean[earlier, column])
        ]
        assert len(expected) == 2 + 5
        for row, (task, earlier, name, weight) in zip(rows, expected, strict=True):
            assert (row["task"], row["earlier_task"]) == (str(task), str(earlier))
            assert row["parameter"] == name
            assert float(row["weight"]) == pytest.approx(weight, rel=1e-5)


def test_charts_leave_out_tensors_without_a_gradient() -> None:
    chosen, named = TaskOptimizer("TAGRMSprop", lr=0.1), parameters()
    steps(chosen.for_task(named, 0), named[:2], 2, seed=0)
    for _, param in named:
        param.grad = None
    optimizer = chosen.for_task(named, 1)
    steps(optimizer, named[1:], 2, seed=1)
    assert isinstance(optimizer, TAGOptimizer)
    mean: Tensor = optimizer.similarity().mean
    assert mean.isnan().tolist() == [[True, False, True]]
    (table,) = chosen.charts(2).values()
    assert table[1][0] == pytest.approx(mean[0, 1].item())  # type: ignore[index]


def test_others_have_no_charts() -> None:
    chosen, named = TaskOptimizer({"name": "Adam", "keep": True}, lr=0.1), parameters()
    steps(chosen.for_task(named, 0), named, 1, seed=0)
    assert chosen.charts(3) == {}
