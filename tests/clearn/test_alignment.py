"""Classifier alignment against the published algorithm, step by step in NumPy's float64."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from clearn.alignment import align, alignment_loss, mean_scale
from clearn.errors import UserError
from clearn.gaussians import ClassGaussians
from clearn.nets import JoinedHead

Array = NDArray[np.float64]

WIDTH = 6
CLASSES = ((3, 1, 7), (0,), (6, 2), (5, 4))  # tasks of unequal size, labels out of order
COUNTS = {3: 1, 1: 2, 7: 9, 0: 4, 6: 6, 2: 3}  # features of the classes of the first three tasks
TRAINING: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-3, "per_class": 8}


def features_of(label: int) -> Tensor:
    generator = torch.Generator().manual_seed(label)
    centre = 2 * torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    rows = torch.randn(COUNTS[label], WIDTH, generator=generator, dtype=torch.float64)
    return centre + rows


def ready() -> tuple[JoinedHead, ClassGaussians]:
    """Three of four tasks begun, in float64."""
    torch.manual_seed(3)
    head, gaussians = JoinedHead(WIDTH, 8, CLASSES).double(), ClassGaussians(8, WIDTH).double()
    for index, labels in enumerate(CLASSES[:3]):
        head.begin_task(index, labels, torch.Generator())
        for label in labels:
            gaussians.keep(label, features_of(label))
    return head, gaussians


def aligned(head: JoinedHead, gaussians: ClassGaussians, seed: int = 0, **options: Any) -> Tensor:
    training = TRAINING | {"epochs": 3, "tau": 0.5} | options
    scale = mean_scale(head.task_of, head.begun - 1)
    generator = torch.Generator().manual_seed(seed)
    return align(head, gaussians, scale=scale, generator=generator, **training)


def slow_loss(logits: list[Array], column: int, tau: float | None) -> float:
    """Of one example; `logits` are those of each task."""
    norms = [np.sqrt((z**2).sum()) + 1e-7 for z in logits]
    z = np.concatenate(logits)
    if tau is not None:
        z = z / np.mean(norms) / tau
    return float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[column])


def slow_gradient(weights: list[Array], v: Array, column: int, tau: float | None) -> list[Array]:
    """Of `slow_loss` for the weights `[K, F + 1]` of each task, bias last: by hand."""
    u = np.append(v, 1.0)
    parts = [w @ u for w in weights]
    z, n = np.concatenate(parts), 1.0
    if tau is not None:
        n = np.mean([np.sqrt((part**2).sum()) + 1e-7 for part in parts]) * tau
    p = np.exp(z / n - (z / n).max())
    p /= p.sum()
    p[column] -= 1  # d loss / d (z / n)
    directions = [part / np.sqrt((part**2).sum()) / len(parts) for part in parts]
    dn = 0.0 if tau is None else -(p @ z) / n**2 * tau  # d loss / d mean norm
    dz = p / n + dn * np.concatenate(directions)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return [np.outer(each, u) for each in np.split(dz, ends)]


def slow_sample(scale: Array, generator: torch.Generator) -> tuple[Array, list[int]]:
    """The distribution of the published code from the numbers that clearn draws, class by class."""
    labels, count = sorted(COUNTS), TRAINING["per_class"]
    features = {label: features_of(label).numpy() for label in labels}
    covs = {k: np.cov(x, rowvar=False) for k, x in features.items() if len(x) > 1}
    first = torch.randn(len(labels), count, WIDTH, generator=generator, dtype=torch.float64).numpy()
    blocks = []
    for numbers, label in zip(first, labels, strict=True):
        own, mean = features[label], scale[label] * features[label].mean(axis=0)
        if len(own) >= WIDTH:
            factor = np.linalg.cholesky(covs[label] + 1e-4 * np.eye(WIDTH))
            blocks.append(mean + numbers @ factor.T)
        elif len(own) == 1:  # here the others have as many features as there are dimensions
            factor = np.linalg.cholesky(np.mean(list(covs.values()), axis=0) + 1e-4 * np.eye(WIDTH))
            blocks.append(mean + numbers @ factor.T)
        else:
            more = torch.randn(count, len(own), generator=generator, dtype=torch.float64).numpy()
            spread = (own - own.mean(axis=0)) / np.sqrt(len(own) - 1)
            blocks.append(mean + 1e-2 * numbers + more @ spread)
    return np.concatenate(blocks), [label for label in labels for _ in range(count)]


def slow_align(head: JoinedHead, epochs: int, tau: float | None, seed: int) -> list[Array]:
    """One example at a time; the weights `[K, F + 1]` of each task begun, bias last."""
    generator, size = torch.Generator().manual_seed(seed), TRAINING["per_class"]
    layers = cast("list[nn.Linear]", list(head.layers[:3]))
    weights = [
        torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().numpy() for layer in layers
    ]
    velocity: list[Array] = [np.zeros_like(w) for w in weights]
    joined = [label for labels in CLASSES[:3] for label in labels]
    scale = np.zeros(8)
    for task, labels in enumerate(CLASSES[:3]):
        scale[list(labels)] = np.float32(0.9 + 0.1 * (task + 1) / 3)
    for epoch in range(epochs):
        lr = TRAINING["lr"] * (1 + np.cos(np.pi * epoch / epochs)) / 2
        features, y = slow_sample(scale, generator)
        order = torch.randperm(len(y), generator=generator).tolist()
        for start in range(0, len(y), size):
            rows = order[start : start + size]
            each = [slow_gradient(weights, features[r], joined.index(y[r]), tau) for r in rows]
            for k in range(3):
                gradient = np.mean([g[k] for g in each], axis=0)
                gradient = gradient + TRAINING["weight_decay"] * weights[k]
                first = epoch == start == 0
                velocity[k] = gradient if first else TRAINING["momentum"] * velocity[k] + gradient
                weights[k] = weights[k] - lr * velocity[k]
    return weights


@pytest.mark.parametrize("tau", [0.5, 0.1, None])
def test_every_step_is_the_published_one(tau: float | None) -> None:
    head, gaussians = ready()
    expected = slow_align(head, 3, tau, seed=11)
    aligned(head, gaussians, seed=11, tau=tau)
    for layer, weights in zip(list(head.layers)[:3], expected, strict=False):
        found = torch.cat([layer.weight, layer.bias[:, None]], dim=1)  # type: ignore[list-item,index]
        np.testing.assert_allclose(found.detach().numpy(), weights, rtol=1e-6, atol=1e-6)


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    tau=st.sampled_from([0.5, 0.1, None]),
    power=st.integers(-3, 2),
    seed=st.integers(0, 99),
)
def test_loss_and_its_gradient(sizes: list[int], tau: float | None, power: int, seed: int) -> None:
    """Value against NumPy, gradient against finite differences of NumPy's value."""
    rng, classes = np.random.default_rng(seed), sum(sizes)
    logits = rng.normal(size=(5, classes)) * 10.0**power
    y = rng.integers(classes, size=5)
    ends = np.cumsum(sizes)[:-1]
    member = torch.eye(len(sizes)).double().repeat_interleave(torch.tensor(sizes), dim=0)

    def slow(z: Array) -> float:
        rows = zip(z, y, strict=True)
        return float(np.mean([slow_loss(np.split(row, ends), int(k), tau) for row, k in rows]))

    z = torch.from_numpy(logits).requires_grad_()
    loss = alignment_loss(z, torch.from_numpy(y), member, tau)
    assert loss.item() == pytest.approx(slow(logits), rel=1e-9, abs=1e-12)
    loss.backward()
    assert z.grad is not None
    step = 1e-5 * 10.0**power
    for index in np.ndindex(logits.shape):
        shift = np.zeros_like(logits)
        shift[index] = step
        numeric = (slow(logits + shift) - slow(logits - shift)) / (2 * step)
        # Of the change that a step of the size of the logits makes.
        assert z.grad[index].item() * 10.0**power == pytest.approx(
            numeric * 10.0**power, rel=1e-6, abs=1e-6
        )


