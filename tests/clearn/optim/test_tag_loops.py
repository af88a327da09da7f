"""The optimizers of TAG in training loops: tasks, tensors that come and go, states, bad input."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearn import UserError
from clearn.optim import TAGAdagrad, TAGAdam, TAGOptimizer, TAGRMSprop
from tests.clearn.optim.problems import CLASSES, equal, gradients, parameters, take, train

BASES = list(CLASSES)


def saved(optimizer: TAGOptimizer) -> dict[str, Any]:
    """The state after a way through a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def go_on(optimizer: TAGOptimizer, params: list[nn.Parameter]) -> Tensor:
    """The rest of a task and two more; the similarities in the last."""
    for task in (7, 8, 9):
        optimizer.begin_epoch()
        for grads in gradients(params, task, 3):
            take(optimizer, params, grads)
        mean = optimizer.similarity().mean
        optimizer.end_task()
    return mean


@pytest.mark.parametrize("inside", [0, 3])
@pytest.mark.parametrize("tasks", [0, 2])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TAGRMSprop, {}),
        (TAGAdagrad, {"beta": 0.8}),
        (TAGAdam, {"counter": "official"}),
        (TAGRMSprop, {"knowledge": torch.bfloat16}),
    ],
)
def test_a_state_continues_bit_for_bit(
    kind: Callable[..., TAGOptimizer], options: dict[str, Any], tasks: int, inside: int
) -> None:
    params = parameters(dtype=torch.float32)
    optimizer = kind([{"params": params[:2], "b": 1.0}, {"params": params[2:]}], 0.01, **options)
    train(optimizer, params, range(tasks))
    for grads in gradients(params, tasks, inside):
        take(optimizer, params, grads)
    others = [nn.Parameter(param.detach().clone()) for param in params]
    # Of other options, all of which the state replaces.
    other = kind([{"params": others[:2]}, {"params": others[2:]}], 0.5, b=2)
    other.load_state_dict(saved(optimizer))
    found, expected = go_on(other, others), go_on(optimizer, params)
    assert equal(others, params)
    assert torch.equal(found, expected)
    assert found.shape == (tasks + 2, len(params))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_continue_bit_for_bit(again: Callable[[Any], Any]) -> None:
    params = parameters()
    optimizer = TAGAdam(params, lr=0.01)
    train(optimizer, params, range(2))
    take(optimizer, params, next(gradients(params, 2, 1)))
    others, other = again((params, optimizer))
    assert other.task == 2
    assert torch.equal(go_on(other, others), go_on(optimizer, params))
    assert equal(others, params)


