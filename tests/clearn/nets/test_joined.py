"""The joined head against one number at a time: which logits, which gradients, which state."""

from __future__ import annotations

import io
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets import MASKED, JoinedHead, build_net
from clearn.strategies import Naive
from clearn.testing import check_strategy

FEATURES = 7
CLASSES = ((3, 1), (0,), (6, 2, 5))  # out of order and unequal; class 4 is in no task


def begun(tasks: int = 3, bias: bool = True) -> JoinedHead:
    """A head with that many tasks begun, and biases that tell rows apart."""
    head = JoinedHead(FEATURES, 7, CLASSES)
    for index, labels in enumerate(CLASSES[:tasks]):
        head.begin_task(index, labels, torch.Generator())
    if bias:
        for layer in linears(head):
            nn.init.normal_(layer.bias)
    return head


def linears(head: JoinedHead) -> list[nn.Linear]:
    return cast("list[nn.Linear]", list(head.layers))


def slow_logits(head: JoinedHead, features: Tensor, ids: list[int | None]) -> Tensor:
    logits = torch.full((len(features), 7), MASKED)
    for b, own in enumerate(ids):
        for task in range(head.begun):
            if own not in (None, task):
                continue
            for row, label in enumerate(CLASSES[task]):
                layer = linears(head)[task]
                logits[b, label] = (layer.weight[row] @ features[b] + layer.bias[row]).item()
    return logits


@given(
    tasks=st.integers(0, 3), ids=st.lists(st.integers(-1, 4), max_size=9), seed=st.integers(0, 99)
)
def test_logits(tasks: int, ids: list[int], seed: int) -> None:
    """With and without task ids, whatever has begun."""
    torch.manual_seed(seed)
    head, features = begun(tasks), torch.randn(len(ids), FEATURES)
    expected = slow_logits(head, features, [None] * len(ids))
    torch.testing.assert_close(head(features), expected)
    mixed = head(features, torch.tensor(ids, dtype=torch.int64))
    torch.testing.assert_close(mixed, slow_logits(head, features, [*ids]))
    for task in range(3):
        same = slow_logits(head, features, [task] * len(ids))
        torch.testing.assert_close(head(features, task), same)


def test_task_logits_are_in_the_order_of_the_classes() -> None:
    head, features = begun(), torch.randn(4, FEATURES)
    for task, labels in enumerate(CLASSES):
        expected = head(features)[:, list(labels)]
        torch.testing.assert_close(head.task_logits(features, task), expected)
    assert begun(1).task_logits(features, 2).shape == (4, 3), "before the task begins"


