"""Batch normalisation of one value for each channel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clearn.nets import net_builder
from clearn.nets.norms import MapNorm, RowNorm


@given(
    rows=st.integers(1, 4),
    features=st.integers(1, 5),
    sides=st.sampled_from([(), (1, 1), (1, 2), (3, 2)]),
    training=st.booleans(),
    running=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batch_norm_that_takes_one_value(
    rows: int, features: int, sides: tuple[int, ...], training: bool, running: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    kinds = (MapNorm, nn.BatchNorm2d) if sides else (RowNorm, nn.BatchNorm1d)
    ours, theirs = (kind(features, track_running_stats=running) for kind in kinds)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    x = torch.randn(rows, features, *sides, requires_grad=True)
    if running:
        ours(torch.randn(9, *x.shape[1:]))
    ours.train(training)
    theirs.train(training).load_state_dict(ours.state_dict())
    single = rows * len(torch.empty(sides).flatten()) == 1
    if single:  # one value says nothing about the variance
        theirs.eval()
    expected = ours.bias.view_as(x) if single and not running else theirs(x)
    actual = ours(x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    actual.sum().backward()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ResNet18", "ReducedResNet18", "StableResNet18"])
def test_a_last_batch_of_one_small_image(name: str) -> None:
    """On which the last maps have one pixel."""
    net = net_builder(name)((1, 8, 8))
    net(torch.randn(9, 1, 8, 8))
    net(torch.randn(1, 1, 8, 8)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
