"""One pass with the parts kept apart, against a pass for each part, in double precision."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, jvp

from clearn.errors import UserError
from clearn.nets import ResNet18
from clearn.nets.branches import separate_statistics

SIZES = (4, 3, 5)
CONVOLUTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"momentum": 1.0},
    {"affine": False},
    {"track_running_stats": False},
]


def make(dims: int, **options: Any) -> nn.Module:
    """A net of two normalisations in nested modules, all of its tensors away from their defaults.

    It takes 2 channels of `dims` sides of 3.
    """
    torch.manual_seed(0)
    convolution, norm = CONVOLUTIONS[dims], NORMS[dims]
    kernel = (2,) if dims else ()
    net = nn.Sequential(
        convolution(2, 3, *kernel),
        norm(3, **options),
        nn.ReLU(inplace=True),
        nn.Sequential(convolution(3, 4, *kernel), norm(4, **options), nn.Tanh()),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).double()
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            else:
                tensor.fill_(3)
    return net


def inputs(dims: int, rows: int = sum(SIZES)) -> Tensor:
    # Rows of very different scale, so that statistics of other rows cannot pass for one's own.
    x = torch.randn(rows, 2, *[3] * dims, dtype=torch.float64)
    return x * torch.linspace(0.5, 4, rows, dtype=x.dtype).view(-1, *[1] * (dims + 1))


def at_once(net: nn.Module, x: Tensor, sizes: Sequence[int]) -> Tensor:
    with separate_statistics(net, sizes):
        return net(x)


def one_by_one(net: nn.Module, x: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.cat([net(part) for part in x.split(list(sizes))])


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def numbers(
    run: Callable[[nn.Module, Tensor, Sequence[int]], Tensor],
    net: nn.Module,
    x: Tensor,
    sizes: Sequence[int],
) -> dict[str, Any]:
    """What a step leaves: outputs, gradients and buffers; `net` itself stays."""
    net, x = copy.deepcopy(net), x.clone().requires_grad_()
    before = [vars(module).get("forward") for module in net.modules()]
    outputs = run(net, x, sizes)
    assert [vars(module).get("forward") for module in net.modules()] == before
    direction = torch.linspace(-1, 2, outputs.numel(), dtype=x.dtype).view_as(outputs)
    (outputs * direction).sum().backward()
    gradients = {f"d{name}": parameter.grad for name, parameter in net.named_parameters()}
    return {"outputs": outputs, "dx": x.grad, **gradients, **dict(net.named_buffers())}


def check(net: nn.Module, x: Tensor, sizes: Sequence[int]) -> None:
    close(numbers(at_once, net, x, sizes), numbers(one_by_one, net, x, sizes))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dims", range(4))
def test_training(dims: int, options: dict[str, Any]) -> None:
    net, x = make(dims, **options), inputs(dims)
    check(net, x, SIZES)
    assert not torch.allclose(at_once(net, x, SIZES), net(x)), "the parts make no difference"


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    momentum=st.sampled_from([None, 0.1, 1.0]),
)
def test_any_sizes(sizes: list[int], momentum: float | None) -> None:
    net = make(2, momentum=momentum)[:3]  # type: ignore[index]
    check(net, inputs(2, sum(sizes)), sizes)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_evaluation(statistics: str) -> None:
    """A net that keeps no running statistics uses those of each part in evaluation, too."""
    net, x = make(2, track_running_stats=statistics == "running").eval(), inputs(2)
    check(net, x, SIZES)
    assert torch.equal(at_once(net, x, SIZES), net(x)) == (statistics == "running")
    if statistics == "running":
        assert torch.equal(at_once(net, x, (1, 1)), net(x)), "rows need no part then"


def test_frozen_in_part() -> None:
    net, x = make(2), inputs(2)
    net[1].eval()  # type: ignore[index]
    check(net, x, SIZES)
    before = copy.deepcopy(net.state_dict())
    at_once(net, x, SIZES)
    changed = {
        key for key, value in net.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {"3.1.running_mean", "3.1.running_var", "3.1.num_batches_tracked"}


def test_mode_may_change_inside() -> None:
    net, x = make(2), inputs(2)
    with separate_statistics(net, SIZES):
        net.eval()
        close(net(x), one_by_one(net, x, (3, 9)))
        net.train()
        expected = copy.deepcopy(net)
        for module in expected.modules():
            vars(module).pop("forward", None)
        close(net(x), one_by_one(expected, x, SIZES))


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2]), nn.InstanceNorm2d(4), nn.Identity()]
)
def test_other_normalisations_are_left_alone(norm: nn.Module) -> None:
    net, x = nn.Sequential(nn.Conv2d(2, 4, 2), norm).double(), inputs(2)
    with separate_statistics(net, SIZES):
        assert not any("forward" in vars(module) for module in net.modules())
        assert torch.equal(net(x), net(x.clone()))
        close(net(x), one_by_one(net, x, SIZES))


def test_resnet() -> None:
    """Operations in place after the normalisations, and a memory order of our own."""
    check(ResNet18((3, 16, 16), width=2).double(), torch.randn(12, 3, 16, 16).double(), SIZES)


def test_memory_order_stays() -> None:
    norm, x = nn.BatchNorm2d(3), torch.randn(12, 3, 4, 5)
    for order in (torch.channels_last, torch.contiguous_format):
        assert at_once(norm, x.to(memory_format=order), SIZES).is_contiguous(memory_format=order)


def test_without_gradients() -> None:
    net, x = make(2), inputs(2)
    other = copy.deepcopy(net)
    with torch.no_grad():
        outputs = at_once(net, x, SIZES)
        close(outputs, one_by_one(other, x, SIZES))
    assert not outputs.requires_grad
    close(net.state_dict(), other.state_dict())


def test_lazy_normalisation() -> None:
    net, other, x = nn.LazyBatchNorm2d().double(), nn.BatchNorm2d(2).double(), inputs(2)
    close(at_once(net, x, SIZES), one_by_one(other, x, SIZES))
    close(net.state_dict(), other.state_dict())


def test_module_of_two_names() -> None:
    """It is one module; used once per pass, it counts once per part."""
    net, x = make(2), inputs(2)
    net.alias = net[1]  # type: ignore[index]
    net.forward = lambda x: nn.Sequential(*list(net)[:-1])(x)  # type: ignore[call-overload]
    at_once(net, x, SIZES)
    assert net[1].num_batches_tracked == 3 + len(SIZES)  # type: ignore[index]


def test_used_in_two_places() -> None:
    """Outputs and gradients are those of separate passes; running statistics go place by place."""
    norm, x = nn.BatchNorm2d(2).double(), inputs(2)
    net = nn.Sequential(norm, nn.Tanh(), norm)
    ours, theirs = numbers(at_once, net, x, SIZES), numbers(one_by_one, net, x, SIZES)
    assert ours["0.num_batches_tracked"] == theirs["0.num_batches_tracked"] == 2 * len(SIZES)
    for name in ("outputs", "dx", "d0.weight", "d0.bias"):
        close(ours[name], theirs[name])
    expected = copy.deepcopy(norm)
    for y in (x, one_by_one(norm, x, SIZES).tanh()):
        one_by_one(expected, y, SIZES)
    close(ours["0.running_var"], expected.running_var)


def replaced(net: nn.Module) -> dict[str, Tensor]:
    """Other parameters and buffers."""
    return {
        name: tensor.detach() * 1.5 if tensor.is_floating_point() else tensor + 7
        for name, tensor in net.state_dict().items()
    }


def test_functional_call() -> None:
    net, x = make(2), inputs(2)
    own, given, expected = copy.deepcopy(net.state_dict()), replaced(net), replaced(net)
    with separate_statistics(net, SIZES):
        outputs = functional_call(net, given, (x,))
    parts = [functional_call(net, expected, (part,)) for part in x.split(list(SIZES))]
    close(outputs, torch.cat(parts))
    close(given, expected)
    assert not torch.equal(given["1.running_mean"], replaced(net)["1.running_mean"])
    torch.testing.assert_close(dict(net.state_dict()), dict(own), rtol=0, atol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_double_backward(options: dict[str, Any]) -> None:
    net, x = make(2, **options), inputs(2).requires_grad_()
    wanted = [x, *net.parameters()]
    results = []
    for run in (at_once, one_by_one):
        loss = run(net, x, SIZES).sin().mean()
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        results.append(
            torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), wanted)
        )
    close(*results)
    assert results[0][0].abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # torch's own, on the first use
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("how", ["func", "dual"])
def test_forward_mode(how: str, options: dict[str, Any]) -> None:
    net, x = make(2, **options), inputs(2)
    primals = ({name: tensor.detach() for name, tensor in net.named_parameters()}, x)
    tangents = ({name: torch.randn_like(t) for name, t in primals[0].items()}, torch.randn_like(x))

    def both(run: Callable[..., Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Outputs, tangents and running statistics."""

        def outputs(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            # Made inside, for tensors from outside must not be written to there.
            buffers = {name: tensor.clone() for name, tensor in net.named_buffers()}
            return run(parameters | buffers, x), buffers

        if how == "func":
            return jvp(outputs, primals, tangents, has_aux=True)
        with forward_ad.dual_level():
            dual = {k: forward_ad.make_dual(v, tangents[0][k]) for k, v in primals[0].items()}
            result, buffers = outputs(dual, forward_ad.make_dual(x, tangents[1]))
            values = {
                name: forward_ad.unpack_dual(tensor).primal for name, tensor in buffers.items()
            }
            return *forward_ad.unpack_dual(result), values

    def ours(state: dict[str, Tensor], x: Tensor) -> Tensor:
        with separate_statistics(net, SIZES):
            return functional_call(net, state, (x,))

    def theirs(state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.cat([functional_call(net, state, (part,)) for part in x.split(list(SIZES))])

    close(both(ours), both(theirs))


def test_sizes_that_do_not_add_up() -> None:
    net = make(2)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=r"sizes: \[4, 3, 5\].*add up to 12.*batch has 13 rows"):
        at_once(net, inputs(2, 13), SIZES)
    with pytest.raises(UserError, match="add up to 12, and the batch has 13 rows"):
        at_once(net, inputs(2, 13), (12,))
    close(net.state_dict(), before)


@pytest.mark.parametrize("sizes", [(), (3, 0), (4, -1)])
def test_bad_sizes(sizes: tuple[int, ...]) -> None:
    with (
        pytest.raises(UserError, match=r"sizes: \[.*\] is not valid: expected one or more"),
        separate_statistics(make(2), sizes),
    ):
        pass


def test_synchronised_statistics_are_refused() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.SyncBatchNorm(2))
    with pytest.raises(UserError, match="SyncBatchNorm"), separate_statistics(net, SIZES):
        pass
    assert "forward" not in vars(net[0])


