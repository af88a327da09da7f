"""TACLE against plain float64 NumPy, and against the form with one forward pass."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from clearn.errors import UserError
from clearn.seeding import Generators
from clearn.semi import Labels
from clearn.strategies.slca import SLCA
from clearn.strategies.tacle import TACLE, _Outputs, adaptive_threshold, class_weights
from clearn.stream import Task
from clearn.testing import check_strategy
from tests.strategies.by_hand import Double
from tests.strategies.semi_streams import coloured, joined_net, learn, learned

Array = NDArray[np.float64]


def test_contract() -> None:
    check_strategy(
        TACLE,
        scenarios=["class", "task"],
        heads=["joined"],
        net={"name": "MLP", "hidden": (32,)},
        input_shape=(3, 8, 8),
        labels_per_class=4,
        slow=1.0,
        lr=0.05,
        warm_up=1,
    )


# Closed forms


def test_thresholds_as_published() -> None:
    published = [0.9, 0.8388, 0.7845, 0.7412, 0.7096, 0.6879, 0.6737, 0.6647, 0.6590, 0.6555]
    found = [adaptive_threshold(task, 0.5, 0.65) for task in range(10)]
    assert found == pytest.approx(published, abs=5e-5)
    assert adaptive_threshold(200, 0.5, 0.65) == pytest.approx(0.65)


def test_weights_as_worked_out_in_the_specification() -> None:
    counts = torch.tensor([1.0, 5.0, 20.0, 101.0])
    assert class_weights(counts, "code").tolist() == pytest.approx([2, 1.2, 1.05, 1.01], abs=5e-3)
    assert class_weights(counts, "paper").tolist() == pytest.approx([1.99, 1.95, 1.8, 1], abs=5e-3)
    assert class_weights(counts, "none").tolist() == [1, 1, 1, 1]


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=12))
def test_weights_of_the_code_are_scikit_learns_balanced_ones(counts: list[int]) -> None:
    n = np.array(counts, dtype=np.float64)
    balanced = n.sum() / (len(n) * n)
    found = class_weights(torch.tensor(counts, dtype=torch.float64), "code").numpy()
    assert found == pytest.approx(balanced / balanced.max() + 1, abs=1e-6)
    assert ((found > 1) & (found <= 2)).all()


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def slow_loss(
    z: Array, y: list[int], weak: Array, strong: Array | None, w: list[float], gamma: float
) -> float:
    """The equations of the specification, example by example."""
    own = softmax(z)
    total = sum(w[k] for k in y)
    supervised = sum(-w[k] * math.log(p[k]) for p, k in zip(own, y, strict=True)) / total
    if strong is None:
        return 0.5 * supervised
    unsupervised = 0.0
    for guess, view in zip(softmax(weak), softmax(strong), strict=True):
        label = int(guess.argmax())
        if guess[label] > gamma:
            unsupervised -= w[label] * math.log(view[label])
    return 0.5 * supervised + unsupervised / len(weak)


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("threshold", [None, 0.75])
def test_loss(epoch: int, index: int, threshold: float | None) -> None:
    stream = coloured()
    strategy = TACLE(joined_net(), threshold=threshold)
    strategy.prepare(stream, Generators(0))
    for task in stream.tasks[: index + 1]:
        strategy.task = task
        strategy.begin_task(task)
    strategy._epoch = epoch
    classes = stream[index].classes
    generator = torch.Generator().manual_seed(1)
    logits = [2 * torch.randn(n, len(classes), generator=generator).double() for n in (9, 16, 16)]
    weights = (1 + torch.rand(len(classes), generator=generator)).double()
    strategy.double()
    strategy.weights[list(classes)] = weights
    seen: dict[str, Any] = {}

    def given(x: Tensor, weak: Tensor, strong: Tensor | None) -> Any:
        seen["sizes"] = len(x), len(weak), None if strong is None else len(strong)
        guess, confident = strategy._guess(logits[1])
        learned = None if strong is None else logits[2]
        return _Outputs(logits[0][: len(x)], guess, confident, learned)

    strategy._outputs = given  # type: ignore[method-assign]
    take = strategy.labelled_batch
    strategy.labelled_batch = lambda: seen.setdefault("labelled", take())  # type: ignore[method-assign]
    pool = stream[index].unlabelled
    assert pool is not None
    batch = next(pool.batches(16))
    loss = float(strategy.loss(batch))
    warm = epoch < 2
    labelled = len(stream[index].train)
    assert seen["sizes"] == (labelled, 16, None if warm else 16)
    gamma = threshold if threshold is not None else 0.5 / (1 + math.exp(0.5 * index)) + 0.65
    y = [classes.index(k) for k in seen["labelled"].y.tolist()]
    z, weak, strong = (part.numpy() for part in logits)
    expected = slow_loss(z[:labelled], y, weak, None if warm else strong, weights.tolist(), gamma)
    assert loss == pytest.approx(expected, abs=1e-6)
    confident = softmax(weak).max(axis=1) > gamma
    assert 0 < confident.sum() < 16  # else this test would show nothing
    assert strategy._guesses is not None
    assert strategy._guesses[1].tolist() == confident.tolist()


@pytest.mark.parametrize(("threshold", "confident"), [(0.0, 16), (0.3397, None), (0.99, 0)])
def test_only_views_that_are_learned_from_is_the_same_step(
    threshold: float, confident: int | None
) -> None:
    """As the authors' one pass over all views, where rows do not mix: loss and gradients."""
    stream = coloured(preprocess=Double((0.5,), (0.25,)))
    losses, gradients, passed = [], [], []
    for mixes in (False, True):
        strategy = TACLE(joined_net().double(), threshold=threshold, warm_up=0, slow=1.0)
        assert not strategy._mixes_rows
        strategy._mixes_rows = mixes
        strategy.prepare(stream, Generators(0))
        strategy.double()
        strategy.task = stream[0]
        strategy.begin_task(stream[0])
        pool = stream[0].unlabelled
        assert pool is not None
        sizes: list[int] = []
        strategy.net.backbone.register_forward_hook(lambda *a, sizes=sizes: sizes.append(len(a[2])))
        loss = strategy.loss(next(pool.batches(16)))
        loss.backward()
        passed.append(sizes)
        assert strategy._guesses is not None
        learned = int(strategy._guesses[1].sum())
        losses.append(loss.item())
        gradients.append([p.grad for p in strategy.net.parameters() if p.grad is not None])
    assert 0 < learned < 16 if confident is None else learned == confident
    labelled = len(stream[0].train)
    assert passed == [[16, labelled + learned], [labelled + 16 + 16]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_batch_normalisation_sees_all_views_at_once() -> None:
    strategy = TACLE(joined_net(norm=nn.BatchNorm1d), slow=1.0)
    assert strategy._mixes_rows
    assert not TACLE(joined_net(norm=nn.BatchNorm1d), slow=0)._mixes_rows
    x, weak, strong = (torch.randn(n, 3, 8, 8) for n in (3, 5, 5))
    strategy.prepare(coloured(), Generators(0))
    strategy.task = strategy.stream[0]
    strategy.begin_task(strategy.task)
    strategy.train()
    body = copy.deepcopy(strategy.net.backbone)
    features = body(torch.cat([x, strong, weak]))
    known, learned, guessed = strategy.head.layers[0](features).split([3, 5, 5])
    likeliest, guess = guessed.softmax(dim=1).max(dim=1)
    strategy.threshold = float(likeliest.detach().sort().values[1:3].mean())
    found = strategy._outputs(x, weak, strong)
    assert torch.allclose(found.known, known, atol=1e-5)
    assert found.guess.tolist() == guess.tolist()
    assert found.confident.sum() == 3
    assert found.confident.tolist() == (likeliest > strategy.threshold).tolist()
    assert found.strong is not None
    assert torch.allclose(found.strong, learned, atol=1e-5)
    assert found.known.requires_grad
    # During the warm-up too, though nothing is learned from the strong ones.
    sizes: list[int] = []
    strategy.net.backbone.register_forward_hook(lambda *args: sizes.append(len(args[2])))
    pool = strategy.task.unlabelled
    assert pool is not None
    for epoch in (0, strategy.warm_up):
        strategy._epoch = epoch
        strategy.loss(next(pool.batches(5)))
    assert sizes == [len(strategy.task.train) + 5 + 5] * 2


# The pool


class Spy(TACLE):
    """Takes down each step's guesses, and the weights after it."""

    def update(self, optimizer: Any) -> None:
        before = self.weights.clone()
        super().update(optimizer)
        assert self._guesses is not None
        guess, confident = (part.clone() for part in self._guesses)
        row = (self.task.index, self._epoch, before, guess, confident, self.weights.clone())
        self.__dict__.setdefault("steps", []).append(row)


@pytest.mark.parametrize("form", ["code", "paper", "none"])
def test_counts_and_weights_over_a_run(form: Any) -> None:
    stream = coloured()
    strategy = Spy(joined_net(), threshold=0.36, class_weights=form, slow=1.0, lr=0.5)
    learn(strategy, stream, epochs=3, batch_size=16)
    for index, classes in enumerate(((0, 1, 2), (3, 4))):
        rows = [row for row in strategy.steps if row[0] == index and row[1] == 0]
        assert len(rows) > 1
        assert rows[0][2].tolist() == [1.0] * 5  # the first step of a task weighs nothing
        counts = Counter(dict.fromkeys(classes, 1))  # and one of each
        for _, _, _, guess, confident, weights in rows:
            counts.update(classes[k] for k in guess[confident].tolist())
            n = np.array([counts[label] for label in classes], dtype=np.float64)
            expected = {"code": 1 + n.min() / n, "paper": 2 - n / n.max(), "none": 0 * n + 1}[form]
            assert weights[list(classes)].numpy() == pytest.approx(expected, abs=1e-6)
        assert sum(counts.values()) > len(classes)


@pytest.mark.parametrize("scope", ["seen", "task"])
def test_the_pool_is_counted_anew_after_an_epoch(scope: Any) -> None:
    stream = coloured()
    strategy = TACLE(joined_net(), threshold=0.35, scope=scope, slow=1.0, lr=0.05)
    learn(strategy, stream, epochs=3)
    strategy.task = stream[1]
    pool = stream[1].unlabelled
    assert pool is not None
    strategy._survey(stream[1])
    assert strategy.training
    strategy.eval()
    (batch,) = pool.batches(99)
    with torch.no_grad():
        features = strategy.net.features(batch.x)
        z = torch.cat([layer(features) for layer in strategy.head.layers], dim=1).numpy()
    p = softmax(z.astype(np.float64))
    own = softmax(z[:, 3:].astype(np.float64))
    counts = np.array([1.0, 1.0])
    for among_all, among_own in zip(p, own, strict=True):
        if scope == "seen" and among_all.max() > 0.35 and among_all.argmax() >= 3:
            counts[among_all.argmax() - 3] += 1
        if scope == "task" and among_own.max() > 0.35:
            counts[among_own.argmax()] += 1
    assert strategy.pool[3:].tolist() == counts.tolist()
    confident = own.max(axis=1) > 0.35
    truth = torch.arange(3, 5).repeat_interleave(17).numpy()
    assert strategy._used[-1] == pytest.approx(confident.mean())
    right = (own.argmax(axis=1) + 3 == truth)[confident].mean()
    assert strategy._right[-1] == pytest.approx(right)


@pytest.mark.parametrize(("form", "epochs"), [("code", [0, 1, 2]), ("none", [3])])
def test_the_pool_is_passed_as_often_as_needed(form: Any, epochs: list[int]) -> None:
    class Surveyed(TACLE):
        def _survey(self, task: Task) -> None:
            super()._survey(task)
            self.__dict__.setdefault("surveys", []).append((task.index, self._epoch))

    strategy = Surveyed(joined_net(), threshold=0.35, class_weights=form, slow=1.0, lr=0.05)
    learn(strategy, coloured(), epochs=3)
    assert strategy.surveys == [(task, epoch) for task in range(2) for epoch in epochs]
    lines = strategy.charts()["unlabelled examples"]
    assert isinstance(lines, dict)
    assert all(0 < share <= 1 for share in lines["share used"])


@pytest.mark.parametrize("unlabelled", [True, False])
def test_confident_examples_count_in_the_gaussians(unlabelled: bool) -> None:
    stream = coloured()
    strategy = TACLE(
        joined_net(), threshold=0.34, unlabelled_statistics=unlabelled, slow=1.0, lr=0.05
    )
    learn(strategy, stream)
    sizes = {label: len(rows) for label, rows in strategy.gaussians.get_extra_state().items()}
    if unlabelled:
        assert max(sizes.values()) > 3
    else:
        assert set(sizes.values()) == {3}


def test_charts() -> None:
    strategy = TACLE(joined_net(), slow=1.0, lr=0.05)
    learn(strategy, coloured(), epochs=3)
    lines = strategy.charts()["unlabelled examples"]
    assert isinstance(lines, dict)
    assert lines["threshold"] == pytest.approx([0.9, 0.8388], abs=5e-5)
    assert all(0 <= share <= 1 for share in lines["share used"])
    (spread,) = strategy.charts()["spread of class weights"].values()  # type: ignore[union-attr]
    last = strategy.weights[list(strategy.stream[1].classes)]
    assert spread[1] == pytest.approx(float(last.max() / last.min()))
    assert all(1 <= number <= 2 for number in spread)
    fixed = TACLE(joined_net(), threshold=0.9)
    fixed.prepare(coloured(), Generators(0))
    lines = fixed.charts()["unlabelled examples"]
    assert isinstance(lines, dict)
    assert list(lines["threshold"]) == [0.9, 0.9]


# What must not matter, and what must


def test_hidden_labels_do_not_matter() -> None:
    """The same images, of other classes where no label is given: the same net, bit for bit."""
    results = []
    for swap in (False, True):
        stream = coloured()
        for task in stream if swap else ():
            assert task.unlabelled is not None
            assert task.unlabelled._truth is not None
            task.unlabelled._truth = torch.full_like(task.unlabelled._truth, task.classes[0])
        strategy = TACLE(joined_net(), threshold=0.36, slow=1.0, lr=0.05)
        run = learn(strategy, stream)
        results.append((strategy.net.state_dict(), run.result.matrix, strategy._right))
    assert np.array_equal(results[0][1], results[1][1], equal_nan=True)
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name]), name
    assert results[0][2] != results[1][2]  # only the report is another


