"""How a full queue of prompt rows becomes a shorter one.

Shapes: C rows of the queue, d width of an embedding, K rows kept. Every eviction takes rows
`[C, d]`, oldest first, and gives `[K, d]` of the same type on the same device, with no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clearn.errors import UserError

Evict = Callable[[Tensor, int], Tensor]
"""From rows `[C, d]` and K to rows `[K, d]`."""

NEAR = 1e-6
"""Relative difference below which the rule of signs takes two numbers for equal."""

RESOLVED = 1e-8
"""Share of the largest singular value below which a Gram matrix in float64 shows only rounding."""


@torch.no_grad()
def dq_pca(rows: Tensor, keep: int, *, keep_mean: bool = False, rescale: bool = False) -> Tensor:
    """The leading principal components of the rows, each as long as its singular value (DQ-PCA).

    With mu the mean row and U S V' the singular value decomposition of Q - mu, singular values
    in descending order, this is S_k V_k' = U_k'(Q - mu). That a full queue is trimmed to its first
    principal components is published (Guo et al. 2024). Ours, as the paper's body was not at hand,
    are the centring, the signs, what becomes of the mean, and the scale:

    * U comes from the Gram matrix (Q - mu)(Q - mu)' `[C, C]`, in float64 and on the CPU whatever
      the device, so that LAPACK builds and threads change the result by rounding only.
    * Of a row r and -r, r is given if its dot product with mu is positive. Where that is 0 (to
      within `NEAR` of the length of r times that of the rows of Q), the entry of r with the largest
      magnitude is positive; of several as large (to within `NEAR`), the first.
    * Rows beyond the rank of Q - mu are exactly 0. The rank counts singular values above
      `RESOLVED` times the largest one.

    Captured are sum_k S^2 of the sum of all S^2, the energy of Q - mu. If K is at least the rank
    (which is at most C - 1), the result R has R'R = (Q - mu)'(Q - mu): Q - mu up to an orthogonal
    matrix from the left, so that its row space and energy are whole. U is not kept; hence neither
    the rows of Q nor, without `keep_mean`, their mean can be got back. Where singular values are
    equal, their rows are an arbitrary basis of a space that is not: the rows of both together
    depend on rounding, their R'R does not.

    Args:
        rows: Q, `[C, d]`.
        keep: K, in [0, C].
        keep_mean: Add mu to every row, after the signs are settled.
        rescale: Multiply the result by one number, so that the rows that are not 0 have the mean
            length of the rows of Q; after the mean has been added, where it is.

    Raises:
        UserError: K is out of range, or the rows are no matrix of finite floating-point numbers.
    """
    _check(rows, keep)
    if not torch.isfinite(rows).all():
        raise UserError(
            "rows: some of the queue's numbers are nan or infinite; expected finite ones: lower "
            "the learning rate of the prompts"
        )
    if keep == 0:
        return rows[:0].detach().clone()
    queue = rows.detach().to("cpu", torch.float64)
    mean = queue.mean(dim=0)
    centred = queue - mean
    _, vectors = torch.linalg.eigh(centred @ centred.T)  # in ascending order
    components: Tensor = vectors.flip(1)[:, :keep].T @ centred
    components = _without_rounding(components, queue)
    components = components * _signs(components, queue)[:, None]
    if keep_mean:
        components = components + mean
    if rescale:
        lengths = components.norm(dim=1)
        count = (lengths > 0).sum().clamp(min=1)
        length = lengths.sum() / count
        components = components * torch.where(length > 0, queue.norm(dim=1).mean() / length, 1)
    return components.to(rows)


def fifo(rows: Tensor, keep: int) -> Tensor:
    """The newest K rows: the oldest leave first.

    Args:
        rows: `[C, d]`, oldest first.
        keep: K, in [0, C].

    Raises:
        UserError: K is out of range, or the rows are no matrix.
    """
    _check(rows, keep)
    return rows[len(rows) - keep :].detach().clone()


def random_rows(rows: Tensor, keep: int, generator: torch.Generator) -> Tensor:
    """K of the rows, every choice being equally likely; they keep their order.

    Args:
        rows: `[C, d]`.
        keep: K, in [0, C].
        generator: Draws a permutation of C; lives on the CPU.

    Raises:
        UserError: K is out of range, or the rows are no matrix.
    """
    _check(rows, keep)
    kept = torch.randperm(len(rows), generator=generator)[:keep].sort().values
    return rows.detach()[kept.to(rows.device)]


def merge_oldest(rows: Tensor, keep: int, block: int = 1) -> Tensor:
    """Put the mean of the two oldest blocks in their place until K rows are left.

    Row j of the mean is that of row j of either block. The oldest block may be a mean already, and
    counts as one. Where fewer rows than a block are to go, or the blocks do not fit into the queue
    twice, the blocks of that merge are as much shorter. K = 0 leaves nothing.

    Args:
        rows: `[C, d]`, oldest first.
        keep: K, in [0, C].
        block: Rows of a block, >= 1: the length of a prompt.

    Raises:
        UserError: K or the block is out of range, or the rows are no matrix.
    """
    _check(rows, keep)
    if block < 1:
        raise UserError(f"block: {block} is not valid: expected the rows of a prompt, >= 1")
    rows = rows.detach().clone()
    if keep == 0:
        return rows[:0]
    while len(rows) > keep:
        size = min(block, len(rows) - keep, len(rows) // 2)
        mean = (rows[:size] + rows[size : 2 * size]) / 2
        rows = torch.cat([mean, rows[2 * size :]])
    return rows


@dataclass(frozen=True, kw_only=True)
class EvictionOptions:
    """What an eviction of `EVICTIONS` may need besides the rows; each takes its own.

    Args:
        block: Rows of a prompt, for `merge_oldest`.
        generator: On the CPU, for `random_rows`.
        keep_mean: For `dq_pca`.
        rescale: For `dq_pca`.
    """

    block: int
    generator: torch.Generator
    keep_mean: bool = False
    rescale: bool = False


EVICTIONS: dict[str, Callable[[EvictionOptions], Evict]] = {
    "pca": lambda o: partial(dq_pca, keep_mean=o.keep_mean, rescale=o.rescale),
    "fifo": lambda o: fifo,
    "random": lambda o: partial(random_rows, generator=o.generator),
    "merge": lambda o: partial(merge_oldest, block=o.block),
}
"""Evictions by name: `EVICTIONS["pca"](options)(rows, keep)`."""


def _check(rows: Tensor, keep: int) -> None:
    if rows.ndim != 2 or not rows.shape[1] or not rows.is_floating_point():
        raise UserError(
            f"rows: shape {list(rows.shape)} of {rows.dtype} is not valid: expected prompt rows "
            "[C, d], d >= 1, of a floating-point type"
        )
    if not 0 <= keep <= len(rows):
        raise UserError(
            f"keep: {keep} is not valid: expected a number of rows in [0, {len(rows)}], the rows "
            "there are"
        )


def _without_rounding(components: Tensor, queue: Tensor) -> Tensor:
    """0 in place of components `[K, d]` that stand beyond the rank.

    Two errors can stand there: that of the Gram matrix, relative to the largest component, and that
    of the mean, relative to the rows, which is all there is when these are equal.
    """
    lengths = components.norm(dim=1, keepdim=True)
    of_mean = len(queue) * torch.finfo(queue.dtype).eps * queue.norm()
    floor = torch.maximum(RESOLVED * lengths.max(), of_mean)
    return torch.where(lengths > floor, components, 0)


def _signs(components: Tensor, queue: Tensor) -> Tensor:
    """1 or -1 for each component `[K, d]`, by the rule of `dq_pca`: `[K]`.

    Not the length of the mean but that of the rows says which products are 0: a mean of 0 is known
    to the rounding of the rows only, and its direction is noise.
    """
    dots = components @ queue.mean(dim=0)
    length = queue.square().sum(dim=1).mean().sqrt()
    decided = dots.abs() > NEAR * components.norm(dim=1) * length
    sizes = components.abs()
    large = sizes >= (1 - NEAR) * sizes.amax(dim=1, keepdim=True)
    first = large.int().argmax(dim=1, keepdim=True)  # the first of those that are 1
    entries = components.gather(1, first)[:, 0]
    positive = torch.where(decided, dots, entries) >= 0
    return torch.where(positive, 1.0, -1.0).to(components)
