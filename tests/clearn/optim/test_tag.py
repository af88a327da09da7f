"""The optimizers of TAG against their equations, and torch's where these agree."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clearn.optim import TAGAdam, TAGRMSprop
from tests.clearn.optim.problems import CLASSES, equal, gradients, parameters, take, train
from tests.clearn.optim.tag_reference import Reference

BASES = list(CLASSES)


def off_by(params: list[nn.Parameter], expected: list[Tensor], first: list[Tensor]) -> float:
    """The largest distance of a tensor from where it should be, by how far it should have gone."""
    ratios = [
        torch.dist(param.detach().double(), right) / torch.dist(right, begin)
        for param, right, begin in zip(params, expected, first, strict=True)
        if right.numel()
    ]
    return float(max(ratios))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("base", BASES)
def test_four_tasks_of_twenty_steps(base: str, dtype: torch.dtype, limit: float) -> None:
    params = parameters(dtype=dtype)
    first = [param.detach().clone().double() for param in params]
    reference = Reference(base, [tensor.clone() for tensor in first], lr=0.01, b=5)
    optimizer = CLASSES[base](params, lr=0.01, b=5)
    for task in range(4):
        for grads in gradients(params, task, 20):
            take(optimizer, params, grads)
            reference.step([grad.double() for grad in grads])
        assert off_by(params, reference.params, first) <= limit
        if task:
            mean = optimizer.similarity().mean
            for p, rows in enumerate(reference.alphas):
                torch.testing.assert_close(mean[:, p], torch.stack(rows).mean(0).float())
        optimizer.end_task()
        reference.end_task()


@pytest.mark.parametrize("base", BASES)
def test_groups_have_options_of_their_own(base: str) -> None:
    params = parameters()
    first = [param.detach().clone() for param in params]
    groups = [{"params": params[:2], "lr": 0.1, "b": 1.0}, {"params": params[2:]}]
    optimizer = CLASSES[base](groups, lr=0.01, b=7)
    references = [
        Reference(base, [tensor.clone() for tensor in part], lr, b)
        for part, lr, b in ((first[:2], 0.1, 1.0), (first[2:], 0.01, 7.0))
    ]
    for task in range(3):
        for grads in gradients(params, task, 5):
            take(optimizer, params, grads)
            references[0].step(grads[:2])
            references[1].step(grads[2:])
        optimizer.end_task()
        for reference in references:
            reference.end_task()
    expected = [*references[0].params, *references[1].params]
    assert off_by(params, expected, first) <= 1e-10


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=5),
    base=st.sampled_from(BASES),
    b=st.sampled_from([0.0, 0.5, 5.0, 50.0]),
)
def test_any_shapes(shapes: list[list[int]], base: str, b: float) -> None:
    params = parameters(shapes)
    reference = Reference(base, [param.detach().clone() for param in params], lr=0.01, b=b)
    optimizer = CLASSES[base](params, lr=0.01, b=b)
    for task in range(3):
        for grads in gradients(params, task, 2):
            take(optimizer, params, grads)
            reference.step(grads)
        optimizer.end_task()
        reference.end_task()
    for param, expected in zip(params, reference.params, strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("base", "options"), [("RMSprop", {}), ("Adagrad", {"eps": 1e-8})])
@pytest.mark.parametrize("foreach", [False, True])
def test_the_first_task_is_torch_bit_for_bit(
    base: str, options: dict[str, Any], foreach: bool
) -> None:
    ours, theirs = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    optimizer = CLASSES[base](ours, lr=0.01)
    plain = getattr(torch.optim, base)(theirs, lr=0.01, foreach=foreach, **options)
    for grads in gradients(ours, 0, 20):
        take(optimizer, ours, grads)
        take(plain, theirs, grads)
    assert equal(ours, theirs)


def test_the_first_task_is_adam() -> None:
    # torch divides the root by k and the rate by 1 - beta1^n; here both are folded into one rate.
    ours, theirs = parameters(), parameters()
    optimizer, plain = TAGAdam(ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01)
    for grads in gradients(ours, 0, 20):
        take(optimizer, ours, grads)
        take(plain, theirs, grads)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("cosine", [1.0, 0.0, -1.0])
def test_the_second_task_in_closed_form(cosine: float) -> None:
    b, lr, eps, beta2 = 3.0, 0.1, 1e-8, 0.99
    param = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    old = torch.tensor([3.0, 4.0], dtype=torch.float64)
    across = torch.tensor([-8.0, 6.0], dtype=torch.float64)
    new = 2 * cosine * old if cosine else across
    optimizer = TAGRMSprop([param], lr, b)
    take(optimizer, [param], [old])
    optimizer.end_task()
    before = param.detach().clone()
    take(optimizer, [param], [new])
    v_old, v_new = (1 - beta2) * old**2, (1 - beta2) * new**2
    total = math.exp(-b * cosine) * v_old + math.exp(-b) * v_new
    expected = before - lr * new / (total.sqrt() + eps)
    torch.testing.assert_close(param.detach(), expected, rtol=1e-12, atol=0)
    alpha = optimizer.similarity().mean
    torch.testing.assert_close(alpha, torch.tensor([[math.exp(-b * cosine)]]))


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("counter", ["fixed", "official"])
def test_counters_of_adam(counter: str, epochs: int) -> None:
    params = parameters()
    first = [param.detach().clone() for param in params]
    official = counter == "official"
    reference = Reference("Adam", [t.clone() for t in first], 0.01, 5, restarts=official)
    optimizer = TAGAdam(params, lr=0.01, counter=counter)
    for task in range(3):
        for epoch in range(epochs):
            optimizer.begin_epoch()
            reference.begin_epoch()
            for grads in gradients(params, 10 * task + epoch, 4):
                take(optimizer, params, grads)
                reference.step(grads)
        optimizer.end_task()
        reference.end_task()
    assert off_by(params, reference.params, first) <= 1e-10
    other = Reference("Adam", [t.clone() for t in first], 0.01, 5, restarts=not official)
    for task in range(3):
        for epoch in range(epochs):
            other.begin_epoch()
            for grads in gradients(params, 10 * task + epoch, 4):
                other.step(grads)
        other.end_task()
    assert (off_by(params, other.params, first) > 1e-3) == (epochs > 1)


@pytest.mark.parametrize("base", BASES)
def test_a_tensor_without_a_direction(base: str) -> None:
    """A gradient of zeros, in a whole task and in the first steps of one, does no harm."""
    params = parameters([(4,), (3, 2)])
    optimizer = CLASSES[base](params, lr=0.01)
    zero = torch.zeros(4, dtype=torch.float64)
    start = params[0].detach().clone()
    for _, other in gradients(params, 0, 3):
        take(optimizer, params, [zero, other])
    assert torch.equal(params[0], start)
    optimizer.end_task()
    take(optimizer, params, [zero, other])
    assert torch.equal(params[0], start)
    assert optimizer.similarity().mean[0, 0] == 1
    grads = [grad for grad, _ in gradients(params, 1, 3)]
    for grad in grads:
        take(optimizer, params, [grad, other])
    assert optimizer.similarity().mean[0, 0] == 1
    assert all(param.isfinite().all() for param in params)
    optimizer.end_task()
    optimizer.step()
    assert optimizer.similarity().mean.isfinite().all()


def test_small_moments_give_cosines_all_the_same() -> None:
    """Squares below the range of float32 may not make a weight larger than exp(b)."""
    param = nn.Parameter(torch.zeros(3))
    optimizer = TAGRMSprop([param], lr=0.01, b=2)
    for size in (10**-21.4, -(10**-21.4)):  # where a norm is off by 6 %
        take(optimizer, [param], [torch.full((3,), size)])
        weights = optimizer.similarity().mean
        assert (weights <= 1.00001 * math.exp(2)).all()
        optimizer.end_task()


@pytest.mark.parametrize("base", BASES)
def test_the_order_in_memory_does_not_matter(base: str) -> None:
    plain, strided = parameters([(4, 3, 2, 2), (6, 5)]), parameters([(4, 3, 2, 2), (6, 5)])
    strided[0].data = strided[0].data.to(memory_format=torch.channels_last)
    strided[1].data = strided[1].data.t().contiguous().t()
    optimizers = [CLASSES[base](params, lr=0.01) for params in (plain, strided)]
    for task in range(3):
        for grads in gradients(plain, task, 3):
            take(optimizers[0], plain, grads)
            other = grads[0].to(memory_format=torch.channels_last)
            take(optimizers[1], strided, [other, grads[1]])
        for optimizer in optimizers:
            optimizer.end_task()
    assert strided[1].stride() == (1, 6)
    assert equal(plain, strided)


@pytest.mark.parametrize("knowledge", [torch.bfloat16, torch.float32])
def test_directions_in_a_smaller_type(knowledge: torch.dtype) -> None:
    shapes = [(3, 50_000), (7,), ()]  # more than is widened at once
    exact, short = parameters(shapes), parameters(shapes)
    optimizers = [
        TAGRMSprop(exact, lr=0.01, b=1),
        TAGRMSprop(short, lr=0.01, b=1, knowledge=knowledge),
    ]
    train(optimizers[0], exact, range(3), steps=2)
    train(optimizers[1], short, range(3), steps=2)
    assert not equal(exact, short)
    for a, b in zip(exact, short, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    state = optimizers[1].state[short[0]]
    assert state["directions"].dtype == knowledge
    assert state["variances"].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory(dtype: torch.dtype) -> None:
    params = parameters([(50, 20), (100,)], dtype)
    optimizer = TAGRMSprop(params, lr=0.01)

    def size() -> int:
        states = optimizer.state_dict()["state"].values()
        return sum(v.nbytes for s in states for v in s.values() if isinstance(v, Tensor))

    one = 1100 * dtype.itemsize
    for tasks in range(1, 6):
        train(optimizer, params, [tasks], steps=1)
        assert size() == 2 * tasks * one
        take(optimizer, params, next(gradients(params, 0, 1)))
        assert size() == 2 * (tasks + 1) * one + 2 * tasks * dtype.itemsize
        # Back to between the tasks, as if this step had not been.
        for state in optimizer.state.values():
            for name in ("moment", "variance", "similarity", "step", "epoch_step"):
                del state[name]
