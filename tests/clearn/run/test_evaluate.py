"""Accuracy on texts: of all of them, in batches that hold little padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clearn.examples import Examples
from clearn.preprocess import Preprocess
from clearn.run.evaluate import accuracy, validate
from clearn.store import RaggedStore

LENGTHS = torch.tensor([40, 3, 17, 9, 33, 1, 24, 8])


class Longer:
    """Says 1 of texts of more than 16 tokens, and takes down how wide batches are."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.widths: list[int] = []

    def predict(self, x: Tensor, task_id: int | None) -> Tensor:
        self.widths.append(x.shape[1])
        return torch.nn.functional.one_hot(((x > 0).sum(1) > 16).long(), 2).float()


def texts(labels: Tensor) -> Examples:
    values = torch.ones(int(LENGTHS.sum()), dtype=torch.int32)
    store = RaggedStore(values, LENGTHS, max_length=40, pad=0)
    return Examples(store, torch.arange(len(LENGTHS)), labels, 0, Preprocess((), ()))


@pytest.mark.parametrize("measure", [accuracy, validate])
def test_short_texts_are_not_padded_to_long_ones(measure: Any) -> None:
    labels = (LENGTHS > 16).long()
    labels[2] = 0  # one mistake in eight
    strategy = Longer()
    found = measure(strategy, texts(labels), None, batch_size=3)
    share = found if isinstance(found, float) else found.accuracy
    assert share == 7 / 8
    assert strategy.widths == [8, 24, 40]
