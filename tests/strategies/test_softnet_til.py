"""The noise that SoftNetTIL puts behind the masks of WSN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clearn.errors import UserError
from clearn.kernels.bitmask import unpack_bits
from clearn.nets import Net, build_net
from clearn.run import Run, Training
from clearn.seeding import Generators, derive_seed
from clearn.strategies import WSN, SoftNetTIL
from clearn.stream import Stream
from clearn.testing import check_strategy


class Watched(SoftNetTIL):
    """Takes down the logits of all tasks after each."""

    def __init__(self, net: Net, **options: Any) -> None:
        super().__init__(net, **options)
        self.seen: list[list[Tensor]] = []

    def end_task(self, task: Any) -> None:
        super().end_task(task)
        self.eval()
        batches = [next(other.test.batches(16)) for other in self.stream]
        with torch.no_grad():
            self.seen.append([self.predict(b.x, b.task_id) for b in batches])
        self.train()


TIL = {"c": 0.4, "lr": 0.01}


def til(stream: Stream, kind: Callable[..., Any] = Watched, **options: Any) -> Any:
    strategy = kind(build_net("MLP", stream, seed=0, hidden=(12, 12)), **TIL, **options)
    training = Training(epochs=2, batch_size=8, evaluate="all")
    return strategy, Run(strategy, stream, seed=3, training=training).fit()


@pytest.mark.slow
@pytest.mark.parametrize("background", ["frozen", "snapshot"])
def test_contract(background: str) -> None:
    options = {"noise": 0.1, "lr": 0.01, "background": background}
    check_strategy(SoftNetTIL, scenarios=("task",), heads=("multi",), **options)


def test_no_noise_is_wsn(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    quiet, result = til(stream)
    plain, expected = til(stream, WSN)
    assert np.array_equal(result.matrix, expected.matrix)
    assert result.bytes == expected.bytes
    state = quiet.state_dict()
    for name, value in plain.state_dict().items():
        assert not isinstance(value, Tensor) or torch.equal(state[name], value), name
    x = next(stream[1].test.batches(16)).x
    for task in range(3):
        assert torch.equal(quiet.eval().predict(x, task), plain.eval().predict(x, task))


@pytest.mark.parametrize("background", ["frozen", "snapshot"])
def test_nothing_is_forgotten_behind_noise(background: str, tiny_stream: Any) -> None:
    """Although the weights behind a mask do change."""
    stream = tiny_stream(scenario="task")
    strategy, result = til(stream, noise=0.5, background=background)
    assert result.metrics["bwt"] == 0.0
    for task in range(3):
        learned = strategy.seen[task][task]
        assert all(torch.equal(later[task], learned) for later in strategy.seen[task:])
    plain, _ = til(stream, WSN)
    plain.eval()
    for task in range(3):  # training is that of WSN, predictions are not
        batch = next(stream[task].test.batches(16))
        same = torch.equal(plain.predict(batch.x, task), strategy.seen[task][task])
        assert same == (background == "frozen" and task == 0)
    ours, theirs = strategy.subnetworks, plain.subnetworks
    assert torch.equal(ours.masks.rows[0], theirs.masks.rows[0])


@pytest.mark.parametrize("background", ["frozen", "snapshot"])
def test_background_equals_the_closed_form(background: str, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    strategy, _ = til(stream, noise=0.1, background=background)
    nets, seed = strategy.subnetworks, derive_seed(3, "background")
    for task in range(4):  # the last one is not learned, and has the mask of the one before
        own = min(task, 2)
        tensors = strategy._tensors_of(task)
        generator = torch.Generator().manual_seed(derive_seed(seed, own))
        for k, (name, weight) in enumerate(zip(nets.names, nets.weights, strict=True)):
            u = torch.rand(weight.shape, generator=generator)
            masks = [unpack_bits(nets.split(nets.mask(t))[k], weight.shape) for t in range(3)]
            if background == "snapshot":
                behind = strategy.snapshots.of_task(own)[k]
            else:
                earlier = torch.stack([torch.zeros_like(masks[0]), *masks[:own]]).any(dim=0)
                behind = torch.where(earlier, weight, 0)
            expected = torch.where(masks[own], weight, 0.1 * u * behind)
            torch.testing.assert_close(tensors[name], expected)
    if background == "snapshot":
        for snapshot, weight in zip(strategy.snapshots.of_task(2), nets.weights, strict=True):
            assert torch.equal(snapshot, weight)
        assert not torch.equal(strategy.snapshots.of_task(0)[0], strategy.snapshots.of_task(2)[0])


def test_tasks_to_come_see_the_noise_and_a_task_at_hand_does_not(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    strategy, _ = til(stream, noise=0.5, background="snapshot")
    seed = strategy.get_extra_state()["seed"]
    fresh = SoftNetTIL(
        build_net("MLP", stream, hidden=(12, 12)), noise=0.5, background="snapshot", **TIL
    )
    fresh.prepare(stream, Generators(9))
    fresh.load_state_dict(strategy.state_dict())
    assert fresh.get_extra_state()["seed"] == seed
    x = next(stream[0].test.batches(16)).x
    assert torch.equal(fresh.eval().predict(x, 0), strategy.eval().predict(x, 0))

    one = SoftNetTIL(build_net("MLP", stream, seed=0), noise=0.5, background="snapshot", **TIL)
    one.prepare(stream, Generators(0))
    one.task = stream[0]
    one.begin_task(stream[0])
    quiet = one.eval().predict(x, 1)
    one.end_task(stream[0])
    noisy = one.eval().predict(x, 1)
    assert not torch.equal(noisy, quiet)
    one.task = stream[1]
    one.begin_task(stream[1])
    one.train()
    assert torch.equal(one.eval().predict(x, 1), quiet)


def test_bytes_of_noise_and_snapshots(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    _, frozen = til(stream, noise=0.1)
    _, snapshot = til(stream, noise=0.1, background="snapshot")
    assert [stored["noise"] for stored in frozen.bytes] == [8, 8, 8]
    one = 4 * (5 * 12 + 12 * 12)
    assert [stored["snapshots"] for stored in snapshot.bytes] == [one, 2 * one, 3 * one]
    assert "snapshots" not in frozen.bytes[0]
    more = snapshot.metrics["bytes_per_task"] - frozen.metrics["bytes_per_task"]
    assert more == one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -0.1}, r"strategy\.noise: -0\.1 is not valid: expected a number >= 0"),
        ({"noise": float("inf")}, r"strategy\.noise: inf is not valid"),
        ({"background": "all"}, r"strategy\.background: 'all' .* frozen or snapshot"),
        ({"c": 2.0}, r"strategy\.c: 2\.0 is not valid"),
    ],
)
def test_options_are_checked(options: Any, message: str, tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=message):
        SoftNetTIL(build_net("MLP", tiny_stream(scenario="task")), **options)
