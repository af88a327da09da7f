"""What a step of TAG costs when many tasks are behind it.

    OMP_NUM_THREADS=1 python experiments/speed/tag.py

TAG-RMSProp on the reduced ResNet-18 of the paper (496,680 parameters in 48 tensors).

- The optimizer's step alone. "As published" is the reference of the tests in float32: the structure
  of the authors' code, tensor by tensor and task by task, without its copies to the host. "Per
  tensor" is the same with less to do: moments in place, M normalised once. They have to agree with
  clearn before anything is timed. Bar: as published takes >= 3x as long at task 19.
- A whole training step, batch 10, against that with torch's RMSprop. Bars: <= 1.35x at task 19,
  <= 1.1x at task 1.
- The state after 20 tasks. Bar: <= (2 T + 1) |theta| x 4 bytes + 1 %.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import interleave, keep
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer, RMSprop

from clearn.nets import build_net
from clearn.optim import TAGRMSprop
from clearn.stream import Stream

# By its folder: other distributions install a package called `tests`.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "clearn" / "optim"))
from tag_reference import Reference

torch.set_num_threads(1)
LR, B, LAST = 1e-4, 5.0, 19
STEPS, WHOLE_STEPS = 20, 6

generator = torch.Generator().manual_seed(0)
X = torch.rand(200, 3, 32, 32, generator=generator)
Y = torch.arange(100).repeat(2)
STREAM = Stream.from_arrays(X, Y, X[:100], Y[:100], num_tasks=20, scenario="task")
BATCH = next(STREAM[0].train.batches(10))


class PerTensor(Reference):
    """The reference without what it does more than once, and without its record of alpha."""

    def step_of(self, p: int, grad: Tensor) -> None:
        moment, variance = self.moments[p], self.variances[p]
        moment.mul_(self.beta1).add_(grad, alpha=1 - self.beta1)
        variance.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
        total = variance
        if self.directions[p]:
            own = moment / moment.norm()
            cosines = [(own * u).sum() for u in (*self.directions[p], own)]
            alphas = torch.exp(-self.b * torch.stack(cosines))
            total = torch.einsum("t,t...->...", alphas, torch.stack([*self.past[p], variance]))
        self.params[p].sub_(self.lr * grad / (total.sqrt() + self.eps))


def make_net() -> nn.Module:
    return build_net("StableResNet18", STREAM, head="single", seed=0)


def optimizer_steps(task: int) -> None:
    """Rows of the optimizer's step when `task` tasks have ended."""
    shapes = [param.shape for param in make_net().parameters()]
    draws = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=draws) for shape in shapes]
    grads = [[torch.randn(shape, generator=draws) for shape in shapes] for _ in range(task + 1)]

    def from_lists(form: type[Reference]) -> tuple[Callable[[], None], list[Tensor]]:
        params = [tensor.clone() for tensor in drawn]
        reference = form("RMSprop", params, LR, B)
        for grad in grads[:-1]:
            reference.step(grad)
            reference.end_task()
        return partial(reference.step, grads[-1]), params

    def from_optimizer(optimizer: Optimizer, params: Sequence[nn.Parameter]) -> Callable[[], None]:
        for grad in grads:
            for param, value in zip(params, grad, strict=True):
                param.grad = value
            if grad is not grads[-1]:
                optimizer.step()
                if isinstance(optimizer, TAGRMSprop):
                    optimizer.end_task()
        return optimizer.step

    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in drawn] for _ in range(2))
    published, expected = from_lists(Reference)
    per_tensor, found = from_lists(PerTensor)
    variants = {
        "TAGRMSprop": from_optimizer(TAGRMSprop(ours, LR, B), ours),
        "as published": published,
        "per tensor": per_tensor,
        "torch RMSprop": from_optimizer(RMSprop(theirs, LR, foreach=True), theirs),
    }
    for step in variants.values():
        step()
    for name, params in {"TAGRMSprop": ours, "per tensor": found}.items():
        pairs = zip(params, expected, strict=True)
        error = max(float((a.detach() - b).norm() / b.norm()) for a, b in pairs)
        if not error < 1e-6:
            raise AssertionError(f"{name} is off the reference by {error:.1e}")

    interleave(
        f"TAG, optimizer step at task {task}, StableResNet18, {STEPS} steps",
        {name: partial(repeat, step, STEPS) for name, step in variants.items()},
        reference="TAGRMSprop",
        rounds=9,
        bar=">= 3 (as published)" if task == LAST else "",
    )


def training_steps(tasks: Sequence[int], bars: str) -> None:
    """Rows of a whole training step."""

    def trainer(make: Callable[..., Optimizer], task: int) -> Callable[[], None]:
        net = make_net()
        optimizer = make(net.parameters(), LR)

        def step() -> None:
            optimizer.zero_grad()
            cross_entropy(net(BATCH.x, BATCH.task_id), BATCH.y).backward()
            optimizer.step()

        for _ in range(task):
            step()
            if isinstance(optimizer, TAGRMSprop):
                optimizer.end_task()
        return partial(repeat, step, WHOLE_STEPS)

    interleave(
        f"TAG, whole training step, StableResNet18, batch 10, {WHOLE_STEPS} steps",
        {
            "torch RMSprop": trainer(partial(RMSprop, foreach=True), LAST),
            **{f"TAGRMSprop at task {task}": trainer(TAGRMSprop, task) for task in tasks},
        },
        reference="torch RMSprop",
        rounds=15,
        bar=bars,
    )


def state_bytes(tasks: int) -> None:
    """A row of the bytes of the state in the last task, over (2 T + 1) |theta| x 4."""
    params = list(make_net().parameters())
    optimizer = TAGRMSprop(params, LR, B)
    for task in range(tasks):
        if task:
            optimizer.end_task()
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    values = (value for state in optimizer.state.values() for value in state.values())
    stored = sum(value.nbytes for value in values if isinstance(value, Tensor))
    allowed = (2 * tasks + 1) * 4 * sum(param.numel() for param in params)
    bench = f"TAG, state at T = {tasks}, StableResNet18"
    keep(
        bench,
        "TAGRMSprop",
        [stored / 2**20],
        "MiB",
        ratios=np.array([stored / allowed]),
        reference="(2 T + 1) |theta| x 4",
        bar="<= 1.01",
    )


def repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


if __name__ == "__main__":
    for finished in (LAST, 1):
        optimizer_steps(finished)
    training_steps([LAST, 1], "<= 1.35 at task 19, <= 1.1 at task 1")
    state_bytes(LAST + 1)
