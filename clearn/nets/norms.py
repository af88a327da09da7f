"""Batch normalisation that also takes one value for each channel."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class _TakesOne(_BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, ...]` to the same shape."""
        if x.numel() != x.shape[1]:
            return super().forward(x)
        if self.running_mean is None:
            shape = [-1, *(1,) * (x.ndim - 2)]
            zero = x - x
            return zero if self.weight is None else zero + self.bias.reshape(shape)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class RowNorm(_TakesOne, nn.BatchNorm1d):
    """Batch normalisation of rows that also takes a single row, as the last batch of an epoch may.

    A row by itself has no variance. In training it is normalised with the running statistics, which
    it leaves as they are; without such it is its own mean, so that it becomes zero, or the offset.
    """


class MapNorm(_TakesOne, nn.BatchNorm2d):
    """The same of maps, of which a small image leaves one of a single pixel."""
