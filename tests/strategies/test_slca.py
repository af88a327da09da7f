"""SLCA: what each stage trains and leaves alone, and what it goes on with."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.errors import UserError
from clearn.nets import Net, SingleHead, build_net
from clearn.run import Run
from clearn.strategies import NearestMean
from clearn.strategies.slca import SLCA
from clearn.stream import Task
from clearn.testing import check_strategy
from tests.strategies.by_hand import Double, batches
from tests.strategies.semi_streams import CLASSES, Body, coloured, joined_net, learn, learned

NET = {"name": "MLP", "hidden": (32,)}


@pytest.mark.parametrize("labels_per_class", [None, 4])
def test_contract(labels_per_class: int | None) -> None:
    shape = (8,) if labels_per_class is None else (3, 8, 8)
    check_strategy(
        SLCA,
        scenarios=["class", "task"],
        heads=["joined"],
        net=NET,
        input_shape=shape,
        labels_per_class=labels_per_class,
        slow=1.0,
        lr=0.05,
    )


class Spy(SLCA):
    """Takes down the head and the body at the borders of stages."""

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self.__dict__.setdefault("seen", []).append(("begin", copy.deepcopy(self.net)))

    def end_task(self, task: Task) -> None:
        self.seen.append(("end", copy.deepcopy(self.net)))
        super().end_task(task)
        self.seen.append(("aligned", copy.deepcopy(self.net)))


def layers(net: Net) -> list[dict[str, Tensor]]:
    return [layer.state_dict() for layer in net.head.layers]  # type: ignore[union-attr]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("align_first", [True, False])
def test_layers_are_aligned_for_the_test_and_go_on_as_they_were(align_first: bool) -> None:
    strategy = Spy(joined_net(), slow=0.5, lr=0.05, align_first=align_first)
    learn(strategy, coloured(labels=None))
    nets: dict[tuple[str, int], Net] = {}
    for index, (moment, net) in enumerate(strategy.seen):
        nets[moment, index // 3] = net
    first, trained = layers(nets["begin", 0]), layers(nets["end", 0])
    assert not same(trained[0], first[0])
    assert same(trained[1], first[1])  # weight decay has not reached the layer of another task
    aligned = layers(nets["aligned", 0])
    assert same(aligned[0], trained[0]) != align_first
    assert same(aligned[1], first[1])
    again = layers(nets["begin", 1])
    assert same(again[0], trained[0])
    second = layers(nets["end", 1])
    assert same(second[0], trained[0])  # the first task's layer rests while the second is learned
    assert not same(second[1], first[1])
    last = layers(nets["aligned", 1])
    assert not same(last[0], second[0])
    assert not same(last[1], second[1])
    bodies = [net.backbone.state_dict() for _, net in strategy.seen]
    assert not same(bodies[1], bodies[0])
    assert same(bodies[2], bodies[1])  # alignment: the head alone
    assert same(bodies[3], bodies[2])
    kept = layers(Net(nets["end", 1].backbone, strategy.unaligned))
    assert all(same(a, b) for a, b in zip(kept, second, strict=True))


def test_no_alignment() -> None:
    strategy = Spy(joined_net(), slow=0.5, lr=0.05, ca_epochs=0)
    learn(strategy, coloured(labels=None))
    (_, end), (_, after) = strategy.seen[-2:]
    assert all(same(a, b) for a, b in zip(layers(end), layers(after), strict=True))


def test_a_step_by_hand() -> None:
    """SGD with momentum of two rates, over the task's own classes, in float64."""
    stream = coloured(labels=None, preprocess=Double((0.5,), (0.25,)))
    strategy = SLCA(
        joined_net().double(), slow=0.25, lr=0.1, weight_decay=0.01, milestones=(1,), ca_epochs=0
    )
    by_hand = copy.deepcopy(strategy.net)
    learn(strategy, stream, epochs=2, batch_size=19)
    for index, start in enumerate((0, 3)):
        layer = by_hand.head.layers[index]  # type: ignore[index]
        groups = [(list(layer.parameters()), 0.1), (list(by_hand.backbone.parameters()), 0.025)]
        momenta = {p: torch.zeros_like(p) for params, _ in groups for p in params}
        for epoch, slower in enumerate((1.0, 0.1)):
            for batch in batches(stream[index], seed=3, epoch=epoch, batch_size=19):
                logits = by_hand.backbone(batch.x) @ layer.weight.T + layer.bias
                loss = -logits.log_softmax(1)[range(len(batch)), batch.y - start].mean()
                by_hand.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for params, lr in groups:
                        for p in params:
                            assert p.grad is not None
                            momenta[p] = 0.9 * momenta[p] + p.grad + 0.01 * p
                            p -= slower * lr * momenta[p]
    expected = by_hand.state_dict()
    for name, value in strategy.net.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            assert torch.allclose(value, expected[name], rtol=1e-10, atol=1e-12), name


def test_frozen() -> None:
    """Nothing of the backbone moves, not its running statistics either."""
    strategy = SLCA(joined_net(norm=nn.BatchNorm1d), slow=0, lr=0.5)
    before = copy.deepcopy(strategy.net.backbone.state_dict())
    run = learn(strategy, coloured(labels=8), epochs=8)
    assert same(strategy.net.backbone.state_dict(), before)
    assert learned(run) > 0.6
    strategy.train()
    assert strategy.training
    assert strategy.net.head.training
    assert not strategy.net.backbone.training


