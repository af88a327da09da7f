"""ResNet-18 against torchvision's, and its numbers of parameters."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock

from clearn.errors import UserError
from clearn.nets import ReducedResNet18, ResNet18


def reference(width: int) -> nn.Module:
    """torchvision's ResNet-18 with the stem for small images and another width."""
    model = resnet.ResNet(BasicBlock, [2, 2, 2, 2])
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    model.inplanes = width
    for stage in range(4):
        blocks = model._make_layer(BasicBlock, width * 2**stage, 2, stride=1 if stage == 0 else 2)
        setattr(model, f"layer{stage + 1}", blocks)
    model.fc = nn.Identity()
    return model


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours under torchvision's names."""
    renamed = {}
    for name, value in state.items():
        match = re.match(r"blocks\.(\d+)\.(.+)", name)
        if match:
            stage, block = divmod(int(match[1]), 2)
            part = match[2].replace("norm", "bn").replace("shortcut", "downsample")
            renamed[f"layer{stage + 1}.{block}.{part}"] = value
        else:
            renamed[name.replace("conv", "conv1").replace("norm", "bn1")] = value
    return renamed


@pytest.mark.parametrize("width", [4, 20])
@pytest.mark.parametrize("side", [8, 32, 33])
def test_is_torchvisions(width: int, side: int) -> None:
    """Features, gradients and running statistics in double precision."""
    ours, theirs = ResNet18((3, side, side), width=width).double(), reference(width).double()
    theirs.load_state_dict(translated(ours.state_dict()))
    x = torch.randn(4, 3, side, side, dtype=torch.float64)
    direction = torch.randn(4, 8 * width, dtype=torch.float64)
    for net in (ours, theirs):
        (net(x) * direction).sum().backward()
    torch.testing.assert_close(translated(ours.state_dict()), dict(theirs.state_dict()))
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    torch.testing.assert_close(translated(gradients), expected)  # type: ignore[arg-type]
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


def test_weights_lie_in_memory_as_everyone_expects() -> None:
    """The features are channels-last on the CPU; weights, gradients and outputs are not."""
    net = ResNet18((3, 8, 8), width=4)
    features = net(torch.randn(2, 3, 8, 8))
    assert features.is_contiguous()
    features.sum().backward()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in net.parameters())  # type: ignore[union-attr]


def closed_form(width: int, channels: int, classes: int) -> int:
    """Convolutions (no bias), two numbers per normalised channel, the last layer."""
    total = 9 * channels * width + 2 * width
    fan_in = width
    for fan_out in (width, 2 * width, 4 * width, 8 * width):
        total += 9 * fan_in * fan_out + 3 * 9 * fan_out**2 + 4 * 2 * fan_out
        if fan_in != fan_out:
            total += fan_in * fan_out + 2 * fan_out
        fan_in = fan_out
    return total + classes * (fan_in + 1)


@pytest.mark.parametrize(
    ("name", "width", "channels", "classes", "total"),
    [
        ("full", 64, 3, 10, 11_173_962),
        ("full", 64, 3, 100, 11_220_132),
        ("full", 64, 3, 200, 11_271_432),
        ("reduced", 20, 3, 10, 1_094_750),
        ("reduced", 20, 1, 10, 1_094_390),
    ],
)
def test_number_of_parameters(
    name: str, width: int, channels: int, classes: int, total: int
) -> None:
    build = {"full": ResNet18, "reduced": ReducedResNet18}[name]
    with torch.device("meta"):
        net = build((channels, 32, 32))
    body = sum(p.numel() for p in net.parameters())
    assert body + classes * (net.num_features + 1) == closed_form(width, channels, classes) == total
    assert net.num_features == 8 * width


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 64, 64), (2, 1, 5)])
def test_images_of_any_size(shape: tuple[int, int, int]) -> None:
    net = ReducedResNet18(shape)
    assert net(torch.randn(2, *shape)).shape == (2, 160)


@pytest.mark.parametrize(("side", "pool"), [(32, 2), (32, 4), (33, 2), (17, 3), (8, 1)])
def test_windows_of_means(side: int, pool: int) -> None:
    whole = ResNet18((3, side, side), width=4)
    windows = ResNet18((3, side, side), width=4, pool=pool)
    windows.load_state_dict(whole.state_dict())
    maps = []
    whole.blocks.register_forward_hook(lambda _, inputs, output: maps.append(output))
    x = torch.randn(2, 3, side, side)
    features = whole(x)
    means = maps[0].unfold(2, pool, pool).unfold(3, pool, pool).mean(dim=(4, 5))
    torch.testing.assert_close(windows(x), means.flatten(1))
    assert windows.num_features == means[0].numel()
    if pool == -(-side // 8):
        torch.testing.assert_close(windows(x), features)


def test_normalisation_without_parameters() -> None:
    plain, affine = ResNet18((3, 16, 16), width=4, affine=False), ResNet18((3, 16, 16), width=4)
    affine.load_state_dict(plain.state_dict(), strict=False)  # scales are 1 and offsets 0
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(plain(x), affine(x))
    convolutions = [part for part in plain.modules() if isinstance(part, nn.Conv2d)]
    assert len(list(plain.parameters())) == len(convolutions) == 20


def test_input_is_left_alone() -> None:
    net, x = ReducedResNet18((3, 8, 8)), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(x)
    net(x)
    assert torch.equal(x, before)


def test_flat_rows_and_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"takes images .* \[5\]; .* MLP"):
        ReducedResNet18((5,))
    with pytest.raises(UserError, match=r"net\.width: 0 is not valid"):
        ResNet18((3, 8, 8), width=0)
