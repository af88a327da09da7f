"""EWC against the sum of the penalties of all tasks, with every F and theta kept, in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.errors import UserError
from clearn.nets import Net, SingleHead, build_net
from clearn.run import Run, Training
from clearn.seeding import Generators
from clearn.strategies import EWC, Naive
from clearn.stream import Stream, Task
from clearn.testing import check_strategy
from tests.strategies.by_hand import Double, batches

SEED, EPOCHS, BATCH = 6, 2, 7
SCENARIOS = [("class", "single"), ("class", "growing"), ("domain", "single")]
SCENARIOS += [("task", "multi"), ("task", "single")]


class Normed(nn.Sequential):
    num_features = 6

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh())


class Bare(nn.Identity):
    num_features = 5


def normed_net(stream: Stream, head: Any) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(Normed(), build_net("MLP", stream, head=head, hidden=(6,)).head).double()


def held(net: Net) -> dict[str, nn.Parameter]:
    grows = not any(name.startswith("head.linear") for name, _ in net.named_parameters())
    return {n: p for n, p in net.named_parameters() if not (grows and n.startswith("head"))}


def slow_fisher(net: Net, stream: Stream, task: Task, rows: Tensor) -> dict[str, Tensor]:
    """One example at a time, through a copy of the net."""
    total = {name: torch.zeros_like(p) for name, p in held(net).items()}
    for row in rows.tolist():
        other = copy.deepcopy(net).eval()
        other.zero_grad()
        batch = next(task.train.select(torch.tensor([row])).batches(1))
        logits = other(batch.x, task.index if stream.scenario == "task" else None)
        (-logits.log_softmax(dim=1)[0, batch.y[0]]).backward()
        for name, p in held(other).items():
            if p.grad is not None:
                total[name] += p.grad**2 / len(rows)
    return total


def by_hand(net: Net, stream: Stream, *, strength: float, examples: int) -> list[Any]:
    """Train `net`; returns F and theta of every task."""
    generators, kept = Generators(SEED), []
    for task in stream:
        net.begin_task(task.index, task.classes, generators.get("net"))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for epoch in range(EPOCHS):
            for batch in batches(task, seed=SEED, epoch=epoch, batch_size=BATCH):
                logits = net(batch.x, task.index if stream.scenario == "task" else None)
                loss = cross_entropy(logits, batch.y)
                for fisher, theta in kept:
                    for name, p in held(net).items():
                        loss = loss + strength / 2 * (fisher[name] * (p - theta[name]) ** 2).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        rows = torch.randperm(len(task.train), generator=generators.get("fisher"))[:examples]
        theta = {name: p.detach().clone() for name, p in held(net).items()}
        kept.append((slow_fisher(net, stream, task, rows), theta))
    return kept


@pytest.mark.parametrize(("scenario", "head"), SCENARIOS)
def test_equals_a_loop_written_by_hand(scenario: str, head: Any, tiny_stream: Any) -> None:
    """Two numbers for each parameter do what all F and theta do; the Fisher is the slow one's."""
    stream = tiny_stream(scenario=scenario, preprocess=Double((), ()))
    net = normed_net(stream, head)
    plain, free = copy.deepcopy(net), copy.deepcopy(net)
    strategy = EWC(net, strength=30.0, fisher_examples=9, lr=0.05)
    training = Training(epochs=EPOCHS, batch_size=BATCH, chunk_size=3)
    Run(strategy, stream, seed=SEED, training=training).fit()
    kept = by_hand(plain, stream, strength=30.0, examples=9)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-8, atol=1e-10, msg=name)
    fishers = [torch.cat([f.flatten() for f in fisher.values()]) for fisher, _ in kept]
    thetas = [torch.cat([p.flatten() for p in theta.values()]) for _, theta in kept]
    total = torch.stack(fishers).sum(dim=0)
    torch.testing.assert_close(strategy.importance, total, rtol=1e-7, atol=1e-12)
    mean = sum(f * p for f, p in zip(fishers, thetas, strict=True)) / total
    known = total > 0
    assert bool(known.any())
    torch.testing.assert_close(strategy.anchor[known], mean[known], rtol=1e-6, atol=1e-10)
    assert bool(strategy.anchor.isfinite().all())

    by_hand(free, stream, strength=0.0, examples=1)
    apart = next(net.parameters()) - next(free.parameters())
    assert apart.abs().max() > 1e-3  # and the penalty does something


def test_gradient_of_the_penalty(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task", preprocess=Double((), ()))
    net = normed_net(stream, "multi")
    strategy = EWC(net, strength=3.0, fisher_examples=5)
    strategy.prepare(stream, Generators(0))
    draws, kept = torch.Generator().manual_seed(1), []
    for task in stream:
        strategy.task = task
        order = torch.randperm(len(task.train), generator=copy_of(strategy))[:5]
        kept.append((slow_fisher(net, stream, task, order), copy.deepcopy(held(net))))
        strategy.end_task(task)
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn(p.shape, generator=draws, dtype=p.dtype)
    batch = next(stream[2].train.batches(6))
    fit = cross_entropy(net(batch.x, 2), batch.y)
    plain = torch.autograd.grad(fit, list(net.parameters()), allow_unused=True)
    whole = torch.autograd.grad(strategy.loss(batch), list(net.parameters()))
    for (name, p), both, one in zip(net.named_parameters(), whole, plain, strict=True):
        expected = sum(3.0 * fisher[name] * (p - theta[name]) for fisher, theta in kept)
        found = both if one is None else both - one
        torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-11, msg=name)


