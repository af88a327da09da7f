"""The bound against its formula in NumPy's float64 and against Gaussians, whose ratio is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from clearn.errors import UserError
from clearn.prompts import JSD_FLOOR, JSDCritic, jsd_bound

Array = NDArray[np.float64]


def correlated(rho: float, count: int, seed: int, d: int = 2) -> tuple[Tensor, Tensor]:
    """Standard normal a, b `[count, d]`, each column of a correlated with the same one of b."""
    generator = torch.Generator().manual_seed(seed)
    a, noise = torch.randn(2, count, d, generator=generator)
    return a, rho * a + math.sqrt(1 - rho**2) * noise


class Ratio(nn.Module):
    """The best critic of `correlated`: the log of the joint density over that of the marginals."""

    def __init__(self, rho: float) -> None:
        super().__init__()
        self.rho = rho

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        rho = self.rho
        square = rho**2 * (a**2 + b**2) - 2 * rho * a * b
        each = -math.log(1 - rho**2) / 2 - square / (2 * (1 - rho**2))
        return each.sum(dim=1)


class Given(nn.Module):
    """Scores told beforehand; remembers for which pairs it was asked."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.a, self.b = a, b
        return self.scores[: len(a)]


def formula(scores: Array) -> float:
    """Of 2 B scores, those of the joint distribution first."""
    joint, marginal = np.split(scores.astype(np.float64), 2)
    return float(-np.logaddexp(0, -joint).mean() - np.logaddexp(0, marginal).mean())


@given(count=st.integers(2, 9), seed=st.integers(0, 99), size=st.sampled_from([0.1, 3.0, 1e3]))
def test_formula_and_pairs(count: int, seed: int, size: float) -> None:
    a, b = correlated(0.5, count, seed)
    scores = size * torch.randn(2 * count, generator=torch.Generator().manual_seed(seed + 1))
    critic = Given(scores)
    found = jsd_bound(critic, a, b, torch.Generator().manual_seed(seed))
    assert found.shape == ()
    assert found.item() == pytest.approx(formula(scores.numpy()), rel=1e-6, abs=1e-6)
    assert critic.a.equal(torch.cat([a, a]))
    assert critic.b[:count].equal(b)
    places = [(b == row).all(dim=1).int().argmax().item() for row in critic.b[count:]]
    shift = places[0]
    assert 1 <= shift < count
    assert places == [(row + shift) % count for row in range(count)]