def test_without_the_pool_s_part_it_is_slca() -> None:
    """A warm-up that never ends, no weights, no features of the pool: half the loss of SLCA."""
    stream = coloured()
    options = {"slow": 1.0, "momentum": 0.0, "weight_decay": 0.0, "milestones": (), "ca_epochs": 0}
    one = SLCA(joined_net(), lr=0.05, **options)  # type: ignore[arg-type]
    other = TACLE(
        joined_net(),
        lr=0.1,
        warm_up=99,
        class_weights="none",
        **options,  # type: ignore[arg-type]
    )
    for strategy in (one, other):
        # Images as they are: of views the two would draw different numbers.
        strategy.weak = stream.preprocess.eval  # type: ignore[method-assign]
        learn(strategy, stream)
    for name, value in one.net.state_dict().items():
        assert torch.allclose(value.float(), other.net.state_dict()[name].float(), atol=1e-5), name


@pytest.mark.parametrize("labels", [1, 17])
@pytest.mark.parametrize("slow", [0.0, 1.0])
def test_one_label_per_class_and_all(labels: int, slow: float) -> None:
    strategy = TACLE(joined_net(), slow=slow, lr=0.5)
    run = learn(strategy, coloured(labels=labels), epochs=6)
    assert learned(run) > 0.6 or not slow  # features at random do not serve well
    assert all(torch.isfinite(p).all() for p in strategy.net.parameters())


