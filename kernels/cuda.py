"""The kernels on CUDA: compiled at first use, kept on disk, launched on the current stream.

The sources are the `.cu` files beside this module. NVRTC compiles them for the device at hand
through cuda-core (the extra `cuda`), and the result is kept under `$XDG_CACHE_HOME/clearn/kernels`,
else `~/.cache/clearn/kernels`; a file there that is damaged is made again, and without a folder to
write to every process compiles for itself. Nothing here waits for the device. A launch uses the
device of its tensors and torch's current stream on it.

Scores that are NaN or infinite cannot raise without waiting: their threshold is NaN, which makes
the masked weight, and so the loss, NaN. `check_thresholds` turns that into an error where a wait
does no harm, at the end of an epoch say.

Shapes: n elements, B = ceil(n / 8) bytes, T tasks, L tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from clearn.kernels import _nvrtc
from clearn.kernels._checks import packed_size

# As in the sources.
_THREADS = 256
_COUNT_THREADS = 512
_BATCH = 64
_COUNTERS = 2 * 2048 + 1
_TILE = 8
_WINDOW = 8192
_TURNS = {torch.float32: 3, torch.float16: 2, torch.bfloat16: 2, torch.float64: 6}

_RESIDENT_THREADS = 2048  # that a multiprocessor holds, on most devices
_SCORES_PER_BLOCK = 2**15  # at least, so that emptying and adding up its bins costs little


class _Batch(ctypes.Structure):
    """`Batch` of topc.cu."""

    _fields_ = (
        ("scores", ctypes.c_void_p * _BATCH),
        ("numel", ctypes.c_int64 * _BATCH),
        ("kept", ctypes.c_int64 * _BATCH),
        ("first_block", ctypes.c_int64 * (_BATCH + 1)),
        ("tensors", ctypes.c_int64),
    )


def check_thresholds(thresholds: Tensor) -> None:
    """Raise when scores that thresholds were taken of were NaN or infinite; waits for the device.

    Args:
        thresholds: `[L]`, what `top_c_thresholds` gave.

    Raises:
        ValueError: They were; the message has the position of the tensor.
    """
    wrong = thresholds.isnan().nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"scores[{wrong[0]}]: NaN or infinite values: expected finite scores")


def pack(mask: Tensor) -> Tensor:
    """As `bitmask.pack_bits`."""
    n, mask = mask.numel(), mask.contiguous()
    bits = mask.new_empty(packed_size(n), dtype=torch.uint8)
    _launch("bitmask", "pack_bits", [mask, bits, n], n // 16)
    return bits


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """As `bitmask.unpack_bits`."""
    mask = bits.new_empty(shape, dtype=torch.bool)
    _launch("bitmask", "unpack_bits", [bits.contiguous(), mask, mask.numel()], mask.numel() // 16)
    return mask


def apply(weight: Tensor, bits: Tensor) -> Tensor:
    """As `bitmask.apply_bits`."""
    n, size = weight.numel(), weight.element_size()
    out = weight.new_empty(weight.shape)
    arguments: list[_Argument] = [weight.contiguous(), bits.contiguous(), out, n]
    _launch("bitmask", f"apply_bits_{size}", arguments, n * size // 16)
    return out


def keep_unset_(grad: Tensor, used_bits: Tensor) -> None:
    """As `bitmask.keep_unset_`."""
    n, size, dense = grad.numel(), grad.element_size(), grad.contiguous()
    arguments: list[_Argument] = [dense, used_bits.contiguous(), n]
    _launch("bitmask", f"keep_unset_{size}", arguments, n * size // 16)
    if not grad.is_contiguous():
        grad.copy_(dense)


def or_bits_(bits: Tensor, other: Tensor) -> None:
    """As `bitmask.or_bits_`."""
    dense = bits.contiguous()
    _launch("bitmask", "or_bits", [dense, other.contiguous(), bits.numel()], bits.numel() // 16)
    if not bits.is_contiguous():
        bits.copy_(dense)


def count(bits: Tensor) -> Tensor:
    """As `bitmask.count_bits`."""
    total = bits.new_zeros((), dtype=torch.int64)
    _launch("bitmask", "count_bits", [bits.contiguous(), bits.numel(), total], bits.numel() // 16)
    return total


def overlap(masks: Tensor) -> Tensor:
    """As `bitmask.overlap_bits`."""
    tasks, row = masks.shape
    counts = masks.new_zeros((tasks, tasks), dtype=torch.int64)
    tiles = -(-tasks // _TILE)
    arguments: list[_Argument] = [masks.contiguous(), row, tasks, counts]
    if tasks:
        _launch("bitmask", "overlap_bits", arguments, row // 4, columns=tiles * (tiles + 1) // 2)
    return counts


def stack(masks: Tensor, n: int) -> Tensor:
    """As `bitmask.stack_bits`."""
    tasks = len(masks)
    symbols = masks.new_empty(n, dtype=torch.uint8 if tasks <= 8 else torch.int32)
    size = symbols.element_size()
    arguments: list[_Argument] = [masks.contiguous(), symbols, n, tasks]
    _launch("symbols", f"stack_bits_{size}", arguments, n * size // 16)
    return symbols


def unstack(symbols: Tensor, num_tasks: int) -> Tensor:
    """As `bitmask.unstack_bits`."""
    n, size = symbols.numel(), symbols.element_size()
    masks = symbols.new_empty((num_tasks, packed_size(n)), dtype=torch.uint8)
    arguments: list[_Argument] = [symbols.contiguous(), masks, n, num_tasks]
    _launch("symbols", f"unstack_bits_{size}", arguments, n // 8)
    return masks


def histogram(symbols: Tensor, num_tasks: int) -> Tensor:
    """As `bitmask.symbol_histogram`, but symbols that are out of range are not counted."""
    n, size, bins = symbols.numel(), symbols.element_size(), 2**num_tasks
    counts = symbols.new_zeros(bins, dtype=torch.int64)
    arguments: list[_Argument] = [symbols.contiguous(), n, bins, counts]
    windows = -(-bins // _WINDOW)
    _launch("symbols", f"symbol_histogram_{size}", arguments, n * size // 16, rows=windows)
    return counts


def thresholds(scores: Sequence[Tensor], counts: Sequence[int], start: Tensor | None) -> Tensor:
    """As `topc.top_c_thresholds`, with the number of scores to keep of every tensor.

    Each tensor is read 3 times (float32), 2 times (half precision) or 6 times (float64), once less
    when the threshold is within some 3 % of its `start`. Two launches a reading serve 64 tensors.
    """
    scores = [score.contiguous() for score in scores]
    found = scores[0].new_empty(len(scores))
    states = found.new_empty((len(scores), 3), dtype=torch.int64)
    counters = found.new_zeros((len(scores), _COUNTERS), dtype=torch.int64)
    if start is not None:
        start = start.to(found.dtype).contiguous()
    name = str(found.dtype).removeprefix("torch.")
    for turn in range(_TURNS[found.dtype]):
        for first in range(0, len(scores), _BATCH):
            part = slice(first, first + _BATCH)
            batch = _batch(scores[part], counts[part])
            warm = None if start is None else start[part]
            common: list[_Argument] = [batch, states[part], warm, counters[part]]
            blocks = batch.first_block[batch.tensors]
            _launch_blocks("topc", f"count_{name}", [*common, turn], (blocks, 1), _COUNT_THREADS)
            arguments = [*common, found[part], turn]
            _launch_blocks("topc", f"narrow_{name}", arguments, (batch.tensors, 1), _THREADS)
    return found


def select(scores: Tensor, threshold: Tensor) -> Tensor:
    """As `topc.select_bits`."""
    n = scores.numel()
    bits = scores.new_empty(packed_size(n), dtype=torch.uint8)
    arguments: list[_Argument] = [scores.contiguous(), threshold, bits, n]
    _launch("masked", _typed("select_bits", scores), arguments, n // 8)
    return bits


def forward(weight: Tensor, score: Tensor, threshold: Tensor) -> Tensor:
    """As `masked.masked_weight`; NaN everywhere when the threshold is NaN."""
    n = weight.numel()
    out = weight.new_empty(weight.shape)
    arguments: list[_Argument] = [weight.contiguous(), score.contiguous(), threshold, out, n]
    vectors = n * weight.element_size() // 16
    _launch("masked", _typed("masked_weight", weight), arguments, vectors)
    return out


def backward(
    grad: Tensor, weight: Tensor, score: Tensor, threshold: Tensor, used_bits: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and score."""
    n = weight.numel()
    inputs = [grad.contiguous(), weight.contiguous(), score.contiguous(), threshold]
    used = None if used_bits is None else used_bits.contiguous()
    outputs = weight.new_empty(weight.shape), weight.new_empty(weight.shape)
    vectors = n * weight.element_size() // 16
    arguments: list[_Argument] = [*inputs, used, *outputs, n]
    _launch("masked", _typed("masked_weight_backward", weight), arguments, vectors)
    return outputs


