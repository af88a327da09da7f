"""A Gaussian of each class in feature space, kept without a covariance matrix where that is less.

Shapes: C classes, F features, N features of one class, K classes known, S samples of each class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clearn.errors import UserError

JITTER = 1e-4
"""What is added to the variance of every feature, as in SLCA (Zhang et al. 2023)."""


class ClassGaussians(nn.Module):
    """Means and covariances of classes, from which features are drawn.

    The covariance of a class is the unbiased one of its features + `JITTER` I. Of fewer than F
    features their deviations from the mean are kept, `[N, F]`, never a matrix `[F, F]`: with the
    deviations D and standard normal e, e', the vector mean + D' e / sqrt(N - 1) + sqrt(JITTER) e'
    has exactly that covariance. Of F and more the triangular factor of the covariance is kept.

    A class with a single feature has no covariance. It is drawn with the mean of the covariances
    of those classes that have one at that time, or with `JITTER` I where there is none.

    Args:
        num_classes: C.
        num_features: F.

    Attributes:
        means: `[C, F]`, 0 of a class that is not known.
    """

    means: Tensor

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(num_classes, num_features))
        # By label a matrix A `[R, F]`, R < F, with the covariance A'A + JITTER I (R = 0: a single
        # feature), or the rows of the triangle R `[F, F]`, laid end to end, with the one of R'R.
        self._factors: dict[int, Tensor] = {}

    @property
    def known(self) -> tuple[int, ...]:
        """Labels of the classes kept, in ascending order."""
        return tuple(sorted(self._factors))

    @torch.no_grad()
    def keep(self, label: int, features: Tensor) -> None:
        """Keep mean and covariance of a class, in place of what was kept of it.

        Args:
            label: In [0, C).
            features: `[N, F]`, N >= 1.

        Raises:
            UserError: There are no features.
        """
        count, width = features.shape
        if not count:
            raise UserError(f"features: class {label} has none; expected one at least")
        features = features.to(self.means)
        mean = features.mean(dim=0)
        self.means[label] = mean
        if count == 1:
            self._factors[label] = features.new_empty(0, width)
            return
        deviations = (features - mean) / math.sqrt(count - 1)
        self._factors[label] = deviations if count < width else _triangle(deviations, JITTER)

    @torch.no_grad()
    def sample(
        self, count: int, scale: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw features of every known class, which stand class by class in the order of `known`.

        Args:
            count: S, of each class.
            scale: What the mean of each class is multiplied by, `[C]`.
            generator: On any device. Draws S F normal numbers of each class, all at once, then S R
                of each class that is kept by a matrix `[R, F]` (or of those it takes the mean of).

        Returns:
            Features `[K S, F]` and their labels, int64 `[K S]`.
        """
        width = self.means.shape[1]
        drawn = self._normal((len(self._factors), count, width), generator)
        means = self.means * scale.to(self.means)[:, None]
        pooled: Tensor | None = None
        # Class by class, S = 256, F = 768: the block of 0.8 MB stays in the cache for all of this.
        # All classes in one product, padded to the largest R, would move it from and to memory.
        for block, label in zip(drawn, self.known, strict=True):
            factor = self._factors[label]
            if not len(factor):
                pooled = self._pooled() if pooled is None else pooled
                factor = pooled
            if factor.ndim == 1:
                block.copy_(block @ _unpacked(factor, width))
            else:
                block.mul_(math.sqrt(JITTER))
                block.addmm_(self._normal((count, len(factor)), generator), factor)
            block.add_(means[label])
        labels = torch.tensor(self.known, dtype=torch.int64, device=drawn.device)
        return drawn.flatten(0, 1), labels.repeat_interleave(count)

    def bytes_stored(self) -> int:
        """Bytes of the means and covariances of known classes."""
        factors = sum(factor.nbytes for factor in self._factors.values())
        return factors + len(self._factors) * self.means[0].nbytes

    def get_extra_state(self) -> dict[int, Tensor]:
        """What is kept of covariances, by label; shapes differ, and so these are no buffers."""
        return dict(self._factors)

    def set_extra_state(self, state: dict[int, Tensor]) -> None:
        """Take over what `get_extra_state` gave."""
        self._factors = {label: factor.to(self.means) for label, factor in state.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> ClassGaussians:
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        self._factors = {label: fn(factor) for label, factor in self._factors.items()}
        return self

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        drawn = torch.randn(
            shape, generator=generator, device=generator.device, dtype=self.means.dtype
        )
        return drawn.to(self.means.device)

    def _pooled(self) -> Tensor:
        """The factor of the mean of all covariances, in either form; `[0, F]` where there is none.

        The mean of A'A is that of the rows of all A together, each divided by the square root of
        their number.
        """
        width = self.means.shape[1]
        factors = [self._factors[label] for label in self.known if len(self._factors[label])]
        matrices = [f if f.ndim == 2 else _unpacked(f, width) for f in factors]
        rows = torch.cat([self.means[:0], *matrices]) / math.sqrt(max(1, len(matrices)))
        if len(rows) < width:
            return rows
        # A triangle has the jitter in it already.
        jittered = sum(factor.ndim == 2 for factor in factors) / len(factors)
        return _triangle(rows, JITTER * jittered)


def _triangle(rows: Tensor, jitter: float) -> Tensor:
    """The upper triangle R `[F, F]` with R'R = rows'rows + jitter I, its rows laid end to end.

    It is the Cholesky factor, but made without that sum of products, whose rounding can exceed the
    jitter and leave a matrix that has no such factor.

    Args:
        rows: `[R, F]`, R >= F.
        jitter: >= 0.
    """
    identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    stacked = torch.cat([rows, math.sqrt(jitter) * identity])
    triangle: Tensor = torch.linalg.qr(stacked, mode="r").R
    triangle = triangle * triangle.diagonal().sign()[:, None]
    return triangle.masked_select(torch.ones_like(identity, dtype=torch.bool).triu())


def _unpacked(triangle: Tensor, width: int) -> Tensor:
    """The matrix `[width, width]` that `_triangle` laid out."""
    matrix = triangle.new_zeros(width, width)
    return matrix.masked_scatter_(torch.ones_like(matrix, dtype=torch.bool).triu(), triangle)
