"""Means of classes and the nearest of them against loops over examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clearn.nets.heads import MASKED
from clearn.prototypes import Metric, Prototypes

METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


def drawn(count: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 7, generator=generator) + 0.5
    return features, torch.randint(classes, (count,), generator=generator)


def length_one(row: Tensor) -> Tensor:
    return row / row.pow(2).sum().sqrt()


def mean_of(features: Tensor, y: Tensor, label: int, metric: str) -> Tensor:
    """In float64, one row after the other."""
    rows = [row.double() for row, own in zip(features, y, strict=True) if own == label]
    rows = [length_one(row) for row in rows] if metric == "cosine" else rows
    return torch.stack(rows).mean(dim=0)


@pytest.mark.parametrize("metric", METRICS)
def test_means_and_distances(metric: Metric) -> None:
    """Batches of any size make no difference, and classes may come in several calls."""
    features, y = drawn(40)
    y[y == 3] = 0  # class 3 never comes
    prototypes = Prototypes(6, 7, metric)
    first = y < 2
    prototypes.keep(zip(features[first].split(3), y[first].split(3), strict=True))
    assert prototypes.known.tolist() == [True, True, False, False, False, False]
    assert prototypes.bytes_stored() == 2 * 7 * 4
    prototypes.keep([(features[~first], y[~first])])
    assert prototypes.known.tolist() == [True, True, True, False, True, False]

    queries, _ = drawn(9, seed=1)
    logits = prototypes(queries)
    for label in range(6):
        if not prototypes.known[label]:
            assert not prototypes.means[label].any()
            assert (logits[:, label] == MASKED).all()
            continue
        mean = mean_of(features, y, label, metric)
        torch.testing.assert_close(prototypes.means[label].double(), mean, rtol=1e-5, atol=1e-6)
        for query, logit in zip(queries.double(), logits[:, label].double(), strict=True):
            cosine = length_one(query) @ length_one(mean)
            distance = 1 - cosine if metric == "cosine" else (query - mean).pow(2).sum().sqrt()
            torch.testing.assert_close(-logit, distance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_unknown_classes_have_the_mean_of_the_batch(metric: Metric) -> None:
    """Known classes keep theirs; the gradient goes through distances and batch means."""
    features, y = drawn(30, classes=2)
    prototypes = Prototypes(5, 7, metric).double()
    prototypes.keep([(features.double(), y)])
    batch, labels = drawn(8, seed=2)
    labels = labels.clamp(min=1).where(labels != 4, 2)  # known: 1; new: 2, 3; class 4 is absent
    batch = batch.double().requires_grad_()
    logits = prototypes.with_batch(batch, labels)

    z = torch.stack([length_one(row) for row in batch]) if metric == "cosine" else batch
    means = [
        prototypes.means[0],
        prototypes.means[1],
        z[labels == 2].mean(0),
        z[labels == 3].mean(0),
    ]
    expected = torch.stack(
        [torch.stack([length_one(a) @ length_one(b) - 1 for b in means]) for a in z]
    )
    torch.testing.assert_close(logits[:, :4], expected)
    assert (logits[:, 4] == MASKED).all()
    weights = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (ours,) = torch.autograd.grad((logits[:, :4] * weights).sum(), batch, retain_graph=True)
    (plain,) = torch.autograd.grad((expected * weights).sum(), batch)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("metric", METRICS)
def test_features_of_zero_are_far_from_nothing(metric: Metric) -> None:
    """A net of dead units gives finite logits."""
    prototypes = Prototypes(2, 3, metric)
    prototypes.keep([(torch.zeros(2, 3), torch.tensor([0, 1]))])
    zero = torch.zeros(1, 3, requires_grad=True)
    assert torch.isfinite(prototypes(zero)).all()
    prototypes.with_batch(zero, torch.tensor([0])).sum().backward()
    assert torch.isfinite(zero.grad).all()
