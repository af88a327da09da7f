"""A step of TAG on CUDA; see `tag.cu`.

A tensor that is not contiguous, such as a parameter in channels_last, is copied to one that is, and
back when it changes.

Shapes: P tensors; t_p finished tasks that tensor p knows.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clearn.kernels import cuda

# As in the source.
_THREADS = 256
_VECTORS = 4
_BATCH = 48

_MUTABLE = (0, 2, 3, 6)  # of the lists of tensors

_Pointers = ctypes.c_void_p * _BATCH
_Sizes = ctypes.c_int * _BATCH


class _Batch(ctypes.Structure):
    """`Batch` of tag.cu."""

    _fields_ = (
        *((f"tensors_{index}", _Pointers) for index in range(7)),
        ("numel", ctypes.c_int64 * _BATCH),
        ("first_block", ctypes.c_int64 * (_BATCH + 1)),
        ("tasks", _Sizes),
        ("size", _Sizes),
        ("tensors", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("by_moment", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("minus_b", "own", "mix", "decay", "weight", "lr")),
        ("eps", ctypes.c_double),
    )


def step(
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    variances: list[Tensor],
    directions: list[Tensor],
    past: list[Tensor],
    totals: list[Tensor],
    b: float,
    beta: float,
    decay: float,
    weight: float,
    lr: float,
    eps: float,
    by_moment: bool,
) -> None:
    """As `tag.tag_step_`, in two launches for 48 tensors.

    The moments are those of the CPU up to rounding; a step gives the same bits every time.

    Raises:
        ValueError: The tensors are on several devices.
    """
    given = [params, grads, moments, variances, directions, past, totals]
    cuda.only_device(tensor for tensors in given for tensor in tensors)
    lists = [[tensor.contiguous() for tensor in tensors] for tensors in given]
    numbers = (-b, math.exp(-b), 1 - beta, decay, weight, lr, eps)
    for first in range(0, len(params), _BATCH):
        _launch([tensors[first : first + _BATCH] for tensors in lists], by_moment, numbers)
    for index in _MUTABLE:
        for tensor, dense in zip(given[index], lists[index], strict=True):
            if dense is not tensor:
                tensor.copy_(dense)


def _launch(lists: Sequence[Sequence[Tensor]], by_moment: bool, numbers: Sequence[float]) -> None:
    """Both launches for up to 48 tensors, all contiguous."""
    params, directions = lists[0], lists[4]
    tasks = [rows.size(0) for rows in directions]
    stride = max(tasks) + 1
    chunk = _THREADS * _VECTORS * 16 // params[0].element_size()
    first_block = [0]
    for param in params:
        first_block.append(first_block[-1] + max(-(-param.numel() // chunk), 1))
    batch = _Batch(
        *(_Pointers(*(tensor.data_ptr() for tensor in tensors)) for tensors in lists),
        (ctypes.c_int64 * _BATCH)(*(param.numel() for param in params)),
        (ctypes.c_int64 * (_BATCH + 1))(*first_block),
        _Sizes(*tasks),
        _Sizes(*(rows.element_size() for rows in directions)),
        len(params),
        stride,
        by_moment,
        *numbers,
    )
    sums = params[0].new_empty(first_block[-1], stride)
    alphas = params[0].new_empty(len(params), stride)
    done = params[0].new_zeros(len(params), dtype=torch.int32)
    name = str(params[0].dtype).removeprefix("torch.")
    grid = (first_block[-1], 1)
    cuda._launch_blocks("tag", f"accumulate_{name}", [batch, sums, alphas, done], grid, _THREADS)
    cuda._launch_blocks("tag", f"apply_{name}", [batch, alphas], grid, _THREADS)
