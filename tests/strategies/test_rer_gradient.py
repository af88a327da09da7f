"""The gradient of the relation network against double back-propagation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clearn.laboratory import copy_state, differences, small_stream
from clearn.nets import build_net
from clearn.stream import Stream
from tests.strategies.rer_reference import draws, reference_gradient
from tests.strategies.rer_steps import (
    BASES,
    Attention,
    Layers,
    SharedNoise,
    check_gradient,
    each_base,
    in_task_one,
    net_of,
)

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "multi": {"scenario": "task", "head": "multi"},
    "single, told the task": {"scenario": "task", "head": "single"},
    "growing": {"head": "growing"},  # classes of task 2 have no row
    "domain": {"scenario": "domain"},
    "small buffer": {"buffer_size": 3},
    "frozen": {"frozen": ["backbone.0.weight", "backbone.1.bias", "head.linear.bias"]},
    "noise": {"noise": SharedNoise()},
    "no norm": {"norm": False},
}


@pytest.fixture(scope="module")
def stream_of_classes() -> Stream:
    return small_stream("class", (5,))


@pytest.mark.parametrize("last_layer", [False, True], ids=["full", "last layer"])
@pytest.mark.parametrize("case", CASES)
@each_base
def test_gradient_is_that_of_double_backward(
    base: str, case: str, last_layer: bool, tiny_stream: Any
) -> None:
    options = {"scenario": "class", "head": "single", "frozen": []} | CASES[case]
    stream = tiny_stream(scenario=options.pop("scenario"))
    head, frozen = options.pop("head"), options.pop("frozen")
    backbone = {name: options.pop(name) for name in ("norm", "noise") if name in options}
    net = net_of(Layers, stream, head, **backbone)
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    strategy, batch = in_task_one(net, stream, base, last_layer=last_layer, **options)
    check_gradient(strategy, base, batch)


@each_base
def test_gradient_with_dropout_of_rows(base: str, tiny_stream: Any) -> None:
    """All three passes see the same masks, those of a pass over all branches."""
    stream = tiny_stream(scenario="class")
    net = net_of(Layers, stream, norm=False, noise=nn.Dropout(0.4))
    strategy, batch = in_task_one(net, stream, base)
    check_gradient(strategy, base, batch, together=True)


@pytest.mark.parametrize("last_layer", [False, True], ids=["full", "last layer"])
@each_base
def test_gradient_of_attention(base: str, last_layer: bool, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    net = net_of(Attention, stream)
    strategy, batch = in_task_one(net, stream, base, last_layer=last_layer)
    check_gradient(strategy, base, batch)


@pytest.mark.parametrize("last_layer", [False, True], ids=["full", "last layer"])
@each_base
def test_gradient_of_a_residual_net_on_images(base: str, last_layer: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, 3, 8, 8, generator=generator)
    stream = Stream.from_arrays(*(images, torch.arange(48) % 4) * 2, num_tasks=2, scenario="class")
    net = build_net("ResNet18", stream, width=2, seed=0)
    strategy, batch = in_task_one(net, stream, base, count=5, last_layer=last_layer)
    check_gradient(strategy, base, batch)


@settings(max_examples=25)
@given(
    base=st.sampled_from(list(BASES)),
    count=st.integers(2, 14),
    capacity=st.integers(2, 14),
    lr=st.floats(1e-3, 2.0),
    last_layer=st.booleans(),
)
def test_gradient_at_any_size(
    stream_of_classes: Stream, base: str, count: int, capacity: int, lr: float, last_layer: bool
) -> None:
    net = net_of(Layers, stream_of_classes, "growing")
    options = {"buffer_size": capacity, "last_layer": last_layer}
    strategy, batch = in_task_one(net, stream_of_classes, base, count=count, lr=lr, **options)
    check_gradient(strategy, base, batch, lr=lr)


@each_base
def test_steps_are_those_of_adam(base: str, tiny_stream: Any) -> None:
    """Three steps, each on fresh draws."""
    stream = tiny_stream(scenario="class")
    strategy, batch = in_task_one(net_of(Layers, stream), stream, base)
    plain = [p.detach().clone().requires_grad_() for p in strategy.relation.parameters()]
    adam = torch.optim.Adam(plain, lr=1e-3, weight_decay=1e-4)
    seen = []
    for _ in range(3):
        inner, outer = draws(strategy, batch)
        seen += [branch.x for branch in (*inner[1:], *outer)]
        for own, found in zip(
            plain, reference_gradient(strategy, base, inner, outer, 0.3), strict=True
        ):
            own.grad = found
        adam.step()
        strategy.learn_relation(batch)
        for ours, own in zip(strategy.relation.parameters(), plain, strict=True):
            torch.testing.assert_close(ours.detach(), own.detach(), rtol=1e-7, atol=1e-9)
    assert len({tuple(x.flatten().tolist()) for x in seen}) == len(seen)


@each_base
def test_learning_the_relation_changes_nothing_else(base: str, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    net = net_of(Layers, stream, "growing", noise=nn.Dropout(0.3))
    strategy, batch = in_task_one(net, stream, base)
    for index, parameter in enumerate(net.parameters()):
        parameter.grad = None if index % 2 else torch.rand_like(parameter)

    def watched() -> dict[str, Any]:
        return {
            "state": strategy.state_dict(),
            "gradients": {name: p.grad for name, p in net.named_parameters()},
            "required": {name: p.requires_grad for name, p in net.named_parameters()},
            "modes": {name: module.training for name, module in net.named_modules()},
            "generators": strategy.generators.state_dict(),
        }

    strategy.generators.get("relation buffer")
    strategy.generators.get("relation replay augmentation")
    before = copy_state(watched())
    strategy.learn_relation(batch)
    after = watched()
    changed = set(differences(before, after))
    learned = set(dict(strategy.relation.named_parameters(prefix="relation")))
    assert learned <= changed
    adam = {"exp_avg", "exp_avg_sq", "step", "0", "state", "adam"}
    others = {name for name in changed - learned - adam if not name.isdigit()}
    assert others == {"named/relation buffer"}
