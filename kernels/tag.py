"""A step of TAG: task-based accumulated gradients.

For each tensor of parameters theta, with gradient g, first and second moment M and V of the task at
hand, and of each finished task tau the direction U_tau of its last first moment and its last second
moment V_tau (Malviya et al., CoLLAs 2022, arXiv 2105.05155):

    M <- beta M + (1 - beta) g,    V <- decay V + weight g^2
    alpha_tau = exp(-b <M, U_tau> / |M|)
    S = exp(-b) V + sum_tau alpha_tau V_tau, or V when there is no finished task
    theta <- theta - lr N / (sqrt(S) + eps),    N = g or M

Two passes over the memory, one up to alpha and one from there; neither waits for the device.

Shapes: P tensors, of any shapes; t_p >= 0 finished tasks that tensor p knows.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from clearn.kernels import _tag_cpu as cpu
from clearn.kernels import _tag_cuda as cuda
from clearn.kernels._operator import operator


def tag_step_(
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    variances: list[Tensor],
    directions: list[Tensor],
    past: list[Tensor],
    totals: list[Tensor],
    *,
    b: float,
    beta: float,
    decay: float,
    weight: float,
    lr: float,
    eps: float,
    by_moment: bool,
) -> None:
    """Take a step; `params`, `moments`, `variances` and `totals` change in place.

    Where the norm of M is zero, the cosines are 0. They are kept within [-1, 1].

    Args:
        params: P >= 1 tensors of one type, float32 or float64, on one device; any strides. Under
            `torch.no_grad` when they require gradients.
        grads: Of the parameters' shapes and type; any strides.
        moments: M, of the parameters' shapes and type, contiguous.
        variances: V, likewise.
        directions: U, `[t_p, *shape]` each, contiguous; rows of length 1, or 0 where a task gave no
            direction. Of the parameters' type, float32 or bfloat16.
        past: V of the finished tasks, `[t_p, *shape]` each, contiguous, of the parameters' type.
        totals: `[t_p]` each, of the parameters' type: alpha is added to these.
        b: How much similarity counts, >= 0.
        beta: Of the first moments, in [0, 1).
        decay: Of the second moments, in [0, 1].
        weight: Of the squared gradients, >= 0.
        lr: Length of the step.
        eps: Added to the root, >= 0.
        by_moment: N is M rather than g.

    Raises:
        ValueError: There are not as many of each. Shapes are the caller's to get right: this runs
            in every step, for tensors that an optimizer has made itself.
    """
    lists = {
        "grads": grads,
        "moments": moments,
        "variances": variances,
        "directions": directions,
        "past": past,
        "totals": totals,
    }
    for name, tensors in lists.items():
        if len(tensors) != len(params) or not params:
            raise ValueError(f"{name}: {len(tensors)} for {len(params)} params: expected one each")
    numbers = (b, beta, decay, weight, lr, eps)
    _step(params, *lists.values(), *numbers, by_moment)


_step: Callable[..., None] = operator(
    "tag_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] moments, Tensor(c!)[] variances, "
    "Tensor[] directions, Tensor[] past, Tensor(d!)[] totals, float b, float beta, float decay, "
    "float weight, float lr, float eps, bool by_moment) -> ()",
    cpu=cpu.step,
    cuda=cuda.step,
    fake=lambda *arguments: None,
    mutates=("params", "moments", "variances", "totals"),
)
