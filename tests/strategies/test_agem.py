"""A-GEM against its equation and a loop written by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.batch import Batch
from clearn.buffers import RingBuffer
from clearn.errors import UserError
from clearn.nets import Net, build_net
from clearn.run import Run, Training
from clearn.seeding import Generators
from clearn.strategies import AGEM, Naive
from clearn.strategies.agem import project
from clearn.stream import Stream
from clearn.testing import check_strategy
from tests.strategies.by_hand import Double, batches

SEED, EPOCHS, BATCH, SIZE = 5, 2, 7, 10


def flat(parts: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([part.double().numpy().ravel() for part in parts])


@given(
    seed=st.integers(0, 2**20),
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4),
    scale=st.sampled_from([1e-6, 1.0, 1e5]),
    lean=st.sampled_from([-1.0, 0.0, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_project(
    seed: int, shapes: list[list[int]], scale: float, lean: float, dtype: torch.dtype
) -> None:
    draws = torch.Generator().manual_seed(seed)
    references = [scale * torch.randn(s, generator=draws, dtype=dtype) for s in shapes]
    gradients = [torch.randn(r.shape, generator=draws, dtype=dtype) + lean * r for r in references]
    g, r = flat(gradients), flat(references)
    places = [part.data_ptr() for part in gradients]
    project(gradients, references)
    assert places == [part.data_ptr() for part in gradients]
    assert np.array_equal(flat(references), r)
    expected = g - min(0.0, g @ r) / (r @ r) * r
    rounding = 100 * torch.finfo(dtype).eps
    np.testing.assert_allclose(flat(gradients), expected, rtol=0, atol=rounding * abs(g).max())
    assert flat(gradients) @ r >= -rounding * np.linalg.norm(g) * np.linalg.norm(r)
    if g @ r > rounding * np.linalg.norm(g) * np.linalg.norm(r):
        assert np.array_equal(flat(gradients), g)


def test_project_against_nothing() -> None:
    gradients = [torch.tensor([1.0, -2.0]), torch.tensor(3.0)]
    project(gradients, [torch.zeros(2), torch.tensor(0.0)])
    assert [part.tolist() for part in gradients] == [[1.0, -2.0], 3.0]


class Spy(AGEM):
    """Takes down which tasks are in the memory at each step."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.seen: list[tuple[int, set[int], int]] = []

    def step(self, batch: Batch) -> Tensor:
        stored = self.buffer.sample(len(self.buffer), torch.Generator()).task_id
        self.seen.append((self.task.index, set(stored.tolist()), len(self.buffer)))
        return super().step(batch)


