"""Which weights are masked, and what scores, masks and freezing do to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from clearn.errors import UserError
from clearn.kernels.topc import kept
from clearn.masks import Subnetworks, maskable
from clearn.nets import ReducedResNet18


class Tied(nn.Module):
    """Two layers that share a weight, and one that does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.fixed = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fixed(self.b(self.a(x)))


def subnetworks(module: nn.Module, c: float = 0.3) -> Subnetworks:
    found = Subnetworks(module, c)
    found.draw_scores(torch.Generator().manual_seed(0))
    return found


def test_linear_convolutional_and_attention_weights_are_found() -> None:
    module = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 2),
            "conv": nn.Conv1d(2, 2, 3),
            "transposed": nn.ConvTranspose2d(2, 2, 3),
            "norm": nn.LayerNorm(3),
            "embedding": nn.Embedding(5, 3),
            "attention": nn.MultiheadAttention(4, 2),
            "wide": nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
        }
    )
    assert set(maskable(module)) == {
        "linear.weight",
        "conv.weight",
        "transposed.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "wide.q_proj_weight",
        "wide.k_proj_weight",
        "wide.v_proj_weight",
        "wide.out_proj.weight",
    }
    assert list(maskable(nn.Linear(2, 2))) == ["weight"]


def test_a_shared_weight_has_one_mask_under_both_names() -> None:
    module = Tied()
    found = subnetworks(module)
    assert found.names == ("a.weight",)
    masked = found.selected()
    assert set(masked) == {"a.weight", "b.weight"}
    assert masked["a.weight"] is masked["b.weight"]
    x = torch.randn(5, 4)
    a, mask = module.a, masked["a.weight"]
    expected = module.fixed(
        nn.functional.linear(nn.functional.linear(x, mask, a.bias), mask, module.b.bias)
    )
    out = functional_call(module, masked, (x,), tie_weights=False)
    torch.testing.assert_close(out, expected)


def test_scores_are_drawn_like_torch_draws_weights() -> None:
    module = nn.Conv2d(20, 50, 5)
    found, again = subnetworks(module), subnetworks(module)
    bound = 1 / math.sqrt(20 * 5 * 5)
    assert bound * 0.99 < float(found.scores[0].detach().abs().max()) <= bound
    assert abs(float(found.scores[0].detach().std()) - bound / math.sqrt(3)) < 0.02 * bound
    assert torch.equal(found.scores[0], again.scores[0])


@pytest.mark.parametrize("c", [0.03, 0.5, 1.0])
def test_each_layer_selects_its_share(c: float) -> None:
    found = subnetworks(ReducedResNet18((3, 8, 8)), c)
    bits = found.selection()
    assert len(found.names) == 20
    found.keep(bits)
    (masks,) = list(found.named_masks())
    for name, shape in zip(found.names, found.shapes, strict=True):
        selected = sum(int(byte).bit_count() for byte in masks[name].tolist())
        assert selected == kept(math.prod(shape), c)
    for one, other in zip(found.selected().values(), found.of_mask(bits).values(), strict=True):
        assert torch.equal(one, other)


def test_thresholds_follow_the_scores_to_another_type() -> None:
    subnetworks = Subnetworks(nn.Linear(40, 3), 0.5)
    subnetworks.draw_scores(torch.Generator().manual_seed(0))
    before = subnetworks.thresholds()
    after = subnetworks.double().thresholds()
    assert after.dtype == torch.float64
    assert torch.equal(after, before.double())


def test_used_weights_get_no_gradient_and_scores_always_do() -> None:
    module = nn.Linear(16, 5, bias=False)
    found = subnetworks(module, 0.5)
    found.keep(found.selection())
    used = found.of_mask(found.used)["weight"] != 0
    with torch.no_grad():
        found.scores[0].copy_(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)))
    upstream = torch.randn(5, 16)
    masked = found.selected()["weight"]
    masked.backward(upstream)
    weight, score = module.weight.detach(), found.scores[0].detach()
    selected = masked.detach() != 0
    expected = torch.where(selected & ~used, upstream, 0.0)
    assert (selected & used).any()
    assert (selected & ~used).any()
    torch.testing.assert_close(module.weight.grad, expected)
    torch.testing.assert_close(found.scores[0].grad, upstream * weight * score.sign())


def test_masks_are_one_bit_per_weight_and_task() -> None:
    found = subnetworks(nn.Sequential(nn.Linear(100, 30), nn.Linear(30, 7)))
    for _ in range(3):
        found.keep(found.selection())
    assert found.masks.bytes_stored() == 3 * (3000 // 8 + math.ceil(210 / 8))
    fresh = subnetworks(nn.Sequential(nn.Linear(100, 30), nn.Linear(30, 7)))
    fresh.load_state_dict(found.state_dict())
    assert len(fresh) == 3
    assert torch.equal(fresh.mask(2), found.mask(2))


def test_restore_puts_used_values_back_and_no_others() -> None:
    module = nn.Linear(9, 3, bias=False)
    found = subnetworks(module)
    found.keep(found.selection())
    before = [weight.detach().clone() for weight in found.weights]
    with torch.no_grad():
        module.weight.add_(1)
    found.restore(before)
    used = found.of_mask(found.used)["weight"] != 0
    assert torch.equal(module.weight[used], before[0][used])
    assert torch.equal(module.weight[~used], before[0][~used] + 1)


@pytest.mark.parametrize("c", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_c_out_of_range(c: float) -> None:
    with pytest.raises(UserError, match=r"strategy\.c: .* expected a number in \(0, 1\]"):
        Subnetworks(nn.Linear(2, 2), c)


def test_nothing_to_mask() -> None:
    for module in (nn.LayerNorm(3), nn.Linear(3, 3).requires_grad_(False)):
        with pytest.raises(UserError, match="nothing can be masked"):
            Subnetworks(module, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers(bad: float) -> None:
    found = subnetworks(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    with torch.no_grad():
        found.scores[1][0, 0] = bad
    with pytest.raises(ValueError, match="1"):
        found.selected()
