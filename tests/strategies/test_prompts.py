"""Soft prompts by task, for all tasks, and progressive: what is trained, kept and read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clearn.errors import UserError
from clearn.laboratory import Stop, copy_state, differences
from clearn.nets import build_net
from clearn.run import Interrupted, Run, Training
from clearn.seeding import Generators
from clearn.strategies import PerTaskPrompt, ProgressivePrompts, QTuning, SharedPrompt
from clearn.strategies.prompts import PromptStrategy
from clearn.stream import Stream
from tests.clearn.words import PAD
from tests.strategies.text_streams import TASKS, language_net, learn, text_stream

EPOCHS = 8
KINDS: list[tuple[type[PromptStrategy], dict[str, Any]]] = [
    (PerTaskPrompt, {}),
    (SharedPrompt, {}),
    (ProgressivePrompts, {}),
    (QTuning, {"shared_length": 2, "capacity": 7}),
    (QTuning, {"shared_length": 2, "capacity": None, "inference": "live"}),
]


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return text_stream(tmp_path / "tokenizer")


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_learns_resumes_and_repeats_itself(
    kind: type[PromptStrategy], options: dict[str, Any], stream: Stream, tmp_path: Path
) -> None:
    """Stopped inside a task and between two, a fresh object goes on bit by bit."""
    options = {"length": 3, "lr": 0.03, "head_lr": 0.03} | options
    whole = kind(language_net(stream), **options)
    run = learn(whole, stream, epochs=EPOCHS)
    assert float(run.result.matrix.diagonal().mean()) > 0.7
    assert torch.load(saved(whole), weights_only=True)
    per_task = EPOCHS * -(-20 // 6)
    for moment, stop in (("in", Stop(chunk=per_task + 3)), ("out", Stop(fit=2))):
        folder = tmp_path / moment
        for callbacks in ([stop], []):
            fresh = kind(language_net(stream), **options)
            again = Run(
                fresh,
                stream,
                training=Training(epochs=EPOCHS, batch_size=6, chunk_size=1),
                seed=3,
                folder=folder,
                trainer={"accelerator": "cpu", "callbacks": callbacks},
            )
            if callbacks:
                stop.run = again
                with pytest.raises(Interrupted):
                    again.fit()
            else:
                again.fit()
        changed = differences(copy_state(whole.state_dict()), copy_state(fresh.state_dict()))
        assert not changed, (moment, changed)
        assert np.array_equal(run.result.matrix, again.result.matrix, equal_nan=True)


def saved(strategy: PromptStrategy) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(strategy.state_dict(), file)
    file.seek(0)
    return file


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_language_model_never_changes(
    kind: type[PromptStrategy], options: dict[str, Any], stream: Stream
) -> None:
    strategy = kind(language_net(stream), length=3, **options)
    before = copy_state(strategy.language_model.model.state_dict())
    learn(strategy, stream)
    assert not differences(before, strategy.language_model.model.state_dict())
    kept = sum(v.nbytes for v in strategy.net.state_dict().values())
    assert kept < sum(p.nbytes for p in strategy.language_model.model.parameters()) / 4


def test_prompts_begin_as_tokens(stream: Stream) -> None:
    class Spy(ProgressivePrompts):
        def begin_task(self, task: Any) -> None:
            super().begin_task(task)
            self.__dict__.setdefault("first", []).append(self.prompt.detach().clone())

    strategy = Spy(language_net(stream), length=3)
    learn(strategy, stream)
    table = strategy.language_model.embeddings
    for rows in strategy.first:
        assert all(any(torch.equal(row, token) for token in table) for row in rows)
    assert not torch.equal(strategy.first[0], strategy.first[1])


def test_progressive_prompts_stand_newest_first(stream: Stream) -> None:
    strategy = ProgressivePrompts(language_net(stream), length=3)
    seen: list[Tensor] = []
    read = strategy.language_model.forward

    def watched(ids: Tensor, prompt: Tensor | None = None) -> Tensor:
        assert prompt is not None
        seen.append(prompt.detach().clone())
        return read(ids, prompt)

    strategy.language_model.forward = watched  # type: ignore[method-assign]
    learn(strategy, stream)
    assert {len(rows) for rows in seen} == {3 * count for count in range(1, TASKS + 1)}
    kept = strategy._kept
    assert not any(torch.equal(rows[:3], rows[3:6]) for rows in seen if len(rows) > 3)
    (batch,) = stream[2].test.batches(99)
    seen.clear()
    strategy.predict(batch.x, 2)
    assert torch.equal(seen[0], torch.cat([kept[2], kept[1], kept[0]]))
    assert strategy.bytes_stored()["prompts"] == TASKS * 3 * 16 * 4


@pytest.mark.parametrize("kind", [PerTaskPrompt, ProgressivePrompts])
def test_nothing_is_forgotten(kind: type[PromptStrategy], stream: Stream) -> None:
    matrix = learn(kind(language_net(stream), length=3, lr=0.03), stream).result.matrix
    for task in range(TASKS):
        assert (matrix[task:, task] == matrix[task, task]).all()


def test_a_per_task_prompt_knows_nothing_of_other_tasks(stream: Stream) -> None:
    """A task is learned the same whatever the prompt was before it."""

    class Disturbed(PerTaskPrompt):
        def end_task(self, task: Any) -> None:
            super().end_task(task)
            self.prompt.data.fill_(9.0)

    one, other = (
        kind(language_net(stream), length=3, lr=0.03) for kind in (PerTaskPrompt, Disturbed)
    )
    for strategy in (one, other):
        learn(strategy, stream)
    assert [rows.shape for rows in one._kept] == [(3, 16)] * TASKS
    assert all(map(torch.equal, one._kept, other._kept))
    (batch,) = stream[1].test.batches(99)
    by_hand = one.net.head(one.language_model(batch.x, one._kept[1]), 1)
    assert torch.equal(one.predict(batch.x, 1), by_hand)


def test_the_shared_prompt_goes_on(stream: Stream) -> None:
    class Spy(SharedPrompt):
        def begin_task(self, task: Any) -> None:
            before = self.prompt.detach().clone()
            super().begin_task(task)
            assert torch.equal(self.prompt, before) == (task.index > 0)

    strategy = Spy(language_net(stream), length=3, lr=0.1)
    matrix = learn(strategy, stream).result.matrix
    assert strategy.bytes_stored()["prompts"] == 3 * 16 * 4
    (batch,) = stream[0].test.batches(99)
    by_hand = strategy.net.head(strategy.language_model(batch.x, strategy.prompt), 0)
    assert torch.equal(strategy.predict(batch.x, 0), by_hand)
    assert np.isfinite(matrix[-1]).all()


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_prompt_of_a_task_that_has_not_begun(
    kind: type[PromptStrategy], options: dict[str, Any], stream: Stream
) -> None:
    """Within a task it is the one in training, between two the one that was learned last."""
    strategy = kind(language_net(stream), length=3, **options)
    strategy.prepare(stream, Generators(0))
    (batch,) = stream[3].test.batches(99)
    for task in stream.tasks[:3]:
        strategy.task = task
        strategy.begin_task(task)
        by_hand = strategy.net.head(strategy.language_model(batch.x, strategy.rows()), 3)
        assert torch.equal(strategy.predict(batch.x, 3), by_hand)
        strategy.prompt.data.add_(1.0)
        within = strategy.predict(batch.x, 3)
        assert not torch.equal(within, by_hand)
        strategy.end_task(task)
        assert torch.allclose(strategy.predict(batch.x, 3), within, atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_is_kept_moves_along(
    kind: type[PromptStrategy], options: dict[str, Any], stream: Stream
) -> None:
    """A state is loaded on the CPU, and the module moved afterwards."""
    strategy = kind(language_net(stream), length=3, **options)
    learn(strategy, stream)
    fresh = kind(language_net(stream), length=3, **options)
    fresh.prepare(stream, Generators(0))
    fresh.load_state_dict(strategy.state_dict())
    fresh.double()
    kept = [*fresh._kept, *(t for pair in getattr(fresh, "_gates", {}).values() for t in pair)]
    assert kept or kind is SharedPrompt
    assert {tensor.dtype for tensor in kept} <= {torch.float64}


def test_texts_that_lose_tokens_to_the_prompt_are_counted(stream: Stream) -> None:
    """Once for each time they are learned from; the passes of retention are none."""
    strategy = QTuning(language_net(stream), length=3, shared_length=2, capacity=7)
    strategy.language_model.window = 13
    run = learn(strategy, stream, epochs=2)
    expected = 0
    for index, task in enumerate(stream):
        room = 13 - [5, 8, 9, 9][index]
        for batch in task.train.batches(99):
            expected += 2 * int(((batch.x != PAD).sum(1) > room).sum())
    assert expected > 0
    assert run.result.extra["truncated"] == expected


def test_too_many_rows_are_known_before_the_first_task(stream: Stream) -> None:
    for kind, options, rows in (
        (ProgressivePrompts, {}, 12),
        (QTuning, {"shared_length": 2, "capacity": None}, 14),
        (QTuning, {"shared_length": 2, "capacity": 7}, 9),
    ):
        for window in (rows + 2, rows + 3):
            strategy = kind(language_net(stream), length=3, **options)
            strategy.language_model.window = window
            if window == rows + 3:
                strategy.prepare(stream, Generators(0))
                continue
            with pytest.raises(UserError, match=rf"^prompt: {rows} rows leave 2 of the {window}"):
                strategy.prepare(stream, Generators(0))


def test_errors(stream: Stream, tmp_path: Path) -> None:
    net = language_net(stream)
    with pytest.raises(UserError, match=r"^task_id: PerTaskPrompt needs the id of the task"):
        PerTaskPrompt(net).predict(torch.ones(1, 4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"^strategy\.length: 0 is not valid"):
        PerTaskPrompt(net, length=0)
    with pytest.raises(UserError, match=r"^strategy\.head_lr: 0 is not valid"):
        PerTaskPrompt(net, head_lr=0)
    others = text_stream(tmp_path / "b", scenario="class")
    with pytest.raises(UserError, match=r"^stream\.scenario: class is not valid for SharedPrompt"):
        learn(SharedPrompt(net), others)


def test_a_net_without_a_language_model(tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=r"^net\.name: MLP takes no prompts; set it to transf"):
        PerTaskPrompt(build_net("MLP", tiny_stream(scenario="task")))
