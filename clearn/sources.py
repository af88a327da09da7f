"""Where examples come from: arrays, data sets, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clearn.preprocess import Preprocess
from clearn.store import ResidentStore, Store


@dataclass(frozen=True)
class Source:
    """A data set: stored examples and the data set's own labels, before any split into tasks."""

    name: str
    train: Store
    train_labels: Tensor
    test: Store
    test_labels: Tensor
    class_names: tuple[str, ...]
    preprocess: Preprocess


def from_tensors(
    x: Any,
    y: Any,
    x_test: Any,
    y_test: Any,
    name: str,
    preprocess: Preprocess | None,
    class_names: Sequence[str] | None,
) -> Source:
    """A source of arrays."""
    x, y, x_test, y_test = (torch.as_tensor(a) for a in (x, y, x_test, y_test))
    names = class_names or [str(c) for c in range(int(y.max()) + 1)]
    x, x_test = (a if a.dtype == torch.uint8 else a.float() for a in (x, x_test))
    return Source(
        name,
        ResidentStore(x),
        y.long(),
        ResidentStore(x_test),
        y_test.long(),
        tuple(names),
        preprocess or Preprocess((), ()),
    )


def digits() -> Source:
    """Handwritten digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.as_tensor(data.images / 16 * 255).round().to(torch.uint8)[:, None]
    y = torch.as_tensor(data.target)
    test = torch.arange(len(y)) % 5 == 0
    return from_tensors(x[~test], y[~test], x[test], y[test], "SplitDigits", None, None)
