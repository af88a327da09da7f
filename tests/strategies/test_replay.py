"""ER, ER-ACE, DER and DER++ against a loop written by hand, in all scenarios, with all heads."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.buffers import BalancedBuffer, ReservoirBuffer, RingBuffer
from clearn.errors import UserError
from clearn.nets import Net, build_net
from clearn.preprocess import Preprocess
from clearn.run import Run, Training
from clearn.seeding import Generators, derive_seed
from clearn.strategies import DER, ER, ERACE, DERpp
from clearn.stream import Stream
from clearn.testing import check_strategy

METHODS: list[type[ER]] = [ER, ERACE, DER, DERpp]
WEIGHTS = {ER: {}, ERACE: {}, DER: {"alpha": 0.3}, DERpp: {"alpha": 0.3, "beta": 0.7}}
SCENARIOS = [("class", "single"), ("class", "growing"), ("domain", "single")]
SCENARIOS += [("task", "multi"), ("task", "single")]


class Double(Preprocess):
    """In float64, so that rounding does not hide a difference; the buffers stay float32."""

    def eval(self, raw: Tensor) -> Tensor:
        return super().eval(raw).double()


class Normed(nn.Sequential):
    """Two layers with batch normalisation, the second one without what it learns."""

    num_features = 12

    def __init__(self) -> None:
        linear = nn.Linear(5, 7, bias=False), nn.Linear(7, 12)
        norms = nn.BatchNorm1d(7), nn.BatchNorm1d(12, affine=False)
        super().__init__(linear[0], norms[0], nn.ReLU(), linear[1], norms[1], nn.Tanh())


def small_net(stream: Stream, head: Any, normed: bool) -> Net:
    net = build_net("MLP", stream, head=head, seed=0, hidden=(12,))
    if normed:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = Net(Normed(), net.head)
    return net.double()


def by_hand(
    method: type[ER],
    net: Net,
    stream: Stream,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    capacity: int,
    replay: int | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> ReservoirBuffer:
    """Train `net`, a forward pass for each branch; returns the buffer as it is at the end."""
    generators = Generators(seed)
    draws, augmentation = generators.get("buffer"), generators.get("replay augmentation")
    first, keeps = stream[0].train, method in (DER, DERpp)
    logits_kept = stream.num_classes if keeps else None
    buffer = ReservoirBuffer(capacity, first.shape, first.dtype, logits=logits_kept)
    met: set[int] = set()

    def forward(x: Tensor, task_id: Any) -> Tensor:
        return net(x, task_id if stream.scenario == "task" else None)

    def draw(count: int) -> tuple[Any, Tensor]:
        entries = buffer.sample(count, draws)
        x = stream.preprocess.train(entries.raw, augmentation)
        return entries, forward(x, entries.task_id)

    for task in stream:
        net.begin_task(task.index, task.classes, generators.get("net"))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        whole = next(task.train.batches(len(task.train)))
        for epoch in range(epochs):
            sampler = torch.Generator().manual_seed(derive_seed(seed, "sampler", task.index, epoch))
            for rows in torch.randperm(len(whole), generator=sampler).split(batch_size):
                raw, y = whole.raw[rows], whole.y[rows]
                x = stream.preprocess.train(raw, generators.get("augmentation"))
                logits = forward(x, task.index)
                rivals = list(range(stream.num_classes))
                if method is ERACE:
                    rivals = [c for c in rivals if c in y.tolist() or c not in met]
                column = torch.tensor([rivals.index(label) for label in y.tolist()])
                loss = cross_entropy(logits[:, rivals], column)
                if len(buffer) and not (method is ERACE and task.index == 0):
                    if keeps:
                        entries, now = draw(replay or len(rows))
                        target = entries.logits * (entries.logits > -1000)
                        apart = (now - target) * (now > -1000)
                        loss = loss + alpha * (apart**2).sum() / apart.numel()
                    if method is not DER:
                        entries, now = draw(replay or len(rows))
                        loss = loss + beta * cross_entropy(now, entries.y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                buffer.add(raw, y, task.index, draws, logits=logits.detach() if keeps else None)
                met |= set(y.tolist())
    return buffer


def check_by_hand(
    method: type[ER], net: Net, stream: Stream, *, replay: int | None = None, **training: int
) -> None:
    plain, weights = copy.deepcopy(net), WEIGHTS[method]
    ours = method(net, buffer_size=20, replay_batch_size=replay, **weights)
    Run(ours, stream, seed=3, training=Training(**training, chunk_size=5)).fit()
    buffer = by_hand(
        method, plain, stream, seed=3, capacity=20, replay=replay, **weights, **training
    )
    expected = dict(buffer.slots.named_buffers())
    found = dict(ours.buffer.slots.named_buffers())
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        torch.testing.assert_close(found[name], column, rtol=1e-5, atol=1e-5, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("scenario", "head"), SCENARIOS)
@pytest.mark.parametrize("method", METHODS)
def test_equals_a_loop_written_by_hand(
    method: type[ER], scenario: str, head: str, tiny_stream: Any
) -> None:
    """Statistics by branch; logits as before the update; insertion after it, in every epoch."""
    stream = tiny_stream(scenario=scenario, preprocess=Double((), ()))
    check_by_hand(method, small_net(stream, head, True), stream, epochs=2, batch_size=7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("replay", [3, 30])
def test_equals_it_with_other_numbers_of_replayed_examples(
    replay: int, method: type[ER], tiny_stream: Any
) -> None:
    """Fewer than the batch; and more than the batch and, in the end, than the buffer."""
    stream = tiny_stream(scenario="class", preprocess=Double((), ()))
    net = small_net(stream, "growing", False)
    check_by_hand(method, net, stream, replay=replay, epochs=2, batch_size=6)


@pytest.mark.parametrize("method", [ERACE, DERpp])
def test_equals_it_on_augmented_images(method: type[ER]) -> None:
    """Each draw is augmented by itself, from what was stored unaugmented."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8, generator=generator)
    preprocess = Double([0.5], [0.25], padding=2, flip=True)
    stream = Stream.from_arrays(
        *(images, torch.arange(24) % 4) * 2, num_tasks=2, scenario="class", preprocess=preprocess
    )
    net = build_net("SmallCNN", stream, seed=0).double()
    check_by_hand(method, net, stream, epochs=2, batch_size=5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (ER, {"buffer": "balanced", "replay_batch_size": 5, "momentum": 0.5}),
        (ERACE, {}),
        (DER, {"buffer": "ring"}),
        (DERpp, {}),
    ],
)
def test_contract(method: type[ER], options: dict[str, Any]) -> None:
    check_strategy(method, buffer_size=20, lr=0.05, **options)