@pytest.mark.parametrize(("size", "expected"), [(4, [4, 5]), (5, [5, 4]), (9, [9]), (40, [9])])
def test_labelled_examples_are_gone_through_in_turns(size: int, expected: list[int]) -> None:
    stream = coloured()
    strategy = SLCA(joined_net(), labelled_batch_size=size)
    seen: list[Batch] = []
    take = strategy.labelled_batch

    def watched() -> Batch:
        seen.append(take())
        return seen[-1]

    strategy.labelled_batch = watched  # type: ignore[method-assign]
    learn(strategy, stream, epochs=3, batch_size=16)
    pool = stream[0].unlabelled
    assert pool is not None
    steps = 3 * -(-len(pool) // 16)  # as many as the pool has batches
    assert len(seen) == steps + 3 * -(-34 // 16)
    assert [len(batch) for batch in seen[: len(expected)]] == expected
    turns = (steps // len(expected)) * len(expected)
    rows = [row.numpy().tobytes() for batch in seen[:turns] for row in batch.raw]
    (every,) = stream[0].train.batches(99)
    assert Counter(rows) == {r.numpy().tobytes(): turns // len(expected) for r in every.raw}
    if len(expected) > 1:
        halves = [torch.cat([b.y for b in seen[i : i + len(expected)]]) for i in (0, len(expected))]
        assert not torch.equal(*halves)  # another order in every turn


def test_gaussians_are_those_of_all_training_examples() -> None:
    stream = coloured(labels=None)
    strategy = SLCA(joined_net(), lr=0.05)
    learn(strategy, stream)
    (batch,) = stream[1].train.batches(99)
    strategy.eval()
    with torch.no_grad():
        features = strategy.net.features(batch.x)
    for label in CLASSES[1]:
        mean = features[batch.y == label].mean(dim=0)
        assert torch.allclose(strategy.gaussians.means[label], mean, atol=1e-5)
    assert strategy.gaussians.known == (0, 1, 2, 3, 4)
    stored = strategy.bytes_stored()
    assert stored["gaussians"] == strategy.gaussians.bytes_stored()
    assert stored["unaligned head"] >= 4 * (6 * 5 + 5)


def test_gain_is_reported_where_there_is_a_validation_share() -> None:
    strategy = SLCA(joined_net(), lr=0.05, align_first=False)
    learn(strategy, coloured(labels=None, validation=0.3))
    (line,) = strategy.charts()["gain by alignment"].values()
    assert line[0] == 0.0
    assert math.isfinite(line[1])
    strategy = SLCA(joined_net(), lr=0.05)
    learn(strategy, coloured(labels=None))
    (line,) = strategy.charts()["gain by alignment"].values()
    assert all(map(math.isnan, line))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slow": -0.1}, r"^strategy\.slow: -0\.1 is not valid: expected a number >= 0"),
        ({"slow": math.inf}, r"^strategy\.slow"),
        ({"ca_epochs": -1}, r"^strategy\.ca_epochs: -1"),
        ({"ca_epochs": 1.5}, r"^strategy\.ca_epochs: 1\.5"),
        (
            {"milestones": (0,)},
            r"^strategy\.milestones: \(0,\) is not valid: expected integers >= 1",
        ),
        ({"milestones": (4, 2.5)}, r"^strategy\.milestones"),
        ({"tau": 0.0}, r"^strategy\.tau: 0\.0 is not valid: expected a number > 0, or none"),
        ({"labelled_batch_size": 0}, r"^strategy\.labelled_batch_size: 0"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SLCA(joined_net(), **options)


def test_another_head() -> None:
    with pytest.raises(UserError, match=r"^net\.head: a SingleHead .*SLCA.* set net\.head to joi"):
        SLCA(Net(Body(), SingleHead(6, 5)))


def test_nearest_mean() -> None:
    check_strategy(NearestMean, scenarios=["class", "task", "domain"], heads=["single"], net=NET)
    stream = coloured()
    strategy = NearestMean(joined_net(), metric="euclidean")
    before = copy.deepcopy(strategy.net.backbone.state_dict())
    learn(strategy, stream)
    assert same(strategy.net.backbone.state_dict(), before)
    (batch,) = stream[0].train.batches(99)
    means = torch.stack([strategy.net.features(batch.x)[batch.y == k].mean(0) for k in range(3)])
    (test,) = stream[0].test.batches(99)
    nearest = torch.cdist(strategy.net.features(test.x), means).argmin(1)
    assert torch.equal(strategy.predict(test.x)[:, :3].argmax(1), nearest)
    assert strategy.bytes_stored()["prototypes"] == 5 * (6 + 1) * 4
    # With a task id no class of another task is given.
    for task in stream:
        (test,) = task.test.batches(99)
        assert set(strategy.predict(test.x, task.index).argmax(1).tolist()) <= set(task.classes)


def test_means_are_those_of_all_tasks_a_class_was_met_in(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="domain")
    strategy = NearestMean(build_net("MLP", stream, seed=0), metric="euclidean")
    Run(strategy, stream, trainer={"accelerator": "cpu"}).fit()
    tasks = [next(task.train.batches(999)) for task in stream]
    x, y = torch.cat([batch.x for batch in tasks]), torch.cat([batch.y for batch in tasks])
    strategy.eval()
    features = strategy.net.features(x)
    for label in range(stream.num_classes):
        mean = features[y == label].mean(0)
        assert torch.allclose(strategy.prototypes.means[label], mean, atol=1e-5)


def test_loss_is_over_the_task_s_own_classes() -> None:
    stream = coloured(labels=None)
    strategy = SLCA(joined_net(), lr=0.05)
    learn(strategy, stream)
    strategy.task = stream[1]
    (batch,) = stream[1].train.batches(99)
    features = strategy.net.features(batch.x)
    expected = cross_entropy(strategy.head.layers[1](features), batch.y - 3)
    assert torch.allclose(strategy.loss(batch), expected)