def test_logits_of_zero_have_a_finite_gradient() -> None:
    """All of one task, or of all."""
    for logits in (torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3)):
        z = logits.requires_grad_()
        loss = alignment_loss(z, torch.tensor([1]), torch.eye(2)[[0, 0, 1]], 0.5)
        loss.backward()
        assert torch.isfinite(loss)
        assert z.grad is not None
        assert torch.isfinite(z.grad).all()


def test_scale_of_the_means() -> None:
    """By the task of each class, whatever the sizes of tasks."""
    task_of = torch.tensor([1, 0, 0, 0, 2])
    expected = [0.9 + 0.1 * 2 / 3, *[0.9 + 0.1 / 3] * 3, 1.0]
    torch.testing.assert_close(mean_scale(task_of, 2), torch.tensor(expected))
    assert mean_scale(task_of, 0)[1].item() == 1.0


@pytest.mark.parametrize("tau", [0.5, None])
def test_the_loss_falls_and_accuracy_rises(tau: float | None) -> None:
    head, gaussians = ready()
    rows, y = gaussians.sample(200, torch.ones(8), torch.Generator().manual_seed(1))

    def accuracy() -> float:
        return (head(rows).argmax(dim=1) == y).double().mean().item()

    before, losses = accuracy(), aligned(head, gaussians, epochs=8, tau=tau, per_class=64)
    assert losses.shape == (8,)
    assert losses[-1] < losses[1:-1].mean() < losses[0]
    assert accuracy() > before + 0.4


