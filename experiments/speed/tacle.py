"""A step of TACLE's first stage against the form in which all views pass through the net at once.

    OMP_NUM_THREADS=1 python experiments/speed/tacle.py

ViT-Tiny (patches of 16) on random images of 112x112 pixels, a quarter of the published batches: 10
labelled images and 32 of the pool, after the warm-up. The published code passes labelled, weak and
strong views as one batch, though nothing is propagated back to the weak ones. clearn passes these
by themselves without a graph, and then the labelled ones with those strong ones that are learned
from: the backward pass has 42 images in place of 74 when all guesses are confident, 10 when none
is. The two have to agree before anything is timed. Drawing the views is in all figures.

Memory is the peak in use during one step above what is resident before it; see `harness.peak_mib`.
Needs timm, and Linux with glibc.

Bars: <= 1.0x the CPU seconds and <= 0.75x the memory.
"""

from __future__ import annotations

import multiprocessing

import numpy as np
import torch
from harness import interleave, keep, peak_mib

from clearn.nets import build_net
from clearn.seeding import Generators
from clearn.semi import Labels
from clearn.strategies import TACLE
from clearn.stream import Stream

torch.set_num_threads(1)
ALL, NONE = "clearn, all guesses confident", "clearn, none confident"
PUBLISHED = "all views at once, as published"
VARIANTS = {ALL: (False, 0.1), NONE: (False, 0.99), PUBLISHED: (True, 0.1)}
WHAT = "TACLE, step of stage 1, ViT-Tiny, 10 + 32 images of 112x112"


class Step:
    """A step that is ready to go.

    Args:
        at_once: All views pass through the net together.
        threshold: Of confidence; with 10 classes all guesses are above a tenth.
        side: Of the images, in pixels.
    """

    def __init__(self, at_once: bool, threshold: float, side: int = 112) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (64, 3, side, side), dtype=torch.uint8, generator=generator)
        y = torch.arange(len(x)) % 10
        stream = Stream.from_arrays(x, y, x[:10], y[:10], num_tasks=1)
        stream = stream.semi_supervised(Labels(labels_per_class=1))
        net = build_net("timm/vit_tiny_patch16_224", stream, head="joined", seed=0)
        self.strategy = TACLE(net, labelled_batch_size=10, threshold=threshold, warm_up=0)
        self.strategy._mixes_rows = at_once
        self.strategy.prepare(stream, Generators(0))
        self.strategy.task = stream[0]
        self.strategy.begin_task(stream[0])
        self.optimizer = torch.optim.SGD(net.parameters(), 1e-5, momentum=0.9)
        assert stream[0].unlabelled is not None
        self.batch = next(stream[0].unlabelled.batches(32))

    def __call__(self) -> float:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        loss = self.strategy.loss(self.batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()


def peak(name: str) -> float:
    """Memory of one step of a variant in this process, in MiB."""
    step = Step(*VARIANTS[name])
    step.batch = next(step.strategy.task.train.batches(1))
    step()
    step = Step(*VARIANTS[name])
    return peak_mib(step, in_use=True)


def main() -> None:
    """Check, then measure."""
    steps = {name: Step(*how) for name, how in VARIANTS.items()}
    found, expected = steps[ALL](), steps[PUBLISHED]()
    if not abs(found - expected) < 1e-4 * abs(expected):
        raise AssertionError(f"the two forms disagree: {found} and {expected}")
    interleave(f"{WHAT}: seconds", steps, reference=PUBLISHED, rounds=7, bar="<= 1.0")
    peaks: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(2):
        for name, values in peaks.items():
            # A new process: a fork would start with what the rounds above have left in malloc.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                values.append(pool.apply(peak, (name,)))
    for name, values in peaks.items():
        ratios = np.divide(values, peaks[PUBLISHED])
        keep(
            f"{WHAT}: memory in use",
            name,
            values,
            "MiB",
            ratios=ratios,
            reference=PUBLISHED,
            bar="<= 0.75",
        )


if __name__ == "__main__":
    main()