def test_a_loaded_state_is_its_own() -> None:
    params = parameters()
    optimizer = TAGRMSprop(params, lr=0.01)
    train(optimizer, params, range(2))
    take(optimizer, params, next(gradients(params, 2, 1)))
    before = copy.deepcopy(optimizer.state_dict())
    others = parameters()
    other = TAGRMSprop(others, lr=0.01)
    other.load_state_dict(optimizer.state_dict())
    go_on(other, others)
    for old, new in zip(
        before["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert old.keys() == new.keys()
        for name, value in old.items():
            assert torch.equal(torch.as_tensor(new[name]), torch.as_tensor(value)), name


def test_states_that_do_not_fit() -> None:
    params = parameters([(2, 3), (4,)])
    optimizer = TAGRMSprop(params, lr=0.01)
    take(optimizer, params, next(gradients(params, 0, 1)))
    turned = TAGRMSprop(parameters([(3, 2), (4,)]), lr=0.01)
    with pytest.raises(
        UserError, match=r"directions of parameter 0\.0 is for shape \[2, 3\]: .*3, 2"
    ):
        turned.load_state_dict(optimizer.state_dict())
    optimizer.end_task()
    message = r"directions of parameter head is for shape \[4\]: expected \[5\]"
    named = [("body", parameters([(2, 3)])[0]), ("head", parameters([(5,)])[0])]
    with pytest.raises(UserError, match=message):
        TAGRMSprop(named, lr=0.01).load_state_dict(optimizer.state_dict())
    assert not turned.state
    with pytest.raises(ValueError, match="size of optimizer's group"):
        TAGRMSprop(params[:1], lr=0.01).load_state_dict(optimizer.state_dict())
    with pytest.raises(UserError, match="counter missing in it: expected a state of TAGAdam"):
        TAGAdam(params, lr=0.01).load_state_dict(optimizer.state_dict())
    plain = torch.optim.RMSprop(params, lr=0.01)
    with pytest.raises(UserError, match="b, betas, knowledge, task missing"):
        optimizer.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("base", BASES)
def test_tensors_that_come_later_begin_like_any_other(base: str) -> None:
    """Added, unfrozen, or first reached by a gradient in task 1: as an optimizer of their own."""
    body, added, frozen, unreached = parameters([(6, 2), (3,), (3, 3), (2,)])
    alone = [nn.Parameter(p.detach().clone()) for p in (added, frozen, unreached)]
    frozen.requires_grad_(False)
    optimizer = CLASSES[base]([body, frozen, unreached], lr=0.01)
    plain = CLASSES[base](alone, lr=0.01)
    train(optimizer, [body], [0])
    assert equal([frozen, unreached], alone[1:])
    assert set(optimizer.state) == {body}
    frozen.requires_grad_()
    optimizer.add_param_group({"params": [added]})
    everything = [body, added, frozen, unreached]
    for task in (1, 2):
        for grads in gradients(everything, task, 3):
            take(optimizer, everything, grads)
            take(plain, alone, grads[1:])
        if task == 2:
            mean, own = optimizer.similarity().mean, plain.similarity().mean
            assert torch.equal(mean[1:, [3, 1, 2]], own)
            assert mean[0, 1:].isnan().all()
            assert mean[:, 0].isfinite().all()
        optimizer.end_task()
        plain.end_task()
    assert equal(everything[1:], alone)


@pytest.mark.parametrize("base", BASES)
def test_a_tensor_without_a_gradient_is_left_out_of_the_step(base: str) -> None:
    params, alone = parameters([(4,), (3, 2)]), parameters([(4,), (3, 2)])
    optimizer = CLASSES[base](params, lr=0.01)
    plain, other = (CLASSES[base]([param], lr=0.01) for param in alone)
    for task in range(3):
        for step, grads in enumerate(gradients(params, task, 6)):
            if step % 3 == 1 or task == 1:
                grads[0] = None
            else:
                take(plain, alone[:1], grads[:1])
            take(other, alone[1:], grads[1:])
            take(optimizer, params, grads)
        assert equal(params, alone)
        seen = optimizer.similarity().mean[:, 0]
        optimizer.end_task()
        other.end_task()
        if task != 1:
            plain.end_task()
    # Of task 1 nothing is kept for it: it took no step there.
    assert seen.isnan().tolist() == [False, True]


def test_a_step_without_any_gradient() -> None:
    params = parameters()
    optimizer = TAGRMSprop(params, lr=0.01)
    optimizer.step()
    assert equal(params, parameters())
    assert not optimizer.state


def test_tasks_begin_by_themselves() -> None:
    spoken, silent = parameters(), parameters()
    first, second = TAGRMSprop(spoken, lr=0.01), TAGRMSprop(silent, lr=0.01)
    train(first, spoken, range(3))
    for task in range(3):
        for grads in gradients(silent, task, 5):
            take(second, silent, grads)
        second.end_task()
    assert equal(spoken, silent)
    assert first.task == second.task == 3
    second.add_param_group({"params": parameters()})
    assert [group["task"] for group in second.param_groups] == [3, 3]
    assert TAGRMSprop(first.param_groups, lr=0.01).task == 0  # options of the groups, no past


def test_begin_task_asks_for_the_end_of_the_last() -> None:
    params = parameters()
    optimizer = TAGRMSprop(params, lr=0.01)
    optimizer.begin_task()
    optimizer.begin_task()  # nothing has happened yet
    for grads in gradients(params, 0, 2):
        take(optimizer, params, grads)
    with pytest.raises(
        UserError, match="task 0 has taken 2 steps and has not ended: call end_task"
    ):
        optimizer.begin_task()
    optimizer.end_task()
    optimizer.begin_task()


def test_a_task_without_steps_leaves_nothing_behind() -> None:
    params, others = parameters(), parameters()
    optimizer, other = TAGRMSprop(params, lr=0.01), TAGRMSprop(others, lr=0.01)
    optimizer.end_task()
    train(optimizer, params, [0])
    optimizer.end_task()
    train(optimizer, params, [1])
    train(other, others, [0, 1])
    assert equal(params, others)
    assert optimizer.task == 4
    for grads in gradients(params, 2, 1):
        take(optimizer, params, grads)
        take(other, others, grads)
    mean = optimizer.similarity().mean
    assert torch.equal(mean[[1, 3]], other.similarity().mean)
    assert mean[[0, 2]].isnan().all()


def test_similarity_names_its_tensors() -> None:
    net = nn.Linear(3, 2)
    named = TAGRMSprop(net.named_parameters(), lr=0.01).similarity()
    assert named.mean.shape == (0, 2)
    assert named.names == ("weight", "bias")
    assert named.shapes == (torch.Size([2, 3]), torch.Size([2]))
    groups = [{"params": [net.weight]}, {"params": [net.bias]}]
    optimizer = TAGRMSprop(groups, lr=0.01)
    train(optimizer, list(net.parameters()), [0])
    between = optimizer.similarity()
    assert between.names == ("0.0", "1.0")
    assert between.mean.isnan().all()
    assert between.mean.shape == (1, 2)


def test_with_schedulers() -> None:
    params, others = parameters(), parameters()
    optimizer, other = TAGRMSprop(params, lr=0.04), TAGRMSprop(others, lr=0.04)
    step = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for task in range(2):
        for index, grads in enumerate(gradients(params, task, 4)):
            other.param_groups[0]["lr"] = 0.04 * 0.5 ** ((4 * task + index) // 2)
            take(optimizer, params, grads)
            take(other, others, grads)
            step.step()
        optimizer.end_task()
        other.end_task()
    assert equal(params, others)
    optimizer = TAGAdam(params, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    take(optimizer, params, grads)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_with_a_closure() -> None:
    net, twin = nn.Linear(3, 1), nn.Linear(3, 1)
    twin.load_state_dict(net.state_dict())
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    optimizer, other = TAGRMSprop(net.parameters(), lr=0.1), TAGRMSprop(twin.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), x.sum(1, keepdim=True))
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    for _ in range(20):
        other.zero_grad()
        F.mse_loss(twin(x), x.sum(1, keepdim=True)).backward()
        assert other.step() is None
    assert losses[-1] < losses[0]
    assert equal(list(net.parameters()), list(twin.parameters()))


def test_with_a_gradient_scaler() -> None:
    """Scaled gradients come back to what they were; a step with infinite ones is left out."""
    params, others = parameters(dtype=torch.float32), parameters(dtype=torch.float32)
    optimizer, other = TAGAdam(params, lr=0.01), TAGAdam(others, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index, grads in enumerate(gradients(params, 0, 4)):
        for param, grad in zip(params, grads, strict=True):
            param.grad = (
                torch.full_like(grad, math.inf) if index == 1 else grad * scaler.get_scale()
            )
        scaler.scale(torch.tensor(1.0))
        scaler.step(optimizer)
        scaler.update()
        if index != 1:
            take(other, others, grads)
    assert equal(params, others)


def test_sparse_gradients() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Embedding(5, 2, sparse=True))
    optimizer = TAGRMSprop(net.named_parameters(), lr=0.01)
    net[0](net[1](torch.tensor([1, 1]))).sum().backward()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=r"parameter 1\.weight: its gradient is sparse"):
        optimizer.step()
    assert not optimizer.state
    assert equal(list(net.state_dict().values()), list(before.values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr: -1 is not valid: expected a number >= 0"),
        ({"lr": math.inf}, "lr: inf is not valid"),
        ({"lr": torch.tensor(0.1)}, "lr: .* is not valid"),
        ({"b": -0.1}, r"b: -0.1 is not valid: expected a number in \[0, 50\]"),
        ({"b": math.nan}, "b: nan is not valid"),
        ({"b": math.inf}, "b: inf is not valid"),
        ({"b": 51}, "b: 51 is not valid"),
        ({"eps": 0.0}, "eps: 0.0 is not valid: expected a number > 0"),
        ({"betas": (1.0, 0.9)}, r"beta1: 1.0 is not valid: expected a number in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, "beta2: -0.1 is not valid"),
        ({"knowledge": torch.int8}, "knowledge: torch.int8 is not valid"),
        ({"counter": "epoch"}, "counter: epoch is not valid: expected 'fixed' or 'official'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TAGAdam(parameters(), **{"lr": 0.1, **options})
    optimizer = TAGAdam(parameters([(2,)]), lr=0.1)
    with pytest.raises(UserError, match=message):
        optimizer.add_param_group({"params": parameters([(3,)]), **options})
    assert len(optimizer.param_groups) == 1


def test_options_out_of_range_of_adagrad() -> None:
    with pytest.raises(UserError, match="beta1: 2 is not valid"):
        TAGAdagrad(parameters(), lr=0.1, beta=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_types_of_parameters(dtype: torch.dtype) -> None:
    params = [("head", nn.Parameter(torch.zeros(2, dtype=dtype)))]
    with pytest.raises(
        UserError, match=r"of parameter head: torch.* not valid: expected float32 or"
    ):
        TAGRMSprop(params, lr=0.1)


def test_parameters_of_two_types() -> None:
    mixed, single, double = (
        [*parameters([(4,)], torch.float32), *parameters([(4,)])],
        parameters([(4,)], torch.float32),
        parameters([(4,)]),
    )
    train(TAGRMSprop(mixed, lr=0.01), mixed, range(2))
    optimizers = TAGRMSprop(single, lr=0.01), TAGRMSprop(double, lr=0.01)
    for task in range(2):
        for grads in gradients(mixed, task, 5):
            take(optimizers[0], single, grads[:1])
            take(optimizers[1], double, grads[1:])
        for optimizer in optimizers:
            optimizer.end_task()
    assert equal(mixed, [*single, *double])
