"""TAG, and the hybrids with its optimizers, against loops written by hand."""

from __future__ import annotations

import copy
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clearn.buffers import ReservoirBuffer
from clearn.errors import UserError
from clearn.nets import Net, build_net
from clearn.optim import TAGAdagrad, TAGAdam, TAGOptimizer, TAGRMSprop
from clearn.run import Interrupted, Run, Training
from clearn.seeding import Generators
from clearn.strategies import ER, TAG
from clearn.strategy import Validation
from clearn.stream import Stream, Task
from clearn.testing import check_strategy
from tests.strategies.by_hand import batches

CLASSES: dict[str, type[TAGOptimizer]] = {
    "RMSprop": TAGRMSprop,
    "Adagrad": TAGAdagrad,
    "Adam": TAGAdam,
}
SEED, EPOCHS, BATCH = 4, 2, 7


def own_rows(stream: Stream, task_id: int, logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy among the classes of the task."""
    classes = stream[task_id].classes
    return cross_entropy(logits[:, list(classes)], y - classes[0])


def train(net: Net, stream: Stream, optimizer: TAGOptimizer) -> list[Tensor]:
    """What a run of TAG in the task scenario does; returns the similarities of each task."""
    similarities = []
    for task in stream:
        if task.index:
            optimizer.end_task()
        optimizer.begin_task()
        for epoch in range(EPOCHS):
            optimizer.begin_epoch()
            for batch in batches(task, seed=SEED, epoch=epoch, batch_size=BATCH):
                optimizer.zero_grad()
                features = net.backbone(batch.x)
                if hasattr(net.head, "linears"):
                    logits = net.head.linears[task.index](features)
                    loss = cross_entropy(logits, batch.y - task.classes[0])
                else:
                    loss = own_rows(stream, task.index, net.head.linear(features), batch.y)
                loss.backward()
                optimizer.step()
        similarities.append(optimizer.similarity().mean)
    return similarities


def run(strategy: Any, stream: Stream, **options: Any) -> Any:
    training = Training(epochs=EPOCHS, batch_size=BATCH, chunk_size=3)
    return Run(strategy, stream, seed=SEED, training=training, **options).fit()


def same(net: Net, other: Net, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-6}
    for name, value in other.named_parameters():
        torch.testing.assert_close(net.get_parameter(name), value, **tolerance, msg=name)


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("base", CLASSES)
def test_equals_a_loop_written_by_hand(base: Any, head: Any, tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    net = build_net("MLP", stream, head=head, seed=0, hidden=(9,))
    plain = copy.deepcopy(net)
    strategy = TAG(net, base=base, b=3, lr=0.01)
    result = run(strategy, stream)
    similarities = train(plain, stream, CLASSES[base](plain.parameters(), lr=0.01, b=3))
    same(net, plain)
    table = np.array(result.charts["weight of earlier tasks"])
    assert table.shape == (3, 3)
    assert np.array_equal(np.isfinite(table), np.tril(np.ones((3, 3)), -1) > 0)
    sizes = torch.tensor([p.numel() for p in plain.parameters()]).double()
    for task in (1, 2):
        for earlier in range(task):
            row = similarities[task][earlier].double()
            known = row.isfinite()
            assert bool(known.all()) == (head == "single")
            mean = (row[known] * sizes[known]).sum() / sizes[known].sum()
            assert table[task, earlier] == pytest.approx(mean.item(), rel=1e-4)
    assert (table[np.isfinite(table)] > np.exp(-3)).all()
    assert (table[np.isfinite(table)] < np.exp(3)).all()


def test_the_official_counter_restarts_with_an_epoch(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="task")
    start = build_net("MLP", stream, head="single", seed=0, hidden=(9,))
    nets = {}
    for counter in ("fixed", "official"):
        nets[counter] = copy.deepcopy(start)
        plain = copy.deepcopy(start)
        run(TAG(nets[counter], base="Adam", counter=counter, lr=0.01), stream)
        train(plain, stream, TAGAdam(plain.parameters(), lr=0.01, counter=counter))
        same(nets[counter], plain)
    apart = nets["fixed"].head.linear.weight - nets["official"].head.linear.weight
    assert apart.abs().max() > 1e-3


@pytest.mark.parametrize("choice", [{"name": "TAGRMSprop"}, {"name": "TAGAdam", "b": 2}])
def test_er_with_tag_equals_a_loop_written_by_hand(
    choice: dict[str, Any], tiny_stream: Any
) -> None:
    """Adam with the counter of epochs, of which strategies other than TAG have to tell it too."""
    if choice["name"] == "TAGAdam":
        choice = choice | {"counter": "official"}
    stream = tiny_stream(scenario="class")
    net = build_net("MLP", stream, head="single", seed=0, hidden=(9,))
    plain = copy.deepcopy(net)
    result = run(ER(net, buffer_size=20, optimizer=choice, lr=0.005), stream)

    options = {key: value for key, value in choice.items() if key != "name"}
    kind = TAGAdam if options else TAGRMSprop
    optimizer = kind(plain.parameters(), lr=0.005, **options)
    draws, first = Generators(SEED).get("buffer"), stream[0].train
    buffer = ReservoirBuffer(20, first.shape, first.dtype)
    for task in stream:
        for epoch in range(EPOCHS):
            optimizer.begin_epoch()
            for batch in batches(task, seed=SEED, epoch=epoch, batch_size=BATCH):
                loss = cross_entropy(plain(batch.x), batch.y)
                if len(buffer):
                    old = buffer.sample(len(batch), draws)
                    loss = loss + cross_entropy(plain(stream.preprocess.eval(old.raw)), old.y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                buffer.add(batch.raw, batch.y, task.index, draws)
        optimizer.end_task()
    same(net, plain, rtol=1e-3, atol=1e-4)
    assert list(result.charts) == ["weight of earlier tasks"]
    stored = result.bytes[-1]
    assert stored.keys() == {"parameters", "buffer", "optimizer"}
    # Two numbers for each parameter and task, and a similarity for each tensor and earlier task.
    assert stored["optimizer"] == 6 * stored["parameters"] - 6 * mask_bytes(net) + 4 * 2 * 4


def mask_bytes(net: Net) -> int:
    return sum(b.numel() * b.element_size() for b in net.buffers())


class Stopping(TAG):
    """Asks the run it is given for a stop in the last epoch of the last task."""

    run: Any = None

    def end_epoch(self, task: Task, validation: Validation | None) -> bool:
        if self.run is not None and task.index == 2:
            self.run.stop(signal.SIGTERM, None)
        return super().end_epoch(task, validation)


def test_charts_of_a_run_that_is_resumed_when_all_is_learned(
    tiny_stream: Any, tmp_path: Path
) -> None:
    """Only the evaluation of the last task is left: no optimizer is made any more."""
    stream = tiny_stream(scenario="task")

    def build() -> Stopping:
        return Stopping(build_net("MLP", stream, seed=0, hidden=(9,)), lr=0.01)

    def fit(strategy: Stopping, folder: Path, *, stop: bool = False) -> Any:
        runner = Run(strategy, stream, folder=folder, training=Training(epochs=1, batch_size=8))
        if stop:
            strategy.run = runner
        return runner.fit()

    whole = fit(build(), tmp_path / "whole")
    with suppress(Interrupted):
        fit(build(), tmp_path / "parts", stop=True)
        pytest.fail("the run was not stopped")
    resumed = build()
    result = fit(resumed, tmp_path / "parts")
    assert not resumed.task_optimizer.bytes_stored()  # it has met no parameters
    assert repr(result.charts) == repr(whole.charts)
    assert "weight of earlier tasks" in result.charts
    assert np.array_equal(result.matrix, whole.matrix, equal_nan=True)


@pytest.mark.parametrize("base", ["RMSprop", "Adam"])
def test_contract(base: Any) -> None:
    scenarios: Any = ["task", "class", "domain"] if base == "RMSprop" else ["task"]
    heads = ["multi", "single"] if base == "RMSprop" else ["single"]
    options = {} if base == "RMSprop" else {"counter": "official"}
    check_strategy(TAG, scenarios=scenarios, heads=heads, base=base, b=1.0, lr=0.01, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"counter": "official"},
            r"^strategy\.counter: official is not valid with the base RMSprop",
        ),
        ({"base": "rmsprop"}, r"^strategy\.base: 'rmsprop' is unknown; did you mean RMSprop"),
        ({"b": -1.0}, r"b: -1\.0 is not valid: expected a number in \[0, 50\]"),
        ({"b": float("nan")}, r"b: nan is not valid"),
        ({"base": "Adam", "counter": "epochs"}, r"counter: epochs is not valid"),
        ({"lr": 0.0}, r"^strategy\.lr: 0\.0 is not valid"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=message):
        TAG(build_net("MLP", tiny_stream()), **options)


def test_the_head_may_not_grow(tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=r"^net\.head: growing is not valid"):
        TAG(build_net("MLP", tiny_stream(scenario="class"), head="growing"))
