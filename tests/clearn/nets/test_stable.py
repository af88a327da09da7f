"""The ResNet-18 with one convolution per block, against the formula of its block."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets import Net, SingleHead, StableResNet18


@pytest.mark.parametrize(
    ("side", "features", "count"), [(8, 160, 496_680), (32, 160, 496_680), (84, 640, 544_680)]
)
def test_parameters_as_counted_in_the_authors_code(side: int, features: int, count: int) -> None:
    backbone = StableResNet18((3, side, side))
    net = Net(backbone, SingleHead(features, 100))
    assert sum(p.numel() for p in net.parameters()) == count
    assert len(list(net.parameters())) == 48
    assert net(torch.randn(2, 3, side, side)).shape == (2, 100)


def test_a_block_is_its_formula() -> None:
    net = StableResNet18((3, 32, 32), width=2).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)

    def normal(x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, training=True)  # as initialised: scale 1, offset 0

    y = F.relu(normal(F.conv2d(x, net.conv.weight, padding=1)))
    for block in net.blocks:
        stride = block.conv.stride
        shortcut = y
        if block.conv.weight.shape[0] != block.conv.weight.shape[1]:
            shortcut = F.conv2d(y, block.shortcut.weight, stride=stride)
        inner = normal(F.relu(F.conv2d(y, block.conv.weight, stride=stride, padding=1)))
        y = normal(F.relu(inner + shortcut))
    torch.testing.assert_close(net(x), y.mean(dim=(2, 3)))


def test_dropout_only_in_training() -> None:
    net, x = StableResNet18((1, 32, 32), width=2, dropout=0.5), torch.randn(2, 1, 32, 32)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 32, 32), {"width": 0}, r"net\.width: 0 is not valid"),
        ((3, 32, 32), {"dropout": 1.0}, r"net\.dropout: 1\.0 is not valid"),
        ((5,), {}, "images"),
    ],
)
def test_bad_options(shape: tuple[int, ...], options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StableResNet18(shape, **options)
