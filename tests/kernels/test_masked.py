"""The masked weight and its gradients against closed forms and autograd's product rule."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from clearn.kernels import masked_weight, top_c_thresholds
from tests.kernels import reference
from tests.kernels.reference import FLOATS, SIZES, draw, same, values


def inputs(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    weight, score, grad = (values(dtype, *shape, seed=seed) for seed in range(3))
    score.view(-1)[::17] = 0  # sign 0
    score.view(-1)[1::17] = -0.0
    return weight.requires_grad_(), score.requires_grad_(), grad


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_forward_and_gradients(n: int, dtype: torch.dtype) -> None:
    weight, score, grad = inputs(dtype, n)
    tau = top_c_thresholds([score], 0.3)[0]
    used = reference.pack(draw(n))
    for bits in (None, used):
        product = masked_weight(weight, score, tau, bits)
        w, s = weight.detach(), score.detach()
        selected = s.abs() >= tau
        assert same(product.detach(), torch.where(selected, w, torch.zeros_like(w)))
        dw, ds = torch.autograd.grad(product, (weight, score), grad)
        dense = torch.where(selected, grad, torch.zeros_like(grad))
        assert same(dw, dense if bits is None else reference.keep_unset(dense, bits))
        assert same(ds, grad * w * s.sign())


@pytest.mark.parametrize("c", [0.05, 0.5, 1.0])
def test_the_straightforward_form_agrees(c: float) -> None:
    weight, score, grad = inputs(torch.float64, 31, 17)
    product = masked_weight(weight, score, top_c_thresholds([score], c)[0])
    found = (product.detach(), *torch.autograd.grad(product, (weight, score), grad))
    for ours, plain in zip(found, reference.mask_step(weight, score, c, grad), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", FLOATS)
def test_odd_values(dtype: torch.dtype) -> None:
    odd = [math.nan, math.inf, -math.inf, -0.0, 5.0]
    weight = torch.tensor([*odd, *odd], dtype=dtype, requires_grad=True)
    score = torch.tensor([1.0] * 5 + [0.5] * 5, dtype=dtype, requires_grad=True)
    product = masked_weight(weight, score, score[0].detach())
    assert same(product[:5].detach(), weight[:5].detach())
    assert same(product[5:].detach(), torch.zeros(5, dtype=dtype))
    product.backward(torch.full((10,), -2.0, dtype=dtype))
    assert same(weight.grad, torch.tensor([-2.0] * 5 + [0.0] * 5, dtype=dtype))
    assert torch.equal(score.grad.isnan(), weight.isnan())


@pytest.mark.parametrize("dtype", FLOATS)
def test_thresholds_at_the_edges(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    score = torch.tensor([0.0, -0.0, info.tiny, -info.tiny, 1.0, -info.max], dtype=dtype)
    weight = torch.arange(1, 7).to(dtype)
    for tau in (0.0, -0.0, -1.0, -math.inf, info.tiny, 1.0, info.max, math.inf):
        threshold = torch.tensor(tau, dtype=dtype)
        selected = score.abs() >= threshold
        assert same(masked_weight(weight, score, threshold), weight * selected), tau


def test_a_threshold_that_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="threshold: NaN"):
        masked_weight(torch.ones(3), torch.ones(3), torch.tensor(math.nan))


def test_strided_inputs() -> None:
    weight = values(torch.float32, 30, 40).t().requires_grad_()
    score = values(torch.float32, 80, 30, seed=1)[::2].requires_grad_()
    grad = values(torch.float32, 30, 40, seed=2).t()
    tau, used = top_c_thresholds([score], 0.3)[0], reference.pack(draw(40, 30))
    product = masked_weight(weight, score, tau, used)
    dw, ds = torch.autograd.grad(product, (weight, score), grad)
    selected = score.abs() >= tau
    assert torch.equal(product, weight * selected)
    assert torch.equal(dw, reference.keep_unset(grad * selected, used))
    assert torch.equal(ds, grad * weight * score.sign())


def test_only_what_requires_a_gradient_gets_one() -> None:
    weight, score, _ = inputs(torch.float32, 50)
    tau = top_c_thresholds([score], 0.3)[0]
    (ds,) = torch.autograd.grad(masked_weight(weight.detach(), score, tau).sum(), score)
    assert same(ds, (weight * score.sign()).detach())
    (dw,) = torch.autograd.grad(masked_weight(weight, score.detach(), tau).sum(), weight)
    assert same(dw, (score.abs() >= tau).float())
    with torch.no_grad():
        assert not masked_weight(weight, score, tau).requires_grad


def test_nothing_but_the_inputs_is_saved() -> None:
    weight, score, _ = inputs(torch.float32, 64)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        tau = top_c_thresholds([score], 0.3)[0]
        masked_weight(weight, score, tau)
    assert set(saved) == {weight.data_ptr(), score.data_ptr(), tau.data_ptr()}


def test_changing_a_saved_input_is_noticed() -> None:
    weight, score, _ = inputs(torch.float32, 64)
    product = masked_weight(weight, score, top_c_thresholds([score], 0.3)[0])
    with torch.no_grad():
        score.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_bad_input() -> None:
    ones, tau, bits = torch.ones(4, 5), torch.tensor(1.0), torch.zeros(3, dtype=torch.uint8)
    for arguments, message in [
        ((ones.int(), ones, tau), "weight: type torch.int32"),
        ((ones, ones.t(), tau), r"score: \[5, 4\] of .* expected \[4, 5\] of"),
        ((ones, ones.double(), tau), "score: .* torch.float64"),
        ((ones, ones, tau.view(1)), r"threshold: \[1\] of"),
        ((ones, ones, tau.double()), "threshold: .* torch.float64"),
        ((ones, ones, tau, bits[:2]), "used_bits: 2 bytes do not hold the mask of 20"),
        ((ones, ones.to("meta"), tau), "score: .* on meta .* on cpu"),
        ((ones, ones, tau.to("meta")), "threshold: .* on meta"),
        ((ones, ones, tau, bits.to("meta")), "used_bits: on meta: expected on cpu"),
        ((ones, ones, tau, bits.bool()), "used_bits: type torch.bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            masked_weight(*arguments)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_keep_the_contract_of_torch_library() -> None:
    ops = torch.ops.clearn
    weight, score, grad = inputs(torch.float32, 5, 7)
    tau, used = torch.tensor(0.5), reference.pack(draw(5, 7))
    for bits in (None, used):
        opcheck(ops.masked_weight.default, (weight, score, tau, bits))
        arguments = (grad, weight.detach(), score.detach(), tau, bits)
        opcheck(ops.masked_weight_backward.default, arguments)


def loss(x: Tensor, weight: Tensor, score: Tensor, used: Tensor) -> Tensor:
    tau = top_c_thresholds([score], 0.3)
    return F.linear(x, masked_weight(weight, score, tau[0], used)).square().sum()


def check_compiled(**options: Any) -> None:
    compiled = torch.compile(loss, fullgraph=True, **options)
    for rows in (6, 9):
        weight, score, _ = inputs(torch.float32, rows, 8)
        x, used = values(torch.float32, 3, 8), reference.pack(draw(rows, 8))
        found = torch.autograd.grad(compiled(x, weight, score, used), (weight, score))
        plain = torch.autograd.grad(loss(x, weight, score, used), (weight, score))
        for ours, expected in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_under_compile(dynamic: bool) -> None:
    check_compiled(backend="aot_eager", dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler; found no g++")
def test_under_compile_by_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    check_compiled(backend="inductor")


def test_under_autocast() -> None:
    weight, score, _ = inputs(torch.float32, 6, 8)
    tau = top_c_thresholds([score], 0.3)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = F.linear(values(torch.float32, 3, 8), masked_weight(weight, score, tau))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert weight.grad.dtype == score.grad.dtype == torch.float32
    assert torch.equal(weight.grad != 0, (score.abs() >= tau) & (weight.grad != 0))