def test_moves_layers_of_tasks_begun_and_nothing_else() -> None:
    """Also those that are frozen, which stay frozen and get no gradient."""
    head, gaussians = ready()
    head.layers[0].requires_grad_(False)
    before = [p.detach().clone() for p in head.parameters()]
    parameters, kept = list(head.parameters()), gaussians.sample(2, torch.ones(8), draws())[0]
    aligned(head, gaussians)
    assert all(a is b for a, b in zip(head.parameters(), parameters, strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(head.parameters(), before, strict=True)]
    assert moved == [True] * 6 + [False] * 2
    assert [p.requires_grad for p in parameters] == [False] * 2 + [True] * 6
    assert all(p.grad is None for p in parameters)
    assert torch.equal(gaussians.sample(2, torch.ones(8), draws())[0], kept)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_depends_on_the_generator_alone() -> None:
    found = []
    for seed in (4, 4, 5):
        head, gaussians = ready()
        state = torch.get_rng_state()
        losses = aligned(head, gaussians, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(torch.cat([losses, *(p.detach().flatten() for p in head.parameters())]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_no_epochs() -> None:
    head, gaussians = ready()
    before = [p.detach().clone() for p in head.parameters()]
    assert aligned(head, gaussians, epochs=0).shape == (0,)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), before, strict=True))


def test_a_class_whose_task_has_not_begun() -> None:
    head, gaussians = ready()
    gaussians.keep(5, features_of(1))
    with pytest.raises(UserError, match=r"class 5 is not of the 3 tasks that have begun; begin"):
        aligned(head, gaussians)
    with pytest.raises(UserError, match="no class is known"):
        aligned(head, ClassGaussians(8, WIDTH))


@pytest.mark.gpu
def test_on_a_device() -> None:
    """With the same draws, from a generator on the CPU."""
    head, gaussians = ready()
    head.cuda(), gaussians.cuda()
    cpu, other = ready()
    expected = aligned(cpu, other)
    torch.testing.assert_close(aligned(head, gaussians).cpu(), expected)
    for ours, theirs in zip(head.parameters(), cpu.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)
