"""One update of RER's relation network against back-propagation through back-propagation.

    OMP_NUM_THREADS=1 python experiments/speed/rer.py

RER on DER++, reduced ResNet-18 (width 20), second task: three branches of 16 random 32x32 RGB
images, and two draws of 16 after the look-ahead. All sides are given the same examples: drawing and
augmentation are in no figure. clearn's also has the step of Adam.

"Double backward" is the reference of the tests: a forward pass for each branch, a look-ahead whose
graph is kept, and only those derivatives that lead to the relation network. "As published" is what
the authors' code does with it: the outer loss is propagated back to all parameters of the net, also
where only the last layer looks ahead. The three have to agree before anything is timed.

Memory is the peak of the resident memory during one update above what is resident before it (net,
buffer and examples stand by then), by the kernel's high-water mark, which is reset in between. Each
figure is of a process of its own, after an update of a much smaller net, so that what torch loads
on first use does not count. Memory in use is measured with a malloc that hands back at once what is
freed; by default the C library keeps some of it and cannot reuse all, and this is measured as
well. Needs Linux with glibc.

Bars: full variant <= 0.75x the CPU seconds of double backward and <= 0.6x the memory in use;
last-layer variant <= 0.6x the CPU seconds of what was published.
"""

from __future__ import annotations

import copy
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from harness import interleave, keep, peak_mib
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from clearn.nets import build_net
from clearn.seeding import Generators
from clearn.strategies import RER
from clearn.strategies.replay import Branch
from clearn.stream import Stream

# By its folder: other distributions install a package called `tests`.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "strategies"))
import rer_reference

torch.set_num_threads(1)
BATCH, STORED, LR = 16, 200, 0.03
CLEARN, TWICE, PUBLISHED = "clearn", "double backward", "double backward, as published"


class Update:
    """An update of the relation network that is ready to go, in each form of it.

    Args:
        last_layer: Look ahead with the head alone.
        width: Of the net.
        side: Of the images, in pixels.
    """

    def __init__(self, last_layer: bool, width: int = 20, side: int = 32) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (2 * STORED, 3, side, side), dtype=torch.uint8, generator=generator)
        y = torch.arange(len(x)) % 10
        stream = Stream.from_arrays(x, y, x[:10], y[:10], num_tasks=2)
        net = build_net("ResNet18", stream, width=width, seed=0)
        strategy = RER(net, base="DERpp", last_layer=last_layer, buffer_size=STORED)
        strategy.prepare(stream, Generators(0))
        learning: Any = strategy
        learning.optimizers = lambda: SimpleNamespace(param_groups=[{"lr": LR}])
        for task in stream:
            strategy.task = task
            strategy.begin_task(task)
            for batch in task.train.batches(100):
                kept = torch.randn(len(batch), 10, generator=generator)
                draws = strategy.generators.get("buffer")
                strategy.buffer.add(batch.raw, batch.y, batch.task_id, draws, logits=kept)
                strategy.met[batch.y] = True
        self.strategy = strategy
        self.batch = next(task.train.batches(BATCH))
        self.inner, self.outer = rer_reference.draws(strategy, self.batch)
        self.net = copy.deepcopy(net)  # of the published form, which makes one in every update

    def double(self) -> None:
        """To float64."""
        self.strategy.double()
        self.net.double()
        self.batch = replace(self.batch, x=self.batch.x.double())
        self.inner, self.outer = (
            [branch._replace(x=branch.x.double()) for branch in each]
            for each in (self.inner, self.outer)
        )

    def clearn(self) -> list[Tensor]:
        """The library's, but for the draws."""
        draws = iter([self.inner[1:], self.outer])
        learning: Any = self.strategy
        learning.draw = lambda count, purpose: next(draws)
        learning.learn_relation(self.batch)
        return [p.grad for p in self.strategy.relation.parameters() if p.grad is not None]

    def twice(self) -> list[Tensor]:
        """The reference of the tests."""
        return rer_reference.reference_gradient(self.strategy, "DERpp", self.inner, self.outer, LR)

    def published(self) -> list[Tensor]:
        """The same with all that the authors' code derives."""
        self.net.zero_grad()
        self.strategy.relation.zero_grad()
        last = self.strategy.last_layer
        theta = {n: p for n, p in self.net.named_parameters() if n.startswith("head.") or not last}
        logits = [self.net(branch.x) for branch in self.inner]
        first = cross_entropy(logits[0], self.inner[0].y, reduction="none")
        losses = torch.stack([first, *replayed(logits[1:], self.inner[1:])], dim=1)
        norms = torch.stack([each.norm(dim=1) for each in logits], dim=1)
        weights = self.strategy.relation(losses.detach(), norms.detach())
        step = torch.autograd.grad(
            (weights * losses).sum(dim=1).mean(), list(theta.values()), create_graph=True
        )
        ahead = {name: p - LR * g for (name, p), g in zip(theta.items(), step, strict=True)}
        logits = [functional_call(self.net, ahead, branch.x) for branch in self.outer]
        loss = torch.stack([each.mean() for each in replayed(logits, self.outer)]).sum()
        torch.autograd.backward(loss)
        return [p.grad for p in self.strategy.relation.parameters() if p.grad is not None]


