"""A step of TAG on CUDA against the copy bandwidth of the same device.

    python experiments/speed/cuda_tag.py

The step of TAG-RMSProp alone, in the twentieth task, on the tensors of a ResNet-18 with a head for
200 classes: 11,279,112 parameters in 62 tensors, float32. 20 rounds, times by CUDA events. The
device waits until the host has queued the launches, so that the host's work is in no figure.

The bytes are those that a step has to move, once: (2 t + 7) numbers for each parameter after t
tasks, as directions and second moments of these tasks and the gradient are read, and both moments
and the parameter are read and written. The kernels read the gradient and the second moment twice.
Bar: the time is within 1.5 times what the copy of 1 GiB takes for as many bytes.
Without a CUDA device, or without the extra `cuda`, nothing is measured.
"""

from __future__ import annotations

import torch
from cuda_masks import Case, copy_case, measure, ready
from torch import Tensor

from clearn.kernels.tag import tag_step_

FINISHED = 19
BAR = ">= 1 / 1.5 of the copy"


def shapes() -> list[tuple[int, ...]]:
    """Of the parameters of torchvision's resnet18 for 200 classes."""
    found: list[tuple[int, ...]] = []

    def convolution(fan_in: int, fan_out: int, side: int) -> None:
        found.extend([(fan_out, fan_in, side, side), (fan_out,), (fan_out,)])  # with its norm

    convolution(3, 64, 7)
    fan_in = 64
    for fan_out in (64, 128, 256, 512):
        for _ in range(2):
            convolution(fan_in, fan_out, 3)
            convolution(fan_out, fan_out, 3)
            if fan_in != fan_out:
                convolution(fan_in, fan_out, 1)
            fan_in = fan_out
    return [*found, (200, 512), (200,)]


def case(tasks: int, knowledge: torch.dtype, bar: str) -> Case:
    """A step after `tasks` tasks whose directions are kept as `knowledge`."""
    sizes, generator = shapes(), torch.Generator("cuda").manual_seed(0)

    def draw(*leading: int) -> list[Tensor]:
        return [torch.rand(*leading, *s, device="cuda", generator=generator) for s in sizes]

    params, grads, moments, variances, past = draw(), draw(), draw(), draw(), draw(tasks)
    directions = [rows.to(knowledge) for rows in draw(tasks)]
    totals = [torch.zeros(tasks, device="cuda") for _ in sizes]
    lists = [params, grads, moments, variances, directions, past, totals]
    numbers = {"b": 5.0, "beta": 0.9, "decay": 0.99, "weight": 0.01, "lr": 1e-9, "eps": 1e-8}
    each = (tasks + 7) * 4 + tasks * knowledge.itemsize
    moved = each * sum(param.numel() for param in params)

    def step() -> None:
        tag_step_(*lists, **numbers, by_moment=False)

    name = str(knowledge).removeprefix("torch.")
    return f"task {tasks + 1}, directions in {name}", moved, step, bar


def main() -> None:
    if not ready("cuda_tag"):
        return
    cases = [
        case(FINISHED, torch.float32, BAR),
        case(FINISHED, torch.bfloat16, BAR),
        case(0, torch.float32, ""),
    ]
    measure("TAG-RMSProp, step, ResNet-18", copy_case(), cases)


if __name__ == "__main__":
    main()