HEADS = [*SCENARIOS, ("task", "growing"), ("domain", "growing")]


@pytest.mark.parametrize(("scenario", "head"), HEADS)
def test_learns_with_every_head(scenario: str, head: Any, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario=scenario)
    strategy = ER(build_net("MLP", stream, head=head, seed=0), buffer_size=40, lr=0.05)
    result = Run(strategy, stream, training=Training(epochs=10, batch_size=8)).fit()
    assert result.metrics["acc"] > 0.9
    assert set(strategy.buffer.sample(40, torch.Generator()).task_id.tolist()) == {0, 1, 2}


def test_replayed_examples_keep_their_task(tiny_stream: Any) -> None:
    """With several heads, each replayed example is judged by the head of its own task."""
    stream = tiny_stream(scenario="task")
    strategy = ER(build_net("MLP", stream, seed=0), buffer_size=8)
    strategy.prepare(stream, Generators(0))
    strategy.task = stream[1]
    first, second = (next(stream[index].train.batches(4)) for index in (0, 1))
    strategy.buffer.add(first.raw, first.y, first.task_id, Generators(1).get("buffer"))
    expected = sum(cross_entropy(strategy.net(b.x, b.task_id), b.y) for b in (first, second))
    torch.testing.assert_close(strategy.loss(second), expected)