FORMS: Mapping[str, Callable[[Update], list[Tensor]]] = {
    CLEARN: Update.clearn,
    TWICE: Update.twice,
    PUBLISHED: Update.published,
}


def replayed(logits: Sequence[Tensor], branches: Sequence[Branch]) -> list[Tensor]:
    """The two losses `[n]` of DER++ on stored examples."""
    stored = branches[0].logits
    assert stored is not None
    labels = cross_entropy(logits[1], branches[1].y, reduction="none")
    return [(logits[0] - stored).square().mean(dim=1), labels]


def check(last_layer: bool) -> None:
    """Raise unless all forms give the same derivative, on a small net in float64."""
    update = Update(last_layer, width=4, side=16)
    update.double()
    expected = torch.cat([each.flatten() for each in update.twice()])
    for form in (PUBLISHED, CLEARN):  # in this order, for the latter updates
        found = torch.cat([each.flatten() for each in FORMS[form](update)])
        error = float((found - expected).norm() / expected.norm())
        if not error < 1e-8:
            raise AssertionError(f"{form} is off the reference by {error:.1e}")


def peak(form: str, last_layer: bool, in_use: bool) -> float:
    """Memory of one update in this process, in MiB."""
    FORMS[form](Update(last_layer, width=2, side=8))
    update = Update(last_layer)
    return peak_mib(lambda: FORMS[form](update), in_use=in_use)


def memory(bench: str, forms: Sequence[str], *, last_layer: bool, in_use: bool, bar: str) -> None:
    """Rows of the peak memory of forms, the last of which is the reference."""
    peaks: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(2):
        for form in forms:
            # Forked from this process while it has imported all and done nothing.
            with multiprocessing.get_context("fork").Pool(1) as pool:
                peaks[form].append(pool.apply(peak, (form, last_layer, in_use)))
    for form, values in peaks.items():
        ratios = np.divide(values, peaks[forms[-1]])
        keep(bench, form, values, "MiB", ratios=ratios, reference=forms[-1], bar=bar)


def seconds(bench: str, reference: str, *, last_layer: bool, bar: str) -> None:
    """Rows of the CPU seconds of all forms."""
    update = Update(last_layer)
    variants = {name: partial(form, update) for name, form in FORMS.items()}
    interleave(bench, variants, reference=reference, rounds=7, bar=bar)


WHAT = "RER on DER++, update of the relation network, reduced ResNet-18, batch 16"
for in_use, what, bar in ((True, "memory in use", "<= 0.6"), (False, "memory taken", "")):
    pair = [CLEARN, TWICE]
    memory(f"{WHAT}: {what}", pair, last_layer=False, in_use=in_use, bar=bar)
    pair = [CLEARN, PUBLISHED]
    memory(f"{WHAT}, last layer: {what}", pair, last_layer=True, in_use=in_use, bar="")
for last_layer in (False, True):
    check(last_layer)
seconds(WHAT, TWICE, last_layer=False, bar="<= 0.75")
seconds(f"{WHAT}, last layer", PUBLISHED, last_layer=True, bar="<= 0.6")
