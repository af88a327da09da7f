"""Small backbones: sizes, closed forms, published counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets import MLP, LeNet, SmallCNN

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 27, 33), (4, 1, 5)]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("shape", [(12,), (1, 8, 8), (3, 2, 5)])
@pytest.mark.parametrize("hidden", [(9,), (9, 4), [6, 5, 3]])
def test_mlp(shape: tuple[int, ...], hidden: tuple[int, ...]) -> None:
    net = MLP(shape, hidden=hidden)
    x = torch.randn(4, *shape)
    expected, weights = x.reshape(4, -1), list(net.parameters())
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        expected = (expected @ weight.T + bias).clamp(min=0)
    assert len(weights) == 2 * len(hidden)
    assert net.num_features == hidden[-1]
    torch.testing.assert_close(net(x), expected)


def test_mlp_without_biases_is_one_whose_biases_are_zero() -> None:
    with_bias, without = MLP((3, 4), hidden=(9, 5)), MLP((3, 4), hidden=(9, 5), bias=False)
    assert count(without) == 12 * 9 + 9 * 5
    left_out = with_bias.load_state_dict(without.state_dict(), strict=False).missing_keys
    for name in left_out:
        nn.init.zeros_(with_bias.get_parameter(name))
    x = torch.randn(4, 3, 4)
    torch.testing.assert_close(without(x), with_bias(x))
    assert len(left_out) == 2


def test_mlp_dropout_drops_when_training_only() -> None:
    net = MLP((12,), hidden=(400,), dropout=0.25)
    x = torch.randn(50, 12)
    net.eval()
    whole = net(x)
    net.train()
    dropped = (net(x) == 0) & (whole > 0)
    assert dropped.sum() / (whole > 0).sum() == pytest.approx(0.25, abs=0.03)


def test_mlp_leaves_its_input_alone() -> None:
    x = torch.randn(4, 12)
    before = x.clone()
    MLP((12,))(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("options", [{"hidden": ()}, {"hidden": (3, 0)}, {"dropout": 1.0}])
def test_mlp_options(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"net\.{next(iter(options))}: "):
        MLP((12,), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("kind", [LeNet, SmallCNN])
def test_images_of_any_size(kind: type[nn.Module], shape: tuple[int, int, int]) -> None:
    net = kind(shape)
    for batch in (1, 3):
        features = net(torch.randn(batch, *shape))
        assert features.shape == (batch, net.num_features)
    features.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("kind", [LeNet, SmallCNN])
def test_flat_rows_are_refused_with_a_net_that_takes_them(kind: type[nn.Module]) -> None:
    with pytest.raises(UserError, match=rf"{kind.__name__} takes images .* \[5\]; .* is MLP"):
        kind((5,))


@pytest.mark.parametrize(("shape", "total"), [((1, 28, 28), 61_706), ((3, 32, 32), 62_006)])
def test_lenet_has_the_known_number_of_parameters(shape: tuple[int, ...], total: int) -> None:
    channels = shape[0]
    convolutions = 6 * (25 * channels + 1) + 16 * (25 * 6 + 1)
    linear = 120 * (400 + 1) + 84 * (120 + 1) + 10 * (84 + 1)
    assert count(LeNet(shape)) + 10 * 85 == convolutions + linear == total


def test_lenet_on_digits_is_lenet_on_their_padded_images() -> None:
    small, large = LeNet((1, 28, 28)), LeNet((1, 32, 32))
    large.load_state_dict(small.state_dict())
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(small(x), large(F.pad(x, (2, 2, 2, 2))))


@pytest.mark.parametrize("shape", IMAGES)
def test_small_cnn_counts(shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    convolutions = 9 * (channels * 16 + 16 * 32 + 32 * 64)
    assert count(SmallCNN(shape)) == convolutions + 16 + 2 * (32 + 64)
    assert SmallCNN(shape).num_features == 64 * math.ceil(height / 8) * math.ceil(width / 8)


def test_small_cnn_treats_each_image_alone() -> None:
    net = SmallCNN((1, 8, 8))
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(net(x), torch.cat([net(row[None]) for row in x]))