def test_weights_and_draws() -> None:
    """Normal with deviation 0.02, biases 0, drawn when the head is made and not again."""
    torch.manual_seed(0)
    head = JoinedHead(400, 600, [range(0, 300), range(300, 600)])
    drawn = [p.detach().clone() for p in head.parameters()]
    assert [p.shape for p in drawn] == [(300, 400), (300,)] * 2
    for weight, bias in zip(drawn[::2], drawn[1::2], strict=True):
        assert abs(weight.mean()) < 4 * 0.02 / weight.numel() ** 0.5
        assert weight.std().item() == pytest.approx(0.02, rel=4 / (2 * weight.numel()) ** 0.5)
        assert weight.abs().max() > 0.06
        assert not bias.any()
    generator = torch.Generator()
    states = generator.get_state(), torch.get_rng_state()
    head.begin_task(0, range(300), generator)
    head.begin_task(1, range(300, 600), generator)
    assert torch.equal(generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    assert all(torch.equal(a, b) for a, b in zip(drawn, head.parameters(), strict=True))


def test_tasks_compete_without_a_task_id() -> None:
    """The gradient reaches the layers of all tasks begun, and those only."""
    head, features = begun(2), torch.randn(5, FEATURES)
    assert not head.per_task
    F.cross_entropy(head(features), torch.tensor([3, 1, 0, 0, 1])).backward()
    assert [layer.weight.grad is not None for layer in linears(head)] == [True, True, False]
    assert all(layer.weight.grad.any() for layer in linears(head)[:2])  # type: ignore[union-attr]


def test_one_task_id_leaves_the_other_layers_alone() -> None:
    head, features = begun(), torch.randn(5, FEATURES)
    F.cross_entropy(head(features, 2), torch.tensor([5, 2, 6, 6, 5])).backward()
    assert [layer.weight.grad is not None for layer in linears(head)] == [False, False, True]
    expected = [p.grad for p in linears(head)[2].parameters()]
    head.zero_grad()
    own = torch.tensor([2, 1, 0, 0, 2])  # positions of those labels in the task
    F.cross_entropy(head.task_logits(features, 2), own).backward()
    torch.testing.assert_close(expected, [p.grad for p in linears(head)[2].parameters()])


def test_masked_logits_have_no_probability_and_no_gradient() -> None:
    head, features = begun(2), torch.randn(4, FEATURES, requires_grad=True)
    for ids in (None, 1, torch.tensor([0, 1, 2, 0])):
        logits = head(features, ids)
        masked = logits == MASKED
        assert masked[:, [2, 4, 5, 6]].all()
        assert torch.isfinite(logits.log_softmax(1)).all()
        parameters = [features, *head.parameters()]
        gradients = torch.autograd.grad(logits[masked].sum(), parameters, allow_unused=True)
        assert all(g is None or not g.any() for g in gradients)


def test_a_task_that_begins_again_hides_none() -> None:
    head = begun()
    head.begin_task(0, (1, 3), torch.Generator())
    assert head.begun == 3


@pytest.mark.parametrize("tasks", [0, 2, 3])
def test_state_goes_through_a_file_into_a_fresh_head(tasks: int) -> None:
    head, fresh, file = begun(tasks), begun(1), io.BytesIO()
    torch.save(nn.ModuleDict({"head": head}).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())  # their bytes are counted
    nn.ModuleDict({"head": fresh}).load_state_dict(state)
    features = torch.randn(4, FEATURES)
    assert fresh.begun == tasks
    assert torch.equal(fresh(features), head(features))


def test_half_precision_stays() -> None:
    for tasks in (0, 3):
        head, features = begun(tasks), torch.randn(3, FEATURES)
        half = head.to(torch.bfloat16)(features.to(torch.bfloat16))
        assert half.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            logits = head.float()(features)
        assert torch.isfinite(logits).all()
        if tasks:
            assert logits.softmax(1)[:, 4].eq(0).all()


@pytest.mark.parametrize(("index", "labels"), [(3, (0, 1)), (0, (0, 1)), (-1, (6, 2, 5))])
def test_a_task_of_another_stream(index: int, labels: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=rf"no layer for task {index} with classes"):
        begun().begin_task(index, labels, torch.Generator())


@pytest.mark.parametrize("task_id", [-1, 3])
def test_task_id_out_of_range(task_id: int) -> None:
    with pytest.raises(UserError, match=rf"task_id: {task_id} is not valid: .* tasks 0 to 2"):
        begun()(torch.randn(2, FEATURES), task_id)


def test_tasks_with_a_class_in_common(tiny_stream: Any) -> None:
    message = r"net\.head: joined needs tasks without .* task 2 has class 1 of task 0; set net.head"
    with pytest.raises(UserError, match=message):
        JoinedHead(FEATURES, 6, ((3, 1), (0,), (5, 1)))
    with pytest.raises(UserError, match=r"joined needs tasks without classes in common"):
        build_net("MLP", tiny_stream(scenario="domain"), head="joined")


def test_a_strategy_keeps_the_contract_with_it() -> None:
    check_strategy(Naive, scenarios=["class", "task"], heads=["joined"], lr=0.1)


@pytest.mark.gpu
def test_does_not_wait_for_the_device() -> None:
    head, features = begun(2).cuda(), torch.randn(64, FEATURES, device="cuda")
    mixed = torch.arange(64, device="cuda") % 2
    y = torch.tensor([1, 0], device="cuda")[mixed]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for ids in (None, mixed):
            F.cross_entropy(head(features, ids), y).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    cpu = begun(2)
    cpu.load_state_dict(head.state_dict())
    torch.testing.assert_close(head(features).cpu(), cpu(features.cpu()))