@pytest.mark.parametrize("method", METHODS)
def test_first_batch_is_trained_on_alone(method: type[ER], tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = method(build_net("MLP", stream, seed=0))
    strategy.prepare(stream, Generators(0))
    strategy.task = stream[0]
    batch = next(stream[0].train.batches(5))
    torch.testing.assert_close(strategy.loss(batch), cross_entropy(strategy.net(batch.x), batch.y))


def test_raw_images_are_stored_and_augmented_anew() -> None:
    images = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(24) % 4
    preprocess = Preprocess([0.5], [0.25], padding=2, flip=True)
    stream = Stream.from_arrays(
        images, labels, images, labels, num_tasks=2, scenario="class", preprocess=preprocess
    )
    seen: list[Tensor] = []

    class Spy(ER):
        def augment(self, raw: Tensor, generator: str = "replay augmentation") -> Tensor:
            seen.append(raw)
            return super().augment(raw, generator)

    strategy = Spy(build_net("SmallCNN", stream, seed=0), buffer_size=6)
    Run(strategy, stream, training=Training(epochs=2, batch_size=5)).fit()
    assert seen
    originals = {bytes(image.flatten().tolist()) for image in images}
    for raw in [*seen, strategy.buffer.slots.get_buffer("raw")]:
        assert raw.dtype == torch.uint8
        assert {bytes(image.flatten().tolist()) for image in raw} <= originals


@pytest.mark.parametrize(("method", "branches"), [(ER, 2), (DERpp, 3)])
def test_the_branches_share_one_forward_pass(
    method: type[ER], branches: int, tiny_stream: Any
) -> None:
    stream = tiny_stream(scenario="class")
    strategy = method(build_net("MLP", stream, seed=0), buffer_size=8)
    strategy.prepare(stream, Generators(0))
    strategy.task = stream[1]
    sizes: list[int] = []
    strategy.net.backbone.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    batch = next(stream[0].train.batches(5))
    logits = torch.zeros(5, 6) if strategy.objective.keeps_logits else None
    strategy.buffer.add(batch.raw, batch.y, 0, Generators(0).get("buffer"), logits=logits)
    strategy.loss(batch)
    assert sizes == [5 * branches]


@pytest.mark.parametrize(
    ("method", "kind", "buffer_class", "one"),
    [
        (ER, "reservoir", ReservoirBuffer, 5 * 4 + 8 + 8),
        (ER, "balanced", BalancedBuffer, 5 * 4 + 8 + 8 + 8),
        (ERACE, "ring", RingBuffer, 5 * 4 + 8 + 8),
        (DER, "reservoir", ReservoirBuffer, 5 * 4 + 8 + 8 + 6 * 4),
        (DERpp, "reservoir", ReservoirBuffer, 5 * 4 + 8 + 8 + 6 * 4),
    ],
)
def test_bytes_include_the_buffer(
    method: type[ER], kind: Any, buffer_class: Any, one: int, tiny_stream: Any
) -> None:
    """Whether the buffer is sized in examples, or in bytes of which a few are left over."""
    stream = tiny_stream(scenario="class")
    share = 15 if kind == "ring" else 32  # a ring gives each task a third
    for size in ({"buffer_size": 45}, {"buffer_bytes": 45 * one + one - 1}):
        strategy = method(build_net("MLP", stream, seed=0), buffer=kind, **size)
        result = Run(strategy, stream).fit()
        assert isinstance(strategy.buffer, buffer_class)
        stored = [bytes_stored["buffer"] for bytes_stored in result.bytes]
        assert stored == [min(share * tasks, 45) * one for tasks in (1, 2, 3)]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ER, {"replay_batch_size": 0}, r"strategy\.replay_batch_size: 0 is not valid: expected >="),
        (DER, {"alpha": -0.1}, r"strategy\.alpha: -0\.1 is not valid: expected a number >= 0"),
        (DER, {"alpha": math.nan}, r"strategy\.alpha: nan is not valid"),
        (DERpp, {"alpha": math.inf}, r"strategy\.alpha: inf is not valid"),
        (DERpp, {"beta": -1}, r"strategy\.beta: -1 is not valid: expected a number >= 0"),
        (DERpp, {"beta": math.nan}, r"strategy\.beta: nan is not valid"),
    ],
)
def test_options_are_checked(
    method: type[ER], options: dict[str, Any], message: str, tiny_stream: Any
) -> None:
    with pytest.raises(UserError, match=message):
        method(build_net("MLP", tiny_stream()), **options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ER, {"buffer": "queue"}, r"strategy\.buffer: .*queue.*reservoir"),
        (ERACE, {"buffer_size": 0}, r"strategy\.buffer_size: 0 is not valid"),
        (ER, {"buffer_size": 5, "buffer_bytes": 5000}, "both are given"),
        (ER, {"buffer_bytes": 215}, r"buffer_bytes: 215 is too small: at 36 .*holds 5;.* 216"),
        (DER, {"buffer_bytes": 359}, r"buffer_bytes: 359 is too small: at 60 .*holds 5;.* 360"),
    ],
)
def test_buffer_is_checked_before_the_first_task(
    method: type[ER], options: dict[str, Any], message: str, tiny_stream: Any
) -> None:
    stream = tiny_stream(scenario="class")
    strategy = method(build_net("MLP", stream, seed=0), **options)
    with pytest.raises(UserError, match=message):
        strategy.prepare(stream, Generators(0))