def test_every_shift_comes_equally_often() -> None:
    b = torch.arange(5.0)[:, None]
    critic, generator = Given(torch.zeros(10)), torch.Generator().manual_seed(0)
    counts = [0, 0, 0, 0, 0]
    for _ in range(2000):
        jsd_bound(critic, b, b, generator)
        counts[int(critic.b[5].item())] += 1
    assert counts[0] == 0
    assert all(abs(count - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5 for count in counts[1:])


def test_a_trained_critic_against_float64() -> None:
    a, b = correlated(0.7, 33, 0, d=5)
    critic = JSDCritic(5, hidden=16)
    critic.draw(torch.Generator().manual_seed(0))
    found = jsd_bound(critic, a, b, torch.Generator().manual_seed(4))
    shift = int(torch.randint(1, 33, (), generator=torch.Generator().manual_seed(4)))
    x = np.concatenate([np.tile(a, (2, 1)), np.concatenate([b, np.roll(b, -shift, 0)])], axis=1)
    layers = [layer for layer in critic.layers if isinstance(layer, nn.Linear)]
    weights = [[t.detach().double().numpy() for t in (k.weight, k.bias)] for k in layers]
    for index, (weight, bias) in enumerate(weights):
        x = x @ weight.T + bias
        x = np.maximum(x, 0) if index < 2 else x
    assert found.item() == pytest.approx(formula(x[:, 0]), abs=1e-6)


def test_a_critic_that_says_nothing() -> None:
    """Exactly -2 log 2; another constant is worse, however large, and stays finite."""
    a, b = correlated(0.9, 8, 0)
    generator = torch.Generator()
    nothing = jsd_bound(Given(torch.zeros(16)), a, b, generator)
    assert nothing.equal(torch.tensor(JSD_FLOOR))
    assert pytest.approx(-2 * math.log(2), abs=0) == JSD_FLOOR
    for constant in (-1e4, -30.0, -0.1, 0.1, 30.0, 1e4):
        found = jsd_bound(Given(torch.full((16,), constant)), a, b, generator).item()
        expected = -np.logaddexp(0, constant) - np.logaddexp(0, -constant)
        assert found == pytest.approx(expected, rel=1e-6)
        assert found < JSD_FLOOR


def test_gradient_reaches_representations_and_critic() -> None:
    """The cached ones are given as constants; the gradient is that of finite differences."""
    a, b = (t.double().requires_grad_() for t in correlated(0.5, 6, 0, d=3))
    critic = JSDCritic(3, hidden=8).double()
    critic.draw(torch.Generator().manual_seed(0))
    jsd_bound(critic, a, b.detach(), torch.Generator().manual_seed(1)).backward()
    assert (a.grad != 0).any(dim=1).all()
    assert b.grad is None
    for parameter in critic.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()

    def bound(a: Tensor, b: Tensor) -> Tensor:
        return jsd_bound(critic, a, b, torch.Generator().manual_seed(1))

    assert torch.autograd.gradcheck(bound, (a, b))


def best(rho: float) -> float:
    """2 JSD - 2 log 2 of `correlated`, by the mean over draws of NumPy's."""
    generator, count = np.random.default_rng(0), 200_000
    a, noise, other = generator.standard_normal((3, count, 2))
    scores = []
    for b in (rho * a + math.sqrt(1 - rho**2) * noise, other):
        square = rho**2 * (a**2 + b**2) - 2 * rho * a * b
        scores.append((-np.log(1 - rho**2) / 2 - square / (2 * (1 - rho**2))).sum(axis=1))
    return formula(np.concatenate(scores))


def trained(rho: float, steps: int = 200) -> float:
    """The bound on fresh examples after training the critic alone."""
    critic = JSDCritic(2, hidden=64)
    critic.draw(torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    a, b = correlated(rho, 256 * steps, 1)
    for some, same in zip(a.split(256), b.split(256), strict=True):
        optimizer.zero_grad()
        (-jsd_bound(critic, some, same, generator)).backward()
        optimizer.step()
    with torch.no_grad():
        return jsd_bound(critic, *correlated(rho, 50_000, 3), generator).item()


def test_grows_with_the_information_of_gaussians() -> None:
    """Which is -log(1 - rho^2) in two dimensions: the floor for rho = 0, near the best above it."""
    rhos = (0.0, 0.3, 0.6, 0.9)
    found = [trained(rho) for rho in rhos]
    assert found[0] == pytest.approx(JSD_FLOOR, abs=0.01)
    assert found[0] < found[1] < found[2] < found[3] < 0
    for rho, bound in zip(rhos, found, strict=True):
        assert best(rho) - 0.03 < bound < best(rho) + 0.01
        ideal = jsd_bound(Ratio(rho), *correlated(rho, 50_000, 3), torch.Generator()).item()
        assert ideal == pytest.approx(best(rho), abs=0.01)
        assert bound < ideal + 0.005


def test_draws_of_a_critic() -> None:
    """As a linear layer's own, from the generator only; nor does making one draw from torch's."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = JSDCritic(3), JSDCritic(3)
    assert not any(parameter.any() for parameter in first.parameters())
    for critic in (first, second):
        critic.draw(torch.Generator().manual_seed(5))
    assert torch.get_rng_state().equal(before)
    for (name, ours), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        assert ours.equal(theirs)
        inputs = 6 if name.startswith("layers.0") else 256
        assert ours.abs().max() * inputs**0.5 <= 1
        if ours.numel() > 1:
            assert ours.std().item() * (3 * inputs) ** 0.5 == pytest.approx(1, abs=0.1)
    assert first(torch.zeros(4, 3), torch.ones(4, 3)).shape == (4,)
    assert [p.shape[0] for p in JSDCritic(3, hidden=7).parameters()] == [7, 7, 7, 7, 1, 1]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 1), (3, 4), (2, 1)])
def test_no_pairs_of_different_examples(first: int, second: int) -> None:
    with pytest.raises(UserError, match=rf"batch: {first} and {second} representations .* 2 or"):
        jsd_bound(JSDCritic(2), torch.ones(first, 2), torch.ones(second, 2), torch.Generator())


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_does_not_wait_for_the_device(device: str) -> None:
    """With a generator of either side; that of the CPU gives the same as on the CPU."""
    a, b = correlated(0.5, 64, 0)
    critic, generator = JSDCritic(2), torch.Generator(device).manual_seed(1)
    expected = jsd_bound(critic, a, b, torch.Generator().manual_seed(1))
    critic, a, b = critic.cuda(), a.cuda().requires_grad_(), b.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = jsd_bound(critic, a, b, generator)
        found.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert a.grad.any()
    if device == "cpu":
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)
