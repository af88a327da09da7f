"""Experience replay against a loop written by hand, in every scenario and with every head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.buffers import BalancedBuffer, ReservoirBuffer
from clearn.errors import UserError
from clearn.nets import build_net
from clearn.preprocess import Preprocess
from clearn.run import Run, Training
from clearn.seeding import Generators, derive_seed
from clearn.strategies import ER
from clearn.testing import check_strategy


@pytest.mark.parametrize("options", [{}, {"buffer": "balanced", "replay_batch_size": 5}])
def test_contract(options: dict[str, Any]) -> None:
    check_strategy(ER, buffer_size=20, lr=0.05, momentum=0.5, **options)


@pytest.mark.parametrize("replay", [None, 3])
def test_equals_a_loop_written_by_hand(replay: int | None, tiny_stream: Any) -> None:
    """One mean over both parts; the draw comes before the batch is added, in every epoch."""
    stream = tiny_stream(scenario="class")
    ours = ER(build_net("MLP", stream, seed=0), buffer_size=20, replay_batch_size=replay)
    Run(ours, stream, seed=3, training=Training(epochs=2, batch_size=7, chunk_size=5)).fit()

    net = build_net("MLP", stream, seed=0)
    buffer, draws = ReservoirBuffer(20, (5,), torch.float32), Generators(3).get("buffer")
    for task in stream:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        whole = next(task.train.batches(len(task.train)))
        for epoch in range(2):
            sampler = torch.Generator().manual_seed(derive_seed(3, "sampler", task.index, epoch))
            for rows in torch.randperm(len(whole), generator=sampler).split(7):
                x, y = whole.raw[rows], whole.y[rows]
                losses = cross_entropy(net(x), y, reduction="none")
                if len(buffer):
                    old_x, old_y, *_ = buffer.sample(replay or len(rows), draws)
                    replayed = cross_entropy(net(old_x), old_y, reduction="none")
                    losses = torch.cat([losses, replayed])
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
                buffer.add(x, y, task.index, draws)
    for name, value in buffer.slots.state_dict().items():
        assert torch.equal(ours.buffer.slots.state_dict()[name], value), name
    for ours_p, plain_p in zip(ours.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours_p, plain_p)


HEADS = [("task", "multi"), ("task", "single"), ("task", "growing"), ("class", "single")]
HEADS += [("class", "growing"), ("domain", "single"), ("domain", "growing")]


@pytest.mark.parametrize(("scenario", "head"), HEADS)
def test_learns_with_every_head(scenario: str, head: Any, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario=scenario)
    strategy = ER(build_net("MLP", stream, head=head, seed=0), buffer_size=40)
    result = Run(strategy, stream, training=Training(epochs=10, batch_size=8)).fit()
    assert result.metrics["acc"] > 0.9
    assert set(strategy.buffer.sample(40, torch.Generator()).task_id.tolist()) == {0, 1, 2}


def test_replayed_examples_keep_their_task(tiny_stream: Any) -> None:
    """With several heads, each replayed example is judged by the head of its own task."""
    stream = tiny_stream(scenario="task")
    strategy = ER(build_net("MLP", stream, seed=0), buffer_size=8)
    strategy.prepare(stream, Generators(0))
    first, second = (next(stream[index].train.batches(4)) for index in (0, 1))
    strategy.buffer.add(first.raw, first.y, first.task_id, Generators(1).get("buffer"))
    expected = torch.cat(
        [
            cross_entropy(strategy.net(b.x, b.task_id), b.y, reduction="none")
            for b in (first, second)
        ]
    ).mean()
    torch.testing.assert_close(strategy.loss(second), expected)


def test_first_batch_is_trained_on_alone(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = ER(build_net("MLP", stream, seed=0))
    strategy.prepare(stream, Generators(0))
    batch = next(stream[0].train.batches(5))
    torch.testing.assert_close(strategy.loss(batch), cross_entropy(strategy.net(batch.x), batch.y))


def test_raw_images_are_stored_and_augmented_anew(tiny_stream: Any) -> None:
    from clearn.stream import Stream

    images = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(24) % 4
    preprocess = Preprocess([0.5], [0.25], padding=2, flip=True)
    stream = Stream.from_arrays(
        images, labels, images, labels, num_tasks=2, scenario="class", preprocess=preprocess
    )
    seen: list[torch.Tensor] = []

    class Spy(ER):
        def augment(self, raw: torch.Tensor) -> torch.Tensor:
            seen.append(raw)
            return super().augment(raw)

    strategy = Spy(build_net("SmallCNN", stream, seed=0), buffer_size=6)
    Run(strategy, stream, training=Training(epochs=2, batch_size=5)).fit()
    assert seen
    originals = {bytes(image.flatten().tolist()) for image in images}
    for raw in [*seen, strategy.buffer.slots.get_buffer("raw")]:
        assert raw.dtype == torch.uint8
        assert {bytes(image.flatten().tolist()) for image in raw} <= originals


def test_batch_normalisation_sees_both_parts_at_once(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = ER(build_net("MLP", stream, seed=0), buffer_size=8)
    strategy.prepare(stream, Generators(0))
    sizes: list[int] = []
    strategy.net.backbone.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    batch = next(stream[0].train.batches(5))
    strategy.buffer.add(batch.raw, batch.y, 0, Generators(0).get("buffer"))
    strategy.loss(batch)
    assert sizes == [10]


@pytest.mark.parametrize(("balanced", "kind"), [(False, ReservoirBuffer), (True, BalancedBuffer)])
def test_bytes_include_the_buffer(balanced: bool, kind: Any, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = ER(build_net("MLP", stream, seed=0), buffer_size=50, balanced=balanced)
    result = Run(strategy, stream).fit()
    one = 5 * 4 + 8 + 8 + 8 * balanced
    assert isinstance(strategy.buffer, kind)
    assert [stored["buffer"] for stored in result.bytes] == [32 * one, 50 * one, 50 * one]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer_size": 0}, r"strategy\.buffer_size: 0 is not valid: expected >= 1"),
        ({"replay_batch_size": 0}, r"strategy\.replay_batch_size: 0 is not valid"),
    ],
)
def test_options_are_checked(options: dict[str, int], message: str, tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=message):
        ER(build_net("MLP", tiny_stream()), **options)


def test_one_slot_and_a_batch_of_one(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = ER(build_net("MLP", stream, seed=0), buffer_size=1, lr=0.01)
    Run(strategy, stream, training=Training(batch_size=1)).fit()
    assert len(strategy.buffer) == 1


def test_batch_of_mixed_tasks_is_stored_by_row(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    strategy = ER(build_net("MLP", stream, seed=0), buffer_size=4)
    strategy.prepare(stream, Generators(0))
    first, second = (next(stream[index].train.batches(2)) for index in (0, 1))
    mixed = Batch(
        x=torch.cat([first.x, second.x]),
        y=torch.cat([first.y, second.y]),
        task_id=torch.tensor([0, 0, 1, 1]),
        raw=torch.cat([first.raw, second.raw]),
    )
    strategy.buffer.add(mixed.raw, mixed.y, mixed.task_id, Generators(0).get("buffer"))
    assert strategy.buffer.slots.get_buffer("task_id").tolist() == [0, 0, 1, 1]
    assert torch.isfinite(strategy.loss(mixed))