def test_batch_norm_net_learns() -> None:
    strategy = TACLE(joined_net(norm=nn.BatchNorm1d), slow=1.0, lr=0.2)
    run = learn(strategy, coloured(labels=8), epochs=6)
    assert learned(run) > 0.6


# Bad input


def test_a_stream_without_a_pool() -> None:
    strategy = TACLE(joined_net())
    with pytest.raises(UserError, match=r"^stream\.labels_per_class: TACLE learns .* set it"):
        strategy.prepare(coloured(labels=None), Generators(0))


def test_examples_that_are_no_images(tiny_stream: Any) -> None:
    stream = tiny_stream(classes=[[0, 1, 2], [3, 4]]).semi_supervised(Labels(labels_per_class=2))

    class Rows(nn.Identity):
        num_features = 5

    net = joined_net()
    net.backbone = Rows()
    net.head = type(net.head)(5, 5, ((0, 1, 2), (3, 4)))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^views: need uint8 images"):
        learn(TACLE(net), stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, r"^strategy\.threshold: 1\.0 is not valid: expected \[0, 1\), or no"),
        ({"threshold": -0.1}, r"^strategy\.threshold"),
        ({"alpha": 0.0}, r"^strategy\.alpha: 0\.0"),
        ({"beta": 0.8}, r"^strategy\.beta: 0\.8 is not valid: expected a number in \[0, 1 - alph"),
        ({"warm_up": -1}, r"^strategy\.warm_up: -1"),
        ({"class_weights": "cod"}, r"^strategy\.class_weights: 'cod' is unknown.*code"),
        ({"scope": "all"}, r"^strategy\.scope: 'all' is unknown.*seen"),
        ({"strong": "auto"}, r"^strategy\.strong: 'auto' is unknown.*autoaugment"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TACLE(joined_net(), **options)