def copy_of(strategy: EWC) -> torch.Generator:
    """A generator that draws what the strategy will draw for its next Fisher."""
    return torch.Generator().set_state(strategy.generators.get("fisher").get_state())


def test_fisher_of_logistic_regression(tiny_stream: Any) -> None:
    """The gradient of log p(y | x) is (1[c = y] - p_c) x, and that without x for the bias."""
    stream = tiny_stream(scenario="class", preprocess=Double((), ()))
    net = Net(Bare(), SingleHead(5, 6)).double()
    strategy = EWC(net, fisher_examples=1000)
    strategy.prepare(stream, Generators(0))
    strategy.task = stream[1]
    batch = next(stream[1].train.batches(32))
    x, p = batch.x, net(batch.x).softmax(dim=1)
    off = torch.eye(6)[batch.y] - p
    weight = (off[:, :, None] * x[:, None, :]).square().mean(dim=0)
    expected = torch.cat([weight.flatten(), off.square().mean(dim=0)]).detach()
    torch.testing.assert_close(strategy.fisher(stream[1]), expected)


@pytest.mark.parametrize("count", [32, 33, 500])
def test_fewer_examples_than_asked_for(count: int, tiny_stream: Any) -> None:
    """A task has 32; all of them count once."""
    stream = tiny_stream(scenario="class", preprocess=Double((), ()))
    net = normed_net(stream, "single")
    strategy = EWC(net, fisher_examples=count)
    strategy.prepare(stream, Generators(0))
    strategy.task = stream[0]
    expected = slow_fisher(net, stream, stream[0], torch.arange(32))
    found = strategy.fisher(stream[0])
    torch.testing.assert_close(found, torch.cat([f.flatten() for f in expected.values()]))


def test_strength_0_is_naive(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    nets = [build_net("MLP", stream, seed=0, dropout=0.2) for _ in range(2)]
    for strategy in (EWC(nets[0], strength=0, momentum=0.5), Naive(nets[1], momentum=0.5)):
        Run(strategy, stream, training=Training(epochs=2, batch_size=7)).fit()
    for name, value in nets[1].state_dict().items():
        assert torch.equal(nets[0].state_dict()[name], value), name


def test_end_task_leaves_the_net_alone(tiny_stream: Any) -> None:
    """Running statistics, mode, gradients, global generators."""
    stream = tiny_stream(scenario="class")
    net = normed_net(stream, "single").float()
    strategy = EWC(net)
    strategy.prepare(stream, Generators(0))
    strategy.task = stream[0]
    strategy.loss(next(stream[0].train.batches(8))).backward()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    strategy.end_task(stream[0])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(module.training for module in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    for param, gradient in zip(net.parameters(), gradients, strict=True):
        assert param.grad is not None
        assert torch.equal(param.grad, gradient)
    assert bool((strategy.importance > 0).any())
    assert not strategy.importance.requires_grad


def test_a_growing_head_is_left_out(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    net = normed_net(stream, "growing").float()
    strategy = EWC(net)
    assert strategy.importance.shape == (30 + 6 + 6,)
    result = Run(strategy, stream, training=Training(epochs=1, batch_size=8)).fit()
    assert [stored["importance"] for stored in result.bytes] == [2 * 42 * 4] * 3
    net.backbone.requires_grad_(False)
    with pytest.raises(UserError, match=r"^net: nothing of it can be held"):
        EWC(net)


def test_what_does_not_train_is_left_out(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    net = normed_net(stream, "single").float()
    net.backbone.requires_grad_(False)
    before = copy.deepcopy(net.backbone[0].weight)
    strategy = EWC(net)
    Run(strategy, stream, training=Training(epochs=1, batch_size=8)).fit()
    assert strategy.importance.shape == (6 * 6 + 6,)
    assert torch.equal(net.backbone[0].weight, before)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.05, "momentum": 0.5, "strength": 2.0},
        {
            "lr": 0.01,
            "optimizer": {"name": "TAGAdam", "b": 1},
            "scenarios": ["task"],
            "heads": ["single"],
        },
    ],
    ids=["SGD", "TAG"],
)
def test_contract(options: dict[str, Any]) -> None:
    check_strategy(EWC, fisher_examples=20, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, r"^strategy\.strength: -1\.0 is not valid: expected a number >= 0"),
        ({"strength": math.nan}, r"^strategy\.strength: nan is not valid"),
        ({"strength": math.inf}, r"^strategy\.strength: inf is not valid"),
        ({"fisher_examples": 0}, r"^strategy\.fisher_examples: 0 is not valid: expected >= 1"),
        ({"momentum": 1.0}, r"^strategy\.momentum: 1\.0 is not valid"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=message):
        EWC(build_net("MLP", tiny_stream()), **options)
