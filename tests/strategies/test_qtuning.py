"""Q-tuning: what its switches are without each other, its queue, weights and retention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.errors import UserError
from clearn.prompts import dq_pca, jsd_bound
from clearn.seeding import Generators
from clearn.strategies import ProgressivePrompts, QTuning
from clearn.stream import Stream, Task
from tests.strategies.text_streams import TASKS, language_net, learn, text_stream

OFF: dict[str, Any] = {
    "shared_length": 0, "aggregation": False, "capacity": None, "retention": 0, "order": "new_first"
}  # fmt: skip


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return text_stream(tmp_path / "tokenizer")


def make(stream: Stream, **options: Any) -> QTuning:
    given = {"length": 3, "shared_length": 2, "capacity": 7, "lr": 0.03, "head_lr": 0.05}
    return QTuning(language_net(stream), **(given | options))


def test_all_off_is_progressive_prompts_bit_by_bit(stream: Stream) -> None:
    other = ProgressivePrompts(language_net(stream), length=3, lr=0.03, head_lr=0.05)
    one = make(stream, **OFF)
    matrices = [learn(strategy, stream).result.matrix for strategy in (one, other)]
    assert np.array_equal(*matrices, equal_nan=True)
    ours, theirs = one.state_dict(), other.state_dict()
    for name, value in other.net.head.state_dict().items():
        assert torch.equal(value, one.net.head.state_dict()[name])
    assert torch.equal(ours["prompt"], theirs["prompt"])
    for task in range(TASKS):
        assert torch.equal(one.rows_of(task), other.rows_of(task))


def test_weights_of_ones_are_none(stream: Stream) -> None:
    """Step 0, with the weights on: the rows of progressive prompts, bit by bit."""

    # Newest first: the task's own, then the queue from its end.
    strategy = make(stream, **(OFF | {"aggregation": True}))
    other = ProgressivePrompts(language_net(stream), length=3, lr=0.03, head_lr=0.05)
    for each in (strategy, other):
        each.prepare(stream, Generators(0))
        each.task = stream[0]
        each.begin_task(stream[0])
        each.end_task(stream[0])
        each.task = stream[1]
        each.begin_task(stream[1])
    assert torch.equal(strategy.rows(), other.rows())
    (batch,) = stream[1].train.batches(99)
    assert torch.equal(strategy.loss(batch), other.loss(batch))


@pytest.mark.parametrize("scope", ["all", "queue"])
@pytest.mark.parametrize("order", ["old_first", "new_first"])
def test_rows_by_hand(scope: Any, order: Any, stream: Stream) -> None:
    strategy = make(stream, scope=scope, order=order)
    learn(strategy, stream)
    strategy.u.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    strategy.v.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    queue = strategy.queue.rows[:4]  # as it was in the last task, before its prompt was appended
    strategy.queue.rows = queue
    rows = [*strategy.shared, *queue, *strategy.prompt]
    weighed = [
        row if scope == "queue" and index < 2 else row * strategy.u[index] * strategy.v
        for index, row in enumerate(rows)
    ]
    if order == "new_first":
        weighed = [*weighed[:2], *weighed[6:9], *weighed[3:6], weighed[2]]
    assert torch.allclose(strategy.rows(), torch.stack(weighed))


def test_the_queue_is_cut_back_by_principal_components(stream: Stream) -> None:
    class Spy(QTuning):
        def begin_task(self, task: Task) -> None:
            before = self.queue.rows.clone()
            super().begin_task(task)
            self.__dict__.setdefault("seen", []).append((before, self.queue.rows.clone()))

    strategy = Spy(language_net(stream), length=3, shared_length=2, capacity=7, lr=0.03)
    learn(strategy, stream)
    assert [len(before) for before, _ in strategy.seen] == [0, 3, 6, 7]
    assert [len(after) for _, after in strategy.seen] == [0, 3, 4, 4]
    for before, after in strategy.seen[2:]:
        assert torch.equal(after, dq_pca(before, 4))
    assert {len(rows) for rows in strategy._kept} == {5, 8, 9}  # never more than l* + C


@pytest.mark.parametrize("eviction", ["pca", "fifo", "random", "merge"])
def test_evictions_by_name(eviction: str, stream: Stream) -> None:
    strategy = make(stream, eviction=eviction)
    matrix = learn(strategy, stream).result.matrix
    assert len(strategy.queue) == 7
    for task in range(TASKS):  # snapshots forget nothing
        assert (matrix[task:, task] == matrix[task, task]).all()


@pytest.mark.parametrize("scope", ["all", "queue"])
def test_live_inference(scope: Any, stream: Stream) -> None:
    strategy = make(stream, inference="live", capacity=9, scope=scope)
    run = learn(strategy, stream)
    # The last task began with an eviction, so the weights of the ones before have lost their rows.
    assert list(strategy._gates) == [3]
    u, v = strategy._gates[3]
    rows = torch.cat([strategy.shared, strategy.queue.rows])
    weighed = torch.outer(u, v) * rows
    if scope == "queue":
        weighed[:2] = strategy.shared
    assert torch.allclose(strategy.rows_of(3), weighed)
    for task in range(3):
        assert torch.equal(strategy.rows_of(task), rows)
    # Just after a task, both kinds of inference have the same rows.
    assert torch.allclose(strategy._kept[3], strategy.rows_of(3))
    found = run.result.extra
    assert found["live_acc"] == pytest.approx(float(run.result.matrix[-1].mean()))
    assert 0 <= found["snapshot_acc"] <= 1
    assert strategy.bytes_stored()["prompts"] == 4 * (16 * (2 + 9) + (2 + 9) + 16)


def test_inference_with_the_shared_prompt_alone(stream: Stream) -> None:
    strategy = make(stream, inference="shared")
    matrix = learn(strategy, stream).result.matrix
    found = strategy.metrics()
    assert strategy.training
    assert strategy.inference == "shared"
    assert found["shared_acc"] == pytest.approx(float(matrix[-1].mean()))
    assert strategy.bytes_stored()["prompts"] == strategy.shared.nbytes
    strategy.eval()
    for task in range(TASKS):
        batch = next(stream[task].test.batches(64))
        alone = strategy.net.head(strategy.language_model(batch.x, strategy.shared), task)
        assert torch.allclose(strategy.predict(batch.x, task), alone, equal_nan=True)
    assert "shared_acc" not in learn(make(stream, shared_length=0), stream).result.extra


def test_without_weights_none_are_stored(stream: Stream) -> None:
    strategy = make(stream, inference="live", capacity=9, aggregation=False)
    learn(strategy, stream)
    assert strategy.bytes_stored()["prompts"] == 4 * 16 * (2 + 9)


def test_what_goes_on_and_what_starts_afresh(stream: Stream) -> None:
    """P* goes on from task to task; prompt, weights, critic and cache do not."""

    class Spy(QTuning):
        def begin_task(self, task: Task) -> None:
            before = [self.shared.detach().clone(), self.prompt.detach().clone()]
            scores = [p.detach().clone() for p in self.critic.parameters()] if self.critic else []
            super().begin_task(task)
            assert self._cache is None
            assert (self.u == 1).all()
            assert (self.v == 1).all()
            assert torch.equal(self.shared, before[0]) == (task.index > 0)
            assert not torch.equal(self.prompt, before[1])
            assert self.critic is not None
            drawn = list(self.critic.parameters())
            assert not any(map(torch.equal, drawn, scores))
            self.__dict__.setdefault("begun", []).append(self.shared.detach().clone())

        def end_task(self, task: Task) -> None:
            assert not torch.equal(self.shared, self.begun[-1])
            assert not (self.u == 1).all()
            assert (self._cache is None) == (task.index == 0)
            super().end_task(task)

    strategy = Spy(language_net(stream), length=3, shared_length=2, capacity=7, lr=0.03)
    learn(strategy, stream)
    assert len(strategy.begun) == TASKS


def test_snapshots_are_the_default(stream: Stream) -> None:
    run = learn(make(stream), stream)
    found = run.result.extra
    assert found["snapshot_acc"] == pytest.approx(float(run.result.matrix[-1].mean()))


def test_retention_by_hand(stream: Stream) -> None:
    strategy = make(stream, retention=0.5, retention_share=1.0)
    strategy.prepare(stream, Generators(0))
    for task in stream.tasks[:2]:
        strategy.task = task
        strategy.begin_task(task)
        if task.index == 0:
            (batch,) = task.train.batches(99)
            assert torch.equal(strategy.loss(batch), cross_entropy(strategy.logits(batch), batch.y))
            strategy.end_task(task)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:6]
    (batch,) = stream[1].train.batches(6, order=order)
    loss = strategy.loss(batch)
    assert strategy.critic is not None
    model = strategy.language_model
    before = model(batch.x, strategy._kept[0])  # all that task 0 had, un-trimmed
    alone = model(batch.x, strategy.shared)
    draws = Generators(0).get("retention", "cpu")
    expected = cross_entropy(strategy.logits(batch), batch.y) - 0.5 * jsd_bound(
        strategy.critic, alone, before, draws
    )
    assert torch.allclose(loss, expected, atol=1e-5)
    loss.backward()
    for parameter in (strategy.shared, strategy.prompt, strategy.u, strategy.v):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(p.grad is not None for p in strategy.critic.parameters())


def test_a_share_of_the_batch_and_batches_of_one(stream: Stream) -> None:
    strategy = make(stream, retention_share=0.34)
    strategy.prepare(stream, Generators(0))
    for task in stream.tasks[:2]:
        strategy.task = task
        strategy.begin_task(task)
        if task.index == 0:
            strategy.end_task(task)
    sizes: list[int] = []
    read = strategy.language_model.forward

    def watched(ids: Tensor, prompt: Tensor | None = None) -> Tensor:
        if prompt is strategy.shared:
            sizes.append(len(ids))
        return read(ids, prompt)

    strategy.language_model.forward = watched  # type: ignore[method-assign]
    for count in (6, 3, 1):
        strategy.loss(next(stream[1].train.batches(count)))
    assert sizes == [2, 2]  # never fewer than two, and none where there is but one text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_length": -1}, r"^strategy\.shared_length: -1"),
        ({"retention": -0.1}, r"^strategy\.retention: -0\.1"),
        ({"retention_share": 0.0}, r"^strategy\.retention_share: 0\.0"),
        ({"gate_lr": 0.0}, r"^strategy\.gate_lr: 0\.0"),
        ({"critic_lr": 0.0}, r"^strategy\.critic_lr: 0\.0"),
        ({"eviction": "pac"}, r"^strategy\.eviction: 'pac' is unknown; did you mean pca"),
        ({"scope": "al"}, r"^strategy\.scope: 'al' is unknown.*all"),
        ({"order": "old"}, r"^strategy\.order: 'old' is unknown.*old_first"),
        ({"inference": "shared", "shared_length": 0}, r"^strategy\.inference: .*shared_length"),
        ({"inference": "lively"}, r"^strategy\.inference: 'lively' is unknown.*live"),
        ({"capacity": 2}, r"^capacity: a queue of 2 rows cannot hold one prompt of 3"),
    ],
)
def test_errors(options: dict[str, Any], message: str, stream: Stream) -> None:
    with pytest.raises(UserError, match=message):
        make(stream, **options)