def _typed(kernel: str, value: Tensor) -> str:
    return f"{kernel}_{value.dtype}".replace("torch.", "")


def _batch(scores: Sequence[Tensor], counts: Sequence[int]) -> _Batch:
    """The table of up to 64 tensors, with the blocks that read each."""
    batch = _Batch(tensors=len(scores))
    most = _RESIDENT_THREADS // _COUNT_THREADS * _multiprocessors(scores[0].device)
    for index, (score, kept) in enumerate(zip(scores, counts, strict=True)):
        blocks = min(max(-(-score.numel() // _SCORES_PER_BLOCK), 1), most)
        batch.scores[index] = score.data_ptr()
        batch.numel[index] = score.numel()
        batch.kept[index] = kept
        batch.first_block[index + 1] = batch.first_block[index] + blocks
    return batch


_Argument = Tensor | int | ctypes.Structure | None


def _launch(
    source: str,
    kernel: str,
    arguments: Sequence[_Argument],
    vectors: int,
    *,
    columns: int | None = None,
    rows: int = 1,
) -> None:
    """Launch with a thread for each of `vectors` pieces of work, as far as the device has room.

    Args:
        source: Name of the .cu file.
        kernel: Name of the kernel in it.
        arguments: Its arguments; integers are 64 bits wide, None is a null pointer.
        vectors: Pieces of work.
        columns: Size of the grid in x; the work is then split in y.
        rows: Otherwise, size of the grid in y.
    """
    device = next(value.device for value in arguments if isinstance(value, Tensor))
    most = _RESIDENT_THREADS // _THREADS * _multiprocessors(device)
    blocks = min(max(-(-vectors // _THREADS), 1), most)
    grid = (blocks, rows) if columns is None else (columns, blocks)
    _launch_blocks(source, kernel, arguments, grid, _THREADS)


def _launch_blocks(
    source: str,
    kernel: str,
    arguments: Sequence[_Argument],
    grid: tuple[int, int],
    threads: int,
) -> None:
    """Launch a grid of blocks on the device of the tensors among the arguments.

    Raises:
        ValueError: These are on several devices.
    """
    device = only_device(value for value in arguments if isinstance(value, Tensor))
    values: list[ctypes.Structure | ctypes.c_int64 | ctypes.c_void_p] = []
    for value in arguments:
        if isinstance(value, ctypes.Structure):
            values.append(value)
        elif isinstance(value, int):
            values.append(ctypes.c_int64(value))
        else:
            values.append(ctypes.c_void_p(None if value is None else value.data_ptr()))
    # What cuLaunchKernel takes: the addresses of the arguments.
    addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    _run(device, source, kernel, grid, threads, addresses)


def only_device(tensors: Iterable[Tensor]) -> torch.device:
    """The device of all of these.

    Raises:
        ValueError: They are on several devices.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"tensors on {names}: expected all on one device; move them there")
    return devices.pop()


def _run(
    device: torch.device,
    source: str,
    kernel: str,
    grid: tuple[int, int],
    threads: int,
    arguments: ctypes.Array[ctypes.c_void_p],
) -> None:
    """Launch on the current stream of the device; the seam where tests put another machine in."""
    driver = _nvrtc.module("cuda.bindings.driver")
    with torch.cuda.device(device):
        if not int(_checked(driver.cuCtxGetCurrent(), "its context is unknown")):
            # torch believes that a thread which never chose is on device 0, and does nothing.
            _nvrtc.module("cuda.core").Device(device.index).set_current()
        status = driver.cuLaunchKernel(
            _nvrtc.function(source, kernel, _architecture(device)),
            *(*grid, 1),
            *(threads, 1, 1),
            0,
            torch.cuda.current_stream(device).cuda_stream,
            ctypes.addressof(arguments),
            0,
        )
        _checked(status, f"{kernel} could not be launched")


def _checked(status: tuple[Any, ...], failure: str) -> Any:
    """The second value of what a function of the driver gave, if any."""
    if status[0]:
        raise RuntimeError(f"CUDA: {failure}: {status[0].name}")
    return status[1] if len(status) > 1 else None


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
