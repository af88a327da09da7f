"""How much one representation tells of another: a trained lower bound (Q-tuning's retention).

Shapes: B batch, d width of a representation.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.errors import UserError

JSD_FLOOR = -2 * math.log(2)
"""The bound of independent representations under their best critic, which is 0 throughout."""


class JSDCritic(nn.Module):
    """A score for a pair of representations: two hidden layers with ReLU on both side by side.

    The form is ours; of the paper (Guo et al. 2024) only the bound is known. Its parameters are 0
    until `draw`.

    Args:
        d: Width of a representation.
        hidden: Width of either hidden layer.
    """

    def __init__(self, d: int, hidden: int = 256) -> None:
        super().__init__()
        with torch.device("meta"):  # made without drawing from torch's global generator
            self.layers = nn.Sequential(
                nn.Linear(2 * d, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, 1),
            )
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw all parameters anew, as `nn.Linear` does: uniform in +-1 / sqrt(inputs).

        Args:
            generator: On the CPU.
        """
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    drawn = torch.empty(parameter.shape)
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Scores `[B]` of pairs of representations a, b `[B, d]`; high: they belong together."""
        return cast("Tensor", self.layers(torch.cat([a, b], dim=1)))[:, 0]


def jsd_bound(critic: nn.Module, a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """A lower bound of the information that a and b share, in nats, and with an offset.

    With the critic F and sp(z) = log(1 + exp(z)),

        I = mean_i [-sp(-F(a_i, b_i))] - mean_i [sp(F(a_i, b_i'))],

    where b_i' belongs to another example: all b move on by one number of places, so that none stays
    in its own. In expectation I <= 2 JSD - 2 log 2, JSD being the Jensen-Shannon divergence of the
    joint distribution of (a, b) from the product of its marginals; the best critic, the log of the
    ratio of their densities, attains it. JSD is 0 for independent a and b and at most log 2, so
    that the best I lies between `JSD_FLOOR` = -2 log 2 and 0. It is no estimate of the mutual
    information itself, but grows with it. Few examples give more or less by chance.

    The estimator is that of Deep InfoMax (Hjelm et al. 2019), here taken to be the paper's (Guo et
    al. 2024), whose formula was not seen. I is to be maximised in a and in the critic alike.

    Args:
        critic: Takes a, b `[N, d]` and gives scores `[N]`; called once, with both kinds of pairs.
        a: `[B, d]`, B >= 2.
        b: `[B, d]`, row by row of the same examples.
        generator: Draws the number of places; on the CPU, or where `b` is. Neither is waited for.

    Returns:
        A scalar, differentiable in a, b and the critic.

    Raises:
        UserError: There are fewer than two examples, or not as many b as a.
    """
    count = len(a)
    if count < 2 or len(b) != count:
        raise UserError(
            f"batch: {count} and {len(b)} representations give no pairs of different examples: "
            "expected as many of both, 2 or more; make the batch larger"
        )
    shift = torch.randint(1, count, (), generator=generator, device=generator.device)
    other = b[(torch.arange(count, device=b.device) + shift) % count]
    scores = critic(torch.cat([a, a]), torch.cat([b, other]))
    return -F.softplus(-scores[:count]).mean() - F.softplus(scores[count:]).mean()