@pytest.mark.parametrize("buffer", ["ring", "reservoir", "balanced"])
def test_the_memory_is_of_earlier_tasks(buffer: Any, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    strategy = Spy(build_net("MLP", stream, seed=0), buffer=buffer, buffer_size=12)
    result = Run(strategy, stream, training=Training(epochs=2, batch_size=16)).fit()
    assert len(strategy.seen) == 3 * 2 * 2
    ring = buffer == "ring"
    for task, tasks, size in strategy.seen:
        assert tasks == set(range(task))
        assert size == (4 * task if ring else 12 * (task > 0))
    one = 5 * 4 + 8 + 8 + (8 if buffer == "balanced" else 0)
    assert [b["buffer"] for b in result.bytes] == [
        one * n for n in ([4, 8, 12] if ring else [12] * 3)
    ]


def by_hand(net: Net, stream: Stream, replay: int | None) -> int:
    """Train `net`; returns how many steps had to be corrected."""
    draws, first, corrected = Generators(SEED).get("buffer"), stream[0].train, 0
    memory = RingBuffer(SIZE, first.shape, first.dtype, num_tasks=len(stream))
    head = Generators(SEED).get("net")

    def gradient(x: Tensor, y: Tensor, task_id: int | Tensor) -> Tensor:
        net.zero_grad()
        logits = net(x, task_id if stream.scenario == "task" else None)
        cross_entropy(logits, y).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        return torch.cat([grad.flatten() for grad in grads])

    for task in stream:
        net.begin_task(task.index, task.classes, head)
        for epoch in range(EPOCHS):
            for batch in batches(task, seed=SEED, epoch=epoch, batch_size=BATCH):
                along = torch.zeros(())
                if task.index:
                    old = memory.sample(replay or len(batch), draws)
                    along = gradient(stream.preprocess.eval(old.raw), old.y, old.task_id)
                step = gradient(batch.x, batch.y, batch.task_id)
                if task.index and step @ along < 0:
                    step = step - (step @ along) / (along @ along) * along
                    corrected += 1
                start = 0
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.1 * step[start : start + p.numel()].view(p.shape)
                        start += p.numel()
        order = torch.randperm(len(task.train), generator=draws)
        whole = next(task.train.batches(len(task.train)))
        memory.add(whole.raw[order], whole.y[order], task.index, draws)
    return corrected


@pytest.mark.parametrize("replay", [None, 3])
@pytest.mark.parametrize(
    ("scenario", "head"),
    [
        ("class", "single"),
        ("class", "growing"),
        ("domain", "single"),
        ("task", "multi"),
        ("task", "single"),
    ],
)
def test_equals_a_loop_written_by_hand(
    scenario: str, head: Any, replay: int | None, tiny_stream: Any
) -> None:
    """With several heads, those of earlier tasks are corrected with the rest."""
    stream = tiny_stream(scenario=scenario, preprocess=Double((), ()))
    net = build_net("MLP", stream, head=head, seed=0, hidden=(9,)).double()
    plain = copy.deepcopy(net)
    strategy = AGEM(net, buffer_size=SIZE, replay_batch_size=replay)
    training = Training(epochs=EPOCHS, batch_size=BATCH, chunk_size=3)
    Run(strategy, stream, seed=SEED, training=training).fit()
    assert by_hand(plain, stream, replay) > 2
    for name, value in plain.named_parameters():
        torch.testing.assert_close(net.get_parameter(name), value, rtol=1e-9, atol=1e-10, msg=name)


def test_the_first_task_is_plain_sgd(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class", num_tasks=1)
    nets = []
    for kind in (AGEM, Naive):
        nets.append(build_net("MLP", stream, seed=0, dropout=0.2))
        Run(kind(nets[-1], lr=0.1, momentum=0.5), stream, training=Training(epochs=2)).fit()
    for name, value in nets[0].named_parameters():
        assert torch.equal(value, nets[1].get_parameter(name))


def test_a_part_of_the_net_that_does_not_train(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="class")
    net = build_net("MLP", stream, head="single", seed=0, hidden=(9, 8))
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    layers[1].requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    strategy = AGEM(net, buffer_size=SIZE)
    Run(strategy, stream, training=Training(epochs=1, batch_size=8)).fit()
    changed = [not torch.equal(before[name], value) for name, value in net.named_parameters()]
    assert changed == [True, True, False, False, True, True]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.05, "momentum": 0.5, "replay_batch_size": 5},
        {
            "lr": 0.01,
            "optimizer": {"name": "TAGRMSprop", "b": 1},
            "buffer": "reservoir",
            "scenarios": ["task"],
            "heads": ["multi"],
        },
    ],
    ids=["SGD", "TAG"],
)
def test_contract(options: dict[str, Any]) -> None:
    check_strategy(AGEM, buffer_size=20, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay_batch_size": 0}, r"^strategy\.replay_batch_size: 0 is not valid: expected >= 1"),
        ({"buffer": "rings"}, r"^strategy\.buffer: 'rings' is unknown; did you mean ring"),
        ({"buffer_size": 0}, r"^strategy\.buffer_size: 0 is not valid"),
        ({"buffer_size": 9, "buffer_bytes": 9999}, r"buffer_size, .*bytes: both are given"),
        ({"buffer_bytes": 100}, r"^strategy\.buffer_bytes: 100 is too small"),
        ({"optimizer": "Sgd"}, r"^strategy\.optimizer: 'Sgd' is unknown; did you mean SGD"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, tiny_stream: Any) -> None:
    stream = tiny_stream()
    with pytest.raises(UserError, match=message):
        AGEM(build_net("MLP", stream), **options).prepare(stream, Generators(0))