@pytest.mark.parametrize(
    ("stream_options", "size", "batch_size", "stored"),
    [
        ({}, 3, 7, 3),  # batches larger than the buffer
        ({}, 1, 8, 1),
        ({}, 1, 1, 1),
        ({}, 20, 1, 20),
        ({"num_tasks": 1}, 20, 16, 20),
        ({}, 200, 100, 192),  # tasks of less than a batch
    ],
    ids=["small", "one slot", "one and one", "batch of one", "one task", "large batch"],
)
@pytest.mark.parametrize("method", METHODS)
def test_odd_sizes(
    method: type[ER],
    stream_options: dict[str, int],
    size: int,
    batch_size: int,
    stored: int,
    tiny_stream: Any,
) -> None:
    stream = tiny_stream(scenario="class", **stream_options)
    strategy = method(build_net("MLP", stream, seed=0, hidden=(8,)), buffer_size=size, lr=0.01)
    before = copy.deepcopy(strategy.net)
    Run(strategy, stream, training=Training(epochs=2, batch_size=batch_size)).fit()
    assert len(strategy.buffer) == stored
    for new, old in zip(strategy.net.parameters(), before.parameters(), strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(new, old)


@pytest.mark.parametrize("head", ["single", "growing"])
@pytest.mark.parametrize("method", [DER, DERpp])
def test_logits_in_short_floats_are_stored_in_long_ones(
    method: type[ER], head: Any, tiny_stream: Any
) -> None:
    stream = tiny_stream(scenario="class")
    strategy = method(build_net("MLP", stream, head=head, seed=0), buffer_size=40, lr=0.03)
    training, trainer = Training(epochs=5, batch_size=8), {"precision": "bf16-mixed"}
    result = Run(strategy, stream, training=training, trainer=trainer).fit()
    logits = strategy.buffer.slots.get_buffer("logits")
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, logits.bfloat16().float())  # autocast did reach the net
    assert result.metrics["acc"] > 0.6


def test_batch_of_mixed_tasks_is_stored_by_row(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    strategy = ER(build_net("MLP", stream, seed=0), buffer_size=4)
    strategy.prepare(stream, Generators(0))
    strategy.task = stream[1]
    first, second = (next(stream[index].train.batches(2)) for index in (0, 1))
    mixed = Batch(
        x=torch.cat([first.x, second.x]),
        y=torch.cat([first.y, second.y]),
        task_id=torch.tensor([0, 0, 1, 1]),
        raw=torch.cat([first.raw, second.raw]),
    )
    strategy.buffer.add(mixed.raw, mixed.y, mixed.task_id, Generators(0).get("buffer"))
    assert strategy.buffer.slots.get_buffer("task_id").tolist() == [0, 0, 1, 1]
    parts = [cross_entropy(strategy.net(b.x, b.task_id), b.y) for b in (first, second)]
    torch.testing.assert_close(strategy.loss(mixed), sum(parts))
