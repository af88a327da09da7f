"""Narrow residual nets, whose convolutions have few channels, have the gradients of float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from clearn.nets import ResNet18
from clearn.nets.stable import StableResNet18


@pytest.mark.parametrize("kind", [ResNet18, StableResNet18])
@pytest.mark.parametrize("width", [2, 3, 6, 8])
def test_gradients(kind: Any, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = kind((3, 16, 16), width=width)
    precise = copy.deepcopy(net).double()
    x = torch.randn(4, 3, 16, 16, generator=generator)
    net(x).square().mean().backward()
    precise(x.double()).square().mean().backward()
    for (name, p), q in zip(net.named_parameters(), precise.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        difference = (p.grad.double() - q.grad).norm() / q.grad.norm().clamp(min=1e-3)
        assert difference < 1e-3, name
