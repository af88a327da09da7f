"""Nets without biases: published counts, closed forms, images of any size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets import MLP, TinyNet

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 64, 64), (2, 33, 47)]
NETS = [TinyNet]


def weights(net: nn.Module) -> int:
    """How many numbers the convolutions and linear layers have; all that the net has."""
    layers = [part for part in net.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert all(layer.bias is None for layer in layers)
    total = sum(layer.weight.numel() for layer in layers)
    assert total == sum(p.numel() for p in net.parameters())
    return total


@pytest.mark.parametrize(
    ("build", "shape", "features", "total"),
    [
        (partial(MLP, hidden=(100, 100), bias=False), (1, 28, 28), 100, 88_400),
        (TinyNet, (3, 64, 64), 640, 2_743_520),
    ],
)
def test_published_numbers_of_weights(
    build: Callable[..., nn.Module], shape: tuple[int, ...], features: int, total: int
) -> None:
    with torch.device("meta"):
        net = build(shape)
    assert net.num_features == features
    assert weights(net) == total


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NETS)
def test_images_of_any_size(kind: type[nn.Module], shape: tuple[int, int, int]) -> None:
    net = kind(shape)
    x = torch.randn(3, *shape)
    before = copy.deepcopy(x)
    features = net(x)
    assert features.shape == (3, net.num_features)
    assert torch.equal(x, before)
    features.sum().backward()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in net.parameters())  # type: ignore[union-attr]
    assert all(p.grad.any() for p in net.parameters())  # type: ignore[union-attr]


def test_tinynet_in_the_open() -> None:
    net = TinyNet((3, 9, 20))
    x = torch.randn(4, 3, 9, 20)
    *convolutions, first, second = net.parameters()
    expected = x
    for weight in convolutions:
        expected = F.conv2d(expected, weight, stride=2, padding=1).clamp(min=0)
    expected = (expected.flatten(1) @ first.T).clamp(min=0)
    torch.testing.assert_close(net(x), (expected @ second.T).clamp(min=0))


@pytest.mark.parametrize("kind", NETS)
def test_flat_rows_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(UserError, match=rf"{kind.__name__} takes images .* \[5\]; .* is MLP"):
        kind((5,))
