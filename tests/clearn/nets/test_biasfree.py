"""Nets without biases: published counts, closed forms, images of any size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets import MLP, AlexNetNorm, LeNetWide, ResNet18, TinyNet

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 64, 64), (2, 33, 47), (4, 1, 5)]
NETS = [AlexNetNorm, LeNetWide, TinyNet]
LARGE = {"channels": (64, 128), "hidden": (2500, 1500)}
PAPER = {"width": 20, "pool": 2, "affine": False, "statistics": "batch"}


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
        (AlexNetNorm, (3, 32, 32), 2048, 6_499_328),
        (LeNetWide, (3, 32, 32), 500, 2_986_500),
        (partial(LeNetWide, **LARGE), (1, 32, 32), 1500, 24_436_400),
        (partial(ResNet18, **PAPER), (3, 32, 32), 640, 1_090_140),
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


def test_lenet_wide_in_the_open() -> None:
    net = LeNetWide((2, 9, 14), channels=(4, 6, 5), hidden=(8, 3))
    x = torch.randn(4, 2, 9, 14)
    *convolutions, first, second = net.parameters()
    expected = x
    for weight in convolutions:
        expected = F.conv2d(expected, weight, padding=2).clamp(min=0)
        # Zeros are above no value that ReLU gives.
        expected = F.pad(expected, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(4, 5))
    expected = (expected.flatten(1) @ first.T).clamp(min=0)
    torch.testing.assert_close(net(x), (expected @ second.T).clamp(min=0))


def normalised(x: Tensor) -> Tensor:
    """Each channel with mean 0 and variance 1 over the batch."""
    dims = [0, *range(2, x.ndim)]
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("side", [32, 28, 41])
def test_alexnet_norm_in_the_open(side: int) -> None:
    net = AlexNetNorm((3, side, side), statistics="batch").double().eval()
    x = torch.randn(4, 3, side, side, dtype=torch.float64)
    *convolutions, first, second = net.parameters()
    expected = F.pad(x, (2, 2, 2, 2)) if side == 28 else x
    for weight in convolutions:
        maps = normalised(F.conv2d(expected, weight)).clamp(min=0)
        expected = maps.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    expected = expected.flatten(1)
    for weight in (first, second):
        expected = normalised(expected @ weight.T).clamp(min=0)
    torch.testing.assert_close(net(x), expected)


def test_alexnet_norm_drops_after_each_layer() -> None:
    net = AlexNetNorm((3, 32, 32))
    shares = [part.p for part in net.modules() if isinstance(part, nn.Dropout)]
    assert shares == [0.2, 0.2, 0.5, 0.5, 0.5]
    x = torch.randn(4, 3, 32, 32)
    features = net(x)
    assert not torch.equal(net(x), features)
    assert (features == 0).double().mean() == pytest.approx(0.75, abs=0.05)  # ReLU, then dropout
    assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("build", [AlexNetNorm, partial(ResNet18, width=4, affine=False)])
def test_running_statistics_make_an_image_independent_of_the_others(
    build: Callable[..., nn.Module],
) -> None:
    net = build((3, 32, 32))
    assert net.training
    for _ in range(3):
        net(torch.randn(8, 3, 32, 32))
    net.eval()
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(net(x), torch.cat([net(row[None]) for row in x]))


@pytest.mark.parametrize("build", [AlexNetNorm, partial(ResNet18, width=4, affine=False)])
def test_statistics_of_the_batch_keep_nothing(build: Callable[..., nn.Module]) -> None:
    net = build((3, 32, 32), statistics="batch")
    assert not list(net.buffers())
    x = torch.randn(5, 3, 32, 32)
    net.eval()
    assert not torch.allclose(net(x)[:2], net(x[:2]))


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_alexnet_norm_trains_on_a_single_image(statistics: Any) -> None:
    net = AlexNetNorm((3, 32, 32), statistics=statistics)
    net(torch.randn(1, 3, 32, 32)).sum().backward()
    for parameter in net.parameters():
        assert torch.isfinite(parameter.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (partial(LeNetWide, channels=()), r"net\.channels: \[\] is not valid: expected widths"),
        (partial(LeNetWide, hidden=(3, 0)), r"net\.hidden: \[3, 0\] is not valid"),
        (partial(AlexNetNorm, statistics="both"), r"'both' is not valid: expected running or"),
        (partial(ResNet18, statistics="both"), r"net\.statistics: 'both' is not valid"),
        (partial(ResNet18, pool=0), r"net\.pool: 0 is not valid: expected 1 to 2, .* are 2x3"),
        (partial(ResNet18, pool=3), r"net\.pool: 3 is not valid"),
    ],
)
def test_options_out_of_range(build: Callable[..., nn.Module], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        build((3, 16, 18))


@pytest.mark.parametrize("kind", NETS)
def test_flat_rows_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(UserError, match=rf"{kind.__name__} takes images .* \[5\]; .* is MLP"):
        kind((5,))
