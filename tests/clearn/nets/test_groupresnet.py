"""The small residual net with group normalisation: its size, its features, its options."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets import net_builder
from clearn.nets.groupresnet import GroupResNet


def test_size_as_documented() -> None:
    net = GroupResNet((3, 32, 32))
    assert sum(weight.numel() for weight in net.parameters()) == 1_225_024
    assert net.num_features == 256
    assert net_builder("GroupResNet") is GroupResNet


def test_features_written_out() -> None:
    """With one stage of two blocks, in float64, from the net's weights alone."""
    net = GroupResNet((2, 9, 7), widths=(16,), blocks=2).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn_like(weight))
    weights = dict(net.named_parameters())

    def normalised(x: torch.Tensor, name: str) -> torch.Tensor:
        groups = x.reshape(len(x), 2, -1)
        mean, variance = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        z = ((groups - mean) / (variance + 1e-5).sqrt()).view_as(x)
        return z * weights[f"{name}.weight"].view(-1, 1, 1) + weights[f"{name}.bias"].view(-1, 1, 1)

    x = torch.randn(3, 2, 9, 7, dtype=torch.float64)
    h = F.conv2d(x, weights["conv.weight"], stride=2, padding=1)
    assert h.shape == (3, 16, 5, 4)
    h = normalised(h, "norm").clamp(min=0)
    for block in ("blocks.0", "blocks.1"):
        out = F.conv2d(h, weights[f"{block}.conv1.weight"], padding=1)
        out = normalised(out, f"{block}.norm1").clamp(min=0)
        out = F.conv2d(out, weights[f"{block}.conv2.weight"], padding=1)
        h = (normalised(out, f"{block}.norm2") + h).clamp(min=0)
    torch.testing.assert_close(net(x), h.mean((2, 3)), rtol=0, atol=1e-12)


def test_all_stages_but_the_first_halve_the_maps() -> None:
    net = GroupResNet((3, 33, 20), widths=(8, 24, 16), blocks=2)
    sizes: list[tuple[int, ...]] = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    assert net(torch.randn(1, 3, 33, 20)).shape == (1, 16)
    assert sizes == [(8, 17, 10)] * 2 + [(24, 9, 5)] * 2 + [(16, 5, 3)] * 2


def test_an_image_alone_has_the_features_it_has_among_others() -> None:
    net = GroupResNet((3, 16, 16), widths=(8, 16))
    x = torch.randn(5, 3, 16, 16)
    assert net.training
    torch.testing.assert_close(net(x)[3:4], net(x[3:4]))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in net.modules())


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5,), {}, r"GroupResNet takes images \[C, H, W\]"),
        ((3, 32, 32), {"widths": ()}, r"net\.widths: \[\] is not valid"),
        ((3, 32, 32), {"widths": (8, 12)}, r"net\.widths: \[8, 12\] is not valid: .* of 8"),
        ((3, 32, 32), {"widths": (0,)}, r"net\.widths: \[0\] is not valid: expected widths >= 1"),
        ((3, 32, 32), {"blocks": 0}, r"net\.blocks: 0 is not valid: expected an integer >= 1"),
    ],
)
def test_bad_options(shape: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GroupResNet(shape, **options)  # type: ignore[arg-type]
