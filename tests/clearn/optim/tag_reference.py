"""TAG as its equations stand, for tests and as what benchmarks compare with.

One tensor at a time, one finished task at a time, everything computed anew in every step: the
structure of the authors' code, without its copies to the host. Nothing is guarded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BETA2 = {"RMSprop": 0.99, "Adagrad": 1.0, "Adam": 0.999}


class Reference:
    """TAG-RMSprop, TAG-Adagrad or TAG-Adam on a list of tensors, which it changes.

    Args:
        base: "RMSprop", "Adagrad" or "Adam".
        params: Tensors.
        lr: eta.
        b: b.
        restarts: Adam's n starts again with `begin_epoch`, as in the authors' code.
    """

    def __init__(
        self,
        base: str,
        params: Sequence[Tensor],
        lr: float,
        b: float,
        *,
        restarts: bool = False,
    ) -> None:
        self.base, self.params, self.lr, self.b, self.restarts = base, params, lr, b, restarts
        self.beta1, self.beta2, self.eps = 0.9, BETA2[base], 1e-8
        self.directions: list[list[Tensor]] = [[] for _ in params]  # U_tau
        self.past: list[list[Tensor]] = [[] for _ in params]  # V_tau
        self.alphas: list[list[Tensor]] = [[] for _ in params]  # of each step of the task
        self.start()

    def start(self) -> None:
        self.n = 0
        self.moments = [torch.zeros_like(param) for param in self.params]
        self.variances = [torch.zeros_like(param) for param in self.params]

    def begin_epoch(self) -> None:
        if self.restarts:
            self.n = 0

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor]) -> None:
        self.n += 1
        for p, grad in enumerate(grads):
            self.step_of(p, grad)

    def step_of(self, p: int, grad: Tensor) -> None:
        self.moments[p] = self.beta1 * self.moments[p] + (1 - self.beta1) * grad
        weight = 1 if self.base == "Adagrad" else 1 - self.beta2
        self.variances[p] = self.beta2 * self.variances[p] + weight * grad**2
        moment, variance = self.moments[p], self.variances[p]
        cosines = [(moment / moment.norm() * u).sum() for u in self.directions[p]]
        alphas = torch.stack([torch.exp(-self.b * c) for c in cosines]) if cosines else None
        if alphas is None:
            total = variance
        else:
            own = torch.full_like(alphas[:1], math.exp(-self.b))
            self.alphas[p].append(alphas)
            total = torch.einsum(
                "t,t...->...", torch.cat([alphas, own]), torch.stack([*self.past[p], variance])
            )
        numerator, k2 = grad, 1.0
        if self.base == "Adam":
            numerator = moment / (1 - self.beta1**self.n)
            k2 = math.sqrt(1 - self.beta2**self.n)
        self.params[p].sub_(self.lr * numerator / (total.sqrt() / k2 + self.eps))

    def end_task(self) -> None:
        for p, moment in enumerate(self.moments):
            self.directions[p].append(moment / moment.norm())
            self.past[p].append(self.variances[p])
            self.alphas[p].clear()
        self.start()
