"""TAG: adaptive learning rates that remember in which directions earlier tasks were learned.

Malviya, Ravindran, Chandar, "TAG: Task-based Accumulated Gradients for Lifelong learning", CoLLAs
2022, arXiv 2105.05155. Each tensor of parameters theta has, in task t, a first moment M and a
second moment V of its gradients g, both 0 when the task begins. When a task ends, its direction
U = M / |M| and its V are kept for good. A step of task t is, for each tensor by itself,

    alpha_tau = exp(-b <M / |M|, U_tau>) for tau < t,    alpha_t = exp(-b), or 1 when t = 0
    theta <- theta - lr N / (sqrt(sum_{tau <= t} alpha_tau V_tau) / k + eps)

with N = g and k = 1, but for TAG-Adam N = M / (1 - beta1^n) and k = sqrt(1 - beta2^n) after n
steps. Where the gradients of a task go against those of an earlier one, that task's second moment
weighs up to exp(b), and what mattered to it changes slowly. The step from alpha_0 = 1 to
alpha_t = exp(-b) makes learning faster from the second task on; that is the published method.

Departures from it:

- A tensor whose gradients have all been zero has no direction, and its cosines are 0. As published
  they are NaN, and so are the parameters of that tensor from then on.
- A tensor's tasks are those in which it got a gradient. One that is added or unfrozen later begins
  like any other, with weight 1 and nothing to remember; while it is frozen nothing is kept for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.optim.optimizer import ParamsT

from clearn.optim.base import Rule, TAGOptimizer


class TAGRMSprop(TAGOptimizer):
    """TAG on RMSprop: V <- beta2 V + (1 - beta2) g^2, N = g.

    In the first task it is `torch.optim.RMSprop` with alpha = beta2: on the CPU bit for bit, on
    CUDA up to rounding.

    Args:
        params: As for any optimizer of torch: tensors, named tensors, or groups of these.
        lr: Length of the step, >= 0.
        b: How much similarity counts, in [0, 50]; 0 adds up the second moments of all tasks as
            they are. The paper uses 5 and 7.
        betas: Of the first moment, which gives the direction of a task, and of the second; each in
            [0, 1).
        eps: Added to the root, > 0.
        knowledge: Type in which the directions of finished tasks are kept, None for the type of the
            parameters. With torch.bfloat16 a quarter less memory is needed at float32, and the
            similarities are approximate: cosines err by less than 0.004, and by far less in large
            tensors. On the CPU it saves no time.

    Raises:
        UserError: A number is out of range, or a parameter is neither float32 nor float64.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        b: float = 5.0,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        knowledge: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, lr, b, knowledge, betas=betas, eps=eps)

    def _rule(self, group: Mapping[str, Any], step: int, epoch_step: int) -> Rule:
        beta1, beta2 = group["betas"]
        return Rule(beta1, beta2, 1 - beta2, group["lr"], group["eps"])


class TAGAdagrad(TAGOptimizer):
    """TAG on Adagrad: V <- V + g^2, N = g.

    In the first task it is `torch.optim.Adagrad` with the same eps: on the CPU bit for bit, on CUDA
    up to rounding.

    Args:
        params: As for `TAGRMSprop`.
        lr: Length of the step, >= 0.
        b: How much similarity counts, in [0, 50].
        beta: Of the first moment, which gives the direction of a task, in [0, 1).
        eps: Added to the root, > 0.
        knowledge: As for `TAGRMSprop`.

    Raises:
        UserError: As for `TAGRMSprop`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        b: float = 5.0,
        *,
        beta: float = 0.9,
        eps: float = 1e-8,
        knowledge: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, lr, b, knowledge, beta=beta, eps=eps)

    def _rule(self, group: Mapping[str, Any], step: int, epoch_step: int) -> Rule:
        return Rule(group["beta"], 1.0, 1.0, group["lr"], group["eps"])


class TAGAdam(TAGOptimizer):
    """TAG on Adam: V <- beta2 V + (1 - beta2) g^2, N = M / (1 - beta1^n), k = sqrt(1 - beta2^n).

    In the first task it is `torch.optim.Adam`, up to rounding. k stands below the whole weighted
    sum, second moments of finished tasks included.

    Args:
        params: As for `TAGRMSprop`.
        lr: Length of the step, >= 0.
        b: How much similarity counts, in [0, 50].
        betas: Of the two moments, each in [0, 1).
        eps: Added to the root, > 0.
        knowledge: As for `TAGRMSprop`.
        counter: What n counts. "fixed": the steps of the task, which is what the moments call for,
            as these begin at 0 with the task. "official": the steps since `begin_epoch`, as in the
            authors' code; in later epochs it makes the first steps too long.

    Raises:
        UserError: As for `TAGRMSprop`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        b: float = 5.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        knowledge: torch.dtype | None = None,
        counter: Literal["fixed", "official"] = "fixed",
    ) -> None:
        super().__init__(params, lr, b, knowledge, betas=betas, eps=eps, counter=counter)

    def _rule(self, group: Mapping[str, Any], step: int, epoch_step: int) -> Rule:
        beta1, beta2 = group["betas"]
        n = epoch_step if group["counter"] == "official" else step
        # N / (sqrt(S) / k + eps) is k N / (sqrt(S) + k eps).
        k = math.sqrt(1 - beta2**n)
        lr = group["lr"] * k / (1 - beta1**n)
        return Rule(beta1, beta2, 1 - beta2, lr, group["eps"] * k, by_moment=True)
