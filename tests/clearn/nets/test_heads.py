"""Heads against slow references: which logits, which gradients, which state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError
from clearn.nets import MASKED, GrowingHead, Head, MultiHead, SingleHead, WideHead

FEATURES = 7

# Awkward on purpose: out of order, unequal, with labels in common.
CLASSES = ((3, 1), (0,), (5, 2, 1))


def grown(classes: Sequence[Sequence[int]] = CLASSES, tasks: int | None = None) -> GrowingHead:
    head = GrowingHead(FEATURES, 6)
    generator = torch.Generator().manual_seed(4)
    for index, labels in enumerate(classes[:tasks]):
        head.begin_task(index, labels, generator)
    return head


def make(kind: str) -> Head:
    heads = {
        "single": lambda: SingleHead(FEATURES, 6, CLASSES),
        "multi": lambda: MultiHead(FEATURES, CLASSES),
        "wide": lambda: WideHead(FEATURES, 6, len(CLASSES)),
        "growing": grown,
    }
    return heads[kind]()


def layer(head: Head, task: int, label: int) -> tuple[Tensor, Tensor]:
    """Weights and bias that make the logit of a label in a task."""
    if isinstance(head, MultiHead):
        linear, row = head.linears[task], CLASSES[task].index(label)
        return linear.weight[row], linear.bias[row]  # type: ignore[index,return-value]
    if isinstance(head, WideHead):
        return head.linears[task].weight[label], torch.tensor(0.0)  # type: ignore[index,return-value]
    if isinstance(head, GrowingHead):
        row = head.rows.tolist().index(label)
        return head.weight[row], head.bias[row]
    assert isinstance(head, SingleHead)
    return head.linear.weight[label], head.linear.bias[label]


def slow_logits(head: Head, features: Tensor, tasks: Sequence[int]) -> Tensor:
    """One number at a time."""
    logits = torch.full((len(features), 6), MASKED)
    for b, task in enumerate(tasks):
        for label in range(6) if isinstance(head, WideHead) else CLASSES[task]:
            weight, bias = layer(head, task, label)
            logits[b, label] = (weight @ features[b] + bias).item()
    return logits


@pytest.mark.parametrize("kind", ["single", "multi", "wide", "growing"])
@given(tasks=st.lists(st.integers(0, 2), max_size=9), seed=st.integers(0, 99))
def test_given_task_ids(kind: str, tasks: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    head, features = make(kind), torch.randn(len(tasks), FEATURES)
    mixed = head(features, torch.tensor(tasks, dtype=torch.int64))
    torch.testing.assert_close(mixed, slow_logits(head, features, tasks))
    for task in range(3):
        same = torch.full((len(tasks),), task)
        torch.testing.assert_close(head(features, task), head(features, same))


@pytest.mark.parametrize("kind", ["single", "multi", "growing"])
def test_masked_logits_have_no_probability_and_no_gradient(kind: str) -> None:
    head = make(kind)
    features = torch.randn(4, FEATURES, requires_grad=True)
    task_id = torch.tensor([0, 1, 2, 0])
    allowed = torch.zeros(4, 6, dtype=torch.bool)
    for row, task in enumerate(task_id.tolist()):
        allowed[row, list(CLASSES[task])] = True
    for ids, mask in ((task_id, allowed), (1, allowed[[1, 1, 1, 1]])):
        logits = head(features, ids)
        assert (logits == MASKED).eq(~mask).all()
        assert logits.softmax(1)[~mask].eq(0).all()
        assert torch.isfinite(logits - logits.flip(1)).all()
        probability = logits.log_softmax(1)
        assert torch.isfinite(probability).all()
        # A loss over the masked logits moves nothing.
        gradients = torch.autograd.grad(
            logits[~mask].sum(), [features, *head.parameters()], allow_unused=True
        )
        assert all(g is None or not g.any() for g in gradients)


def test_cross_entropy_with_a_mask_is_that_of_the_small_problem() -> None:
    head, features = make("single"), torch.randn(5, FEATURES)
    y = torch.tensor([3, 1, 1, 3, 1])
    small = head(features)[:, [3, 1]]
    expected = F.cross_entropy(small, (y == 1).long())
    torch.testing.assert_close(F.cross_entropy(head(features, 0), y), expected)


@pytest.mark.parametrize("kind", ["single", "growing"])
def test_other_classes_rows_get_no_gradient_with_a_task_id(kind: str) -> None:
    head, features = make(kind), torch.randn(4, FEATURES)
    F.cross_entropy(head(features, 0), torch.tensor([1, 3, 1, 3])).backward()
    weight = head.linear.weight if isinstance(head, SingleHead) else head.weight  # type: ignore[union-attr]
    labels = range(6) if isinstance(head, SingleHead) else head.rows.tolist()  # type: ignore[union-attr]
    assert weight.grad is not None
    moved = {label for label, row in zip(labels, weight.grad, strict=True) if row.any()}
    assert moved == {1, 3}


@pytest.mark.parametrize("kind", ["multi", "wide"])
def test_other_tasks_heads_get_no_gradient(kind: str) -> None:
    head: Any = make(kind)
    assert head.per_task
    F.cross_entropy(head(torch.randn(3, FEATURES), 2), torch.tensor([5, 2, 1])).backward()
    for task, linear in enumerate(head.linears):
        assert (linear.weight.grad is not None) == (task == 2)


@pytest.mark.parametrize("kind", ["multi", "wide"])
def test_other_tasks_heads_get_zero_gradient_in_a_mixed_batch(kind: str) -> None:
    head: Any = make(kind)
    logits = head(torch.randn(3, FEATURES), torch.tensor([2, 0, 2]))
    F.cross_entropy(logits, torch.tensor([1, 1, 1])).backward()
    assert not head.linears[1].weight.grad.any()
    for task in (0, 2):
        assert head.linears[task].weight.grad.any()


@pytest.mark.parametrize("kind", ["multi", "wide"])
def test_mixed_batch_gives_the_gradients_of_its_tasks(kind: str) -> None:
    head, features = make(kind), torch.randn(6, FEATURES)
    y, task_id = torch.tensor([3, 1, 1, 2, 0, 0]), torch.tensor([0, 0, 2, 2, 1, 1])
    F.cross_entropy(head(features, task_id), y).backward()
    mixed = [p.grad.clone() for p in head.parameters()]  # type: ignore[union-attr]
    head.zero_grad()
    losses = [
        F.cross_entropy(head(features[b : b + 1], int(t)), y[b : b + 1])
        for b, t in enumerate(task_id)
    ]
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(mixed, [p.grad for p in head.parameters()])


# Wide


def test_wide_is_a_matrix_per_task() -> None:
    head, features = WideHead(FEATURES, 6, 3), torch.randn(5, FEATURES)
    matrices = list(head.parameters())
    assert [matrix.shape for matrix in matrices] == [(6, FEATURES)] * 3
    for task, labels in enumerate(CLASSES):
        before = [matrix.detach().clone() for matrix in matrices]
        head.begin_task(task, labels, torch.Generator())
        assert all(torch.equal(a, b) for a, b in zip(before, matrices, strict=True))
        assert torch.equal(head(features, task), F.linear(features, matrices[task]))


def test_wide_learns_that_other_tasks_classes_are_not_its_own() -> None:
    head, features = WideHead(FEATURES, 6, 3), torch.randn(5, FEATURES).abs()
    F.cross_entropy(head(features, 1), torch.zeros(5, dtype=torch.int64)).backward()
    gradient = head.linears[1].weight.grad  # type: ignore[union-attr]
    assert (gradient[0] < 0).all()  # type: ignore[index]
    assert (gradient[1:] > 0).all()  # type: ignore[index]


# Single


def test_single_without_a_task_id_is_linear() -> None:
    head, features = make("single"), torch.randn(5, FEATURES)
    assert isinstance(head, SingleHead)
    assert torch.equal(head(features), head.linear(features))


def test_single_learns_of_its_tasks_as_they_begin() -> None:
    told, asked = SingleHead(FEATURES, 6, CLASSES), SingleHead(FEATURES, 6)
    asked.linear.load_state_dict(told.linear.state_dict())
    features, generator = torch.randn(3, FEATURES), torch.Generator()
    assert torch.equal(asked(features, 2), asked(features)), "a task not met yet keeps all classes"
    for index in (0, 2, 1):  # in any order
        asked.begin_task(index, CLASSES[index], generator)
        assert torch.equal(asked(features, index), told(features, index))
    unknown = asked(features, torch.tensor([0, 7, 3]))
    assert torch.equal(unknown[1:], asked(features)[1:])
    assert torch.equal(unknown[0], told(features, 0)[0])


# Growing


@pytest.mark.parametrize("tasks", [0, 1, 2, 3])
@pytest.mark.parametrize("task_id", [None, 0, "mixed"])
def test_growing_is_single_restricted_to_seen_classes(tasks: int, task_id: Any) -> None:
    growing, single = grown(tasks=tasks), SingleHead(FEATURES, 6, CLASSES[:tasks])
    with torch.no_grad():
        single.linear.weight[growing.rows] = growing.weight
        single.linear.bias[growing.rows] = growing.bias
    features = torch.randn(4, FEATURES)
    ids = torch.tensor([0, 1, 2, 0]) if task_id == "mixed" else task_id
    seen = sorted({label for labels in CLASSES[:tasks] for label in labels})
    expected = torch.full((4, 6), MASKED)
    expected[:, seen] = single(features, ids)[:, seen]
    torch.testing.assert_close(growing(features, ids), expected)


def test_growing_keeps_old_rows_and_draws_new_ones_as_linear_does() -> None:
    head, generator = GrowingHead(400, 1000), torch.Generator().manual_seed(0)
    head.begin_task(0, range(0, 600, 2), generator)
    first = head.weight.detach().clone()
    global_state = torch.get_rng_state()
    head.begin_task(1, range(0, 600), generator)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert head.rows.tolist() == [*range(0, 600, 2), *range(1, 600, 2)]
    assert torch.equal(head.weight[:300], first)
    assert not torch.equal(head.weight[300:], first)
    reference = nn.Linear(400, 600)
    for ours, theirs in ((head.weight, reference.weight), (head.bias, reference.bias)):
        assert ours.abs().max() <= 1 / 20
        assert ours.requires_grad
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.15)
        assert ours.mean().abs() < 0.005


def test_growing_draws_from_the_generator_alone() -> None:
    a, b = grown(), grown()
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(a.bias, b.bias)


def test_growing_with_the_same_classes_again_stays() -> None:
    """The domain scenario: every task has the same labels."""
    head, generator = GrowingHead(FEATURES, 2), torch.Generator()
    head.begin_task(0, (0, 1), generator)
    before, state = head.weight.detach().clone(), generator.get_state()
    head.begin_task(1, (0, 1), generator)
    assert torch.equal(head.weight, before)
    assert torch.equal(generator.get_state(), state)


def test_growing_before_the_first_task() -> None:
    head = GrowingHead(FEATURES, 6)
    for ids in (None, 0, torch.tensor([0, 1, 2])):
        logits = head(torch.randn(3, FEATURES), ids)
        assert torch.equal(logits, torch.full((3, 6), MASKED))


# State


@pytest.mark.parametrize("kind", ["single", "multi", "wide", "growing"])
def test_state_goes_through_a_file_into_a_fresh_head(kind: str) -> None:
    head = make(kind)
    if kind == "single":  # one that learned of its tasks as they began
        head = SingleHead(FEATURES, 6)
        for index, labels in enumerate(CLASSES):
            head.begin_task(index, labels, torch.Generator())
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"head": head}).state_dict(), file)
    file.seek(0)
    fresh = {
        "single": lambda: SingleHead(FEATURES, 6),
        "multi": lambda: MultiHead(FEATURES, CLASSES),
        "wide": lambda: WideHead(FEATURES, 6, len(CLASSES)),
        "growing": lambda: GrowingHead(FEATURES, 6),
    }[kind]()
    nn.ModuleDict({"head": fresh}).load_state_dict(torch.load(file, weights_only=True))
    features, mixed = torch.randn(4, FEATURES), torch.tensor([2, 1, 0, 1])
    for ids in (0, 2, mixed):
        assert torch.equal(fresh(features, ids), head(features, ids))
    assert all(p.requires_grad for p in fresh.parameters())


def test_loaded_growing_head_grows_on_as_the_first_would_have() -> None:
    head, fresh = grown(tasks=2), GrowingHead(FEATURES, 6)
    fresh.load_state_dict(head.state_dict())
    for each in (head, fresh):
        each.begin_task(2, CLASSES[2], torch.Generator().manual_seed(9))
    features = torch.randn(4, FEATURES)
    for ids in (None, 0, 2):
        assert torch.equal(fresh(features, ids), head(features, ids))


def test_grown_head_takes_back_an_earlier_state() -> None:
    head, early = grown(), grown(tasks=1)
    head.load_state_dict(early.state_dict())
    features = torch.randn(4, FEATURES)
    assert torch.equal(head(features), early(features))


def test_state_without_a_tensor_is_refused() -> None:
    state = grown().state_dict()
    del state["rows"]
    with pytest.raises(RuntimeError, match="rows"):
        GrowingHead(FEATURES, 6).load_state_dict(state)


@pytest.mark.parametrize("kind", ["single", "multi", "wide", "growing"])
def test_half_precision_stays(kind: str) -> None:
    head = make(kind).to(torch.bfloat16)
    features = torch.randn(3, FEATURES, dtype=torch.bfloat16)
    for ids in (0, torch.tensor([0, 1, 2])):
        assert head(features, ids).dtype == torch.bfloat16
    head = make(kind)
    with torch.autocast("cpu", torch.bfloat16):
        for ids in (0, torch.tensor([0, 1, 2])):
            logits = head(torch.randn(3, FEATURES), ids)
            assert torch.isfinite(logits).all()
            # Class 4 is in no task.
            assert kind == "wide" or logits.softmax(1)[:, 4].eq(0).all()


# Errors


@pytest.mark.parametrize("kind", ["multi", "wide"])
@pytest.mark.parametrize("task_id", [-1, 3, torch.tensor([0, 3]), torch.tensor([-1, 2])])
def test_task_id_out_of_range(kind: str, task_id: Any) -> None:
    message = rf"task_id: (-1|3) is not valid: the {kind} head has tasks 0 to 2"
    with pytest.raises(UserError, match=message):
        make(kind)(torch.randn(2, FEATURES), task_id)


@pytest.mark.parametrize("kind", ["multi", "wide"])
def test_a_layer_per_task_needs_a_task_id(kind: str) -> None:
    message = rf"net\.head: {kind} needs the task id.*set net\.head to"
    with pytest.raises(UserError, match=message):
        make(kind)(torch.randn(2, FEATURES))


@pytest.mark.parametrize("index", [-1, 3])
def test_wide_for_another_stream(index: int) -> None:
    with pytest.raises(UserError, match=rf"no layer for task {index}, only for 3 tasks"):
        make("wide").begin_task(index, (0, 1), torch.Generator())


@pytest.mark.parametrize(("index", "labels"), [(3, (0, 1)), (0, (0, 1)), (-1, (5, 2, 1))])
def test_multi_for_another_stream(index: int, labels: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=rf"no layer for task {index} with classes"):
        MultiHead(FEATURES, CLASSES).begin_task(index, labels, torch.Generator())


def test_multi_takes_the_number_of_classes_of_the_stream() -> None:
    head = MultiHead(FEATURES, ((0, 1),), num_classes=4)
    for ids in (0, torch.zeros(2, dtype=torch.int64)):
        logits = head(torch.randn(2, FEATURES), ids)
        assert logits.shape == (2, 4)
        assert (logits[:, 2:] == MASKED).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["single", "multi", "wide", "growing"])
def test_no_head_waits_for_the_device(kind: str) -> None:
    head, features = make(kind).cuda(), torch.randn(64, FEATURES, device="cuda")
    mixed = torch.arange(64, device="cuda") % 3
    y = torch.tensor([1, 0, 5], device="cuda")[mixed]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for ids in (1, mixed):
            F.cross_entropy(head(features, ids), y).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    cpu = make(kind)
    cpu.load_state_dict(head.state_dict())
    torch.testing.assert_close(head(features, mixed).cpu(), cpu(features.cpu(), mixed.cpu()))