def test_nesting_is_refused() -> None:
    """By the inner context, which leaves the outer one as it is."""
    net, x = make(2), inputs(2)
    expected = one_by_one(copy.deepcopy(net), x, SIZES)
    with separate_statistics(net, SIZES):
        with pytest.raises(UserError, match=r"\[6, 6\] comes inside another"):
            at_once(net, x, (6, 6))
        with separate_statistics(make(2), (6, 6)):  # of another net
            close(net(x), expected)


def test_exceptions_restore() -> None:
    net, x = make(2), inputs(2)
    expected = copy.deepcopy(net)(x)
    with pytest.raises(RuntimeError, match="stop"), separate_statistics(net, SIZES):
        raise RuntimeError("stop")
    with pytest.raises(RuntimeError), separate_statistics(net, SIZES):
        net(x[:, :1])
    assert not any("forward" in vars(module) for module in net.modules())
    assert torch.equal(copy.deepcopy(net)(x), expected)


def test_forward_of_its_own_is_used_and_comes_back() -> None:
    norm, x = nn.BatchNorm2d(2).double(), inputs(2)
    twice = lambda part: 2 * nn.functional.batch_norm(part, None, None, training=True)  # noqa: E731
    norm.forward = twice  # type: ignore[method-assign]
    close(at_once(norm, x, SIZES), torch.cat([twice(part) for part in x.split(list(SIZES))]))
    assert norm.forward is twice


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_made_inside_are_ordinary(how: str) -> None:
    net, x = make(2), inputs(2)
    with separate_statistics(net, SIZES):
        assert list(net.state_dict()) == list(make(2).state_dict())
        other = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    state = copy.deepcopy(net.state_dict())
    assert torch.equal(other(x), copy.deepcopy(net)(x))
    assert other[1].num_batches_tracked == 4
    close(net.state_dict(), state)
    check(other, x, SIZES)
