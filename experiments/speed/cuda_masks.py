"""The mask kernels on CUDA against the copy bandwidth of the same device.

    python experiments/speed/cuda_masks.py

2^28 elements, 20 rounds, one call of every kernel per round, times by CUDA events. A bandwidth is
the bytes a kernel has to move, once, divided by its time; for the thresholds that is the scores
once per reading, with all launches in the time. The copy is `Tensor.copy_` of 1 GiB. Bar: >= 80 %
of it for pack, unpack, apply, keep_unset and the readings of the scores, 3 of them at most.
Without a CUDA device, or without the extra `cuda`, nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

import numpy as np
import torch
from harness import keep
from torch import Tensor

import clearn.kernels as k

ELEMENTS = 2**28
ROUNDS = 20
AHEAD = 4_000_000  # cycles of the device, a few ms: then all launches of a call are in its queue
WHAT = "mask kernels, 2^28 elements"
BAR = ">= 0.8 of the copy"

Case = tuple[str, int, Callable[[], object], str]  # name, bytes moved, call, bar


def seconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1_000


def measure(what: str, copy: Case, cases: list[Case]) -> None:
    """Interleave the cases with the copy, and keep bandwidths and their ratios to it."""
    rates: dict[str, list[float]] = {name: [] for name, *_ in [copy, *cases]}
    for counted in [False] + [True] * ROUNDS:
        for name, moved, call, _ in [copy, *cases]:
            elapsed = seconds(call)
            if counted:
                rates[name].append(moved / elapsed / 1e9)
    for name, _, _, bar in [copy, *cases]:
        ratios = np.divide(rates[name], rates[copy[0]])
        bench = f"{what}, {torch.cuda.get_device_name()}"
        keep(bench, name, rates[name], "GB/s", ratios=ratios, reference=copy[0], bar=bar)


def copy_case() -> Case:
    source, target = (torch.zeros(2**28, device="cuda") for _ in range(2))
    return "copy of 1 GiB", 2 * source.nbytes, lambda: target.copy_(source), ""


def mask_cases(mask: Tensor, bits: Tensor) -> list[Case]:
    n, size = mask.numel(), bits.numel()
    masks = torch.stack([bits] * 7)
    symbols = k.stack_bits(masks, n)
    return [
        ("pack", n + size, lambda: k.pack_bits(mask), BAR),
        ("unpack", n + size, lambda: k.unpack_bits(bits, [n]), BAR),
        ("stack 7 masks", n + 7 * size, lambda: k.stack_bits(masks, n), ""),
        ("unstack 7 masks", n + 7 * size, lambda: k.unstack_bits(symbols, 7), ""),
        ("histogram of 7-bit symbols", n, lambda: k.symbol_histogram(symbols, 7), ""),
    ]


def weight_cases(weight: Tensor, score: Tensor, bits: Tensor, ones: Tensor) -> list[Case]:
    n, size, each = weight.numel(), bits.numel(), weight.element_size()
    grad, tau = torch.ones_like(weight), k.top_c_thresholds([score], 0.3)
    name = str(weight.dtype).removeprefix("torch.")
    readings = {torch.float32: 3, torch.float16: 2}[weight.dtype]
    backward = partial(torch.ops.clearn.masked_weight_backward, grad, weight, score, tau[0])

    def thresholds(start: Tensor | None) -> Tensor:
        return k.top_c_thresholds([score], 0.3, start)

    cases: list[Case] = [
        ("apply", 2 * n * each + size, lambda: k.apply_bits(weight, bits), BAR),
        ("keep_unset", 2 * n * each + size, lambda: k.keep_unset_(grad, ones), BAR),
        ("thresholds, cold", readings * n * each, lambda: thresholds(None), BAR),
        ("thresholds, warm", (readings - 1) * n * each, lambda: thresholds(tau), BAR),
        ("select", n * each + size, lambda: k.select_bits(score, tau[0]), ""),
        ("masked weight", 3 * n * each, lambda: k.masked_weight(weight, score, tau[0]), ""),
        ("its backward", 5 * n * each + size, lambda: backward(bits), ""),
    ]
    return [(f"{case} {name}", moved, call, bar) for case, moved, call, bar in cases]


def ready(script: str) -> bool:
    """Whether there is a device to measure on; says so if not."""
    if not torch.cuda.is_available():
        print(f"{script}: no CUDA device found; nothing is measured")
        return False
    try:
        import_module("cuda.core")
    except ImportError:
        print(f"{script}: no cuda-core, pip install 'clearn[cuda]'; nothing is measured")
        return False
    return True


def main() -> None:
    if not ready("cuda_masks"):
        return
    device, generator = torch.device("cuda"), torch.Generator("cuda").manual_seed(0)
    mask = torch.rand(ELEMENTS, device=device, generator=generator) < 0.3
    bits, ones = k.pack_bits(mask), torch.full((ELEMENTS // 8,), 255, dtype=torch.uint8).to(device)
    copy = copy_case()
    measure(WHAT, copy, mask_cases(mask, bits))
    del mask
    for dtype in (torch.float32, torch.float16):
        # Weights as a layer of fan-in 8192 draws them.
        draws = (torch.rand(ELEMENTS, device=device, generator=generator) for _ in range(2))
        weight, score = (((2 * draw - 1) / 8192**0.5).to(dtype) for draw in draws)
        measure(WHAT, copy, weight_cases(weight, score, bits, ones))


if __name__ == "__main__":
    main()
