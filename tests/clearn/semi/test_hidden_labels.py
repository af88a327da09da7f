"""Labels of unlabelled examples reach no batch and no strategy."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clearn import Examples, Run, Training, build_net
from clearn.batch import Batch
from clearn.errors import UserError
from clearn.preprocess import Preprocess
from clearn.semi import UNKNOWN, Labels, Unlabelled
from clearn.strategies import Naive
from clearn.stream import Stream
from tests.clearn.semi.few import arrays, content, listed, make, plain, pool


def test_batches_of_a_pool_have_no_labels() -> None:
    stream = make({"labels_per_class": 2})
    examples = pool(stream, 1)
    order = torch.randperm(len(examples))
    for part in (
        examples,
        examples.select(order),
        examples.select(order[:7]).select(torch.tensor([2, 2, 0])),
        Examples.concat([examples, examples.select(order[:3])]),
        Examples.concat([examples]).select(order),
        Examples.concat([stream[0].train.select(order[:0]), examples]),
        pickle.loads(pickle.dumps(examples)),
    ):
        assert part.labels.unique().tolist() == [UNKNOWN]
        for train in (False, True):
            for batch in part.batches(7, train=train, order=torch.arange(len(part)).flip(0)):
                assert batch.y.unique().tolist() == [UNKNOWN]
    assert isinstance(examples.select(order), Unlabelled)
    assert torch.equal(content(examples.select(order)).raw, content(examples).raw[order])


def test_labelled_and_unlabelled_examples_together() -> None:
    stream = make({"labels_per_class": 2})
    both = Examples.concat([stream[0].train, pool(stream, 1)])
    assert both.labels.tolist() == [*stream[0].train.labels.tolist(), *[UNKNOWN] * 30]
    assert content(both).y.equal(both.labels)


def test_a_pool_of_its_own_arguments() -> None:
    train = plain()[0].train
    ((store, transform),) = train._sources
    preprocess = Preprocess((), ())
    made = Unlabelled(store, train.rows, train.labels, 3, preprocess, transform)
    assert made.labels.unique().tolist() == [UNKNOWN]
    assert content(made).task_id == 3
    positions = torch.arange(len(made))
    assert int(made.correct(positions, train.labels)) == len(made)
    with pytest.raises(UserError, match="labels: 3 of them do not go with"):
        Unlabelled(store, train.rows, train.labels[:3], 3, preprocess)


def test_guesses_that_are_right() -> None:
    examples = pool(make({"labels_per_class": 2}), 1)
    truth = content(examples).raw[:, 0].long()
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(examples), generator=random)
    guesses = torch.randint(3, 6, (len(examples),), generator=random)
    guesses[::5] = UNKNOWN
    pairs = zip(order.tolist(), guesses.tolist(), strict=True)
    expected = sum(int(truth[place]) == guess for place, guess in pairs)
    found = examples.correct(order, guesses)
    assert (found.dtype, found.shape, int(found)) == (torch.int64, (), expected)
    assert 0 < expected < len(examples)
    assert int(examples.select(order).correct(torch.arange(len(examples)), guesses)) == expected
    chosen = examples.select(order[:9]).select(torch.tensor([8, 3]))
    assert int(chosen.correct(torch.tensor([1, 0]), truth[order[[3, 8]]])) == 2
    assert int(examples.correct(order, torch.full_like(guesses, UNKNOWN))) == 0
    assert int(examples.correct(order[:0], guesses[:0])) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_guesses_on_a_device_are_counted_there() -> None:
    examples = pool(make({"labels_per_class": 2}))
    truth = content(examples).raw[:, 0].long().cuda()
    order = torch.randperm(len(examples))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = examples.correct(torch.arange(len(examples)), truth)
        examples.select(order)
        examples.correct(torch.arange(3), truth[:3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found.device.type, int(found)) == ("cuda", len(examples))
    assert int(examples.correct(torch.arange(3).cuda(), truth[:3])) == 3
    assert int(examples.correct(torch.arange(3), truth[:3].cpu())) == 3


def test_a_pickle_has_no_true_labels() -> None:
    examples = pool(make({"labels_per_class": 2}))
    assert int(examples.correct(torch.arange(1), content(examples).raw[:1, 0].long())) == 1
    for copy in (
        pickle.loads(pickle.dumps(examples)),
        pickle.loads(pickle.dumps(examples)).select(torch.arange(4)),
    ):
        assert copy._truth is copy._near is None
        with pytest.raises(UserError, match="unlabelled: the true labels are not in a copy"):
            copy.correct(torch.arange(2), torch.arange(2))
    assert int(examples.correct(torch.arange(2), content(examples).raw[:2, 0].long())) == 2


def hidden_two_ways(tmp_path: Path) -> tuple[Stream, Stream]:
    """Streams with the same rows and labelled rows, whose other labels differ in every task."""
    x, y = arrays()
    one = make({"labels_per_class": 2})
    path = listed(one, tmp_path / "rows")
    labelled = torch.cat([task.train.rows for task in one]).numpy()
    other = np.where(y < 3, (y + 1) % 3, 3 + (y - 2) % 3)
    other[labelled] = y[labelled]
    assert (other != y).sum() == len(y) - len(labelled)
    streams = [
        Stream.from_arrays(x, labels, *arrays(4), num_tasks=2).semi_supervised(
            Labels(label_file=path)
        )
        for labels in (y, other)
    ]
    return streams[0], streams[1]


class Spy(Naive):
    """Takes all it can get of a batch of unlabelled examples into its loss."""

    def loss(self, batch: Batch) -> Tensor:
        examples = self.task.unlabelled
        assert examples is not None
        order = torch.randperm(len(examples), generator=self.generators.get("augmentation", "cpu"))
        seen = next(examples.batches(8, order=order, train=True))
        logits = self.net(seen.x, None)
        return (
            super().loss(batch) + (logits.sum(1) * (seen.y + examples.labels.sum())).square().mean()
        )

    def begin_task(self, task: Any) -> None:
        super().begin_task(task)
        self.task = task


def test_true_labels_reach_no_batch_and_no_strategy(tmp_path: Path) -> None:
    one, other = hidden_two_ways(tmp_path)
    outcomes = []
    for stream in (one, other):
        batches = []
        for task in stream:
            for part in (task.train, task.unlabelled):
                assert part is not None
                generator = torch.Generator().manual_seed(3)
                for batch in part.batches(7, train=True, generator=generator):
                    batches += [batch.x, batch.y, batch.raw, torch.tensor(batch.task_id)]
        for name in ("train", "unlabelled"):
            for experience in getattr(stream.benchmark, f"{name}_stream"):
                batches.append(torch.tensor(list(experience.dataset.targets)))
                batches += [torch.as_tensor(v) for item in experience.dataset for v in item]
        strategy = Spy(build_net("MLP", stream, seed=0, hidden=[8]), lr=1e-4)
        result = Run(strategy, stream, training=Training(epochs=2, batch_size=4)).fit()
        state = strategy.state_dict()
        outcomes.append([*batches, torch.from_numpy(result.matrix), *state.values()])
    assert len(outcomes[0]) > 100
    for left, right in zip(*outcomes, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    # What differs is there, but only `correct` tells.
    truth = content(pool(one)).raw[:, 0].long()
    positions = torch.arange(len(truth))
    assert int(pool(one).correct(positions, truth)) == len(truth)
    assert int(pool(other).correct(positions, truth)) == 6


def test_a_strategy_without_use_for_a_pool_learns_the_labelled_examples() -> None:
    stream = make({"labels_per_class": 4})
    rows = torch.cat([task.train.rows for task in stream]).sort().values.numpy()
    x, y = arrays()
    few = Stream.from_arrays(x[rows], y[rows], *arrays(4), num_tasks=2)
    matrices = [
        Run(
            Naive(build_net("MLP", s, seed=0, hidden=[16]), lr=0.05), s, training=Training(epochs=4)
        )
        .fit()
        .matrix
        for s in (stream, few)
    ]
    assert np.array_equal(*matrices, equal_nan=True)
