"""WSN against a loop written by hand, and its promise: what a task learned never changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.errors import UserError
from clearn.kernels.archive import MaskArchive
from clearn.kernels.bitmask import unpack_bits
from clearn.kernels.topc import kept
from clearn.nets import MLP, MultiHead, Net, ReducedResNet18, build_net
from clearn.nets.external import timm_builder
from clearn.run import Run, Training
from clearn.seeding import Generators, derive_seed
from clearn.strategies import WSN
from clearn.strategy import Validation
from clearn.stream import Stream, Task
from clearn.testing import check_strategy


def test_contract() -> None:
    check_strategy(WSN, scenarios=("task",), heads=("multi", "wide"), lr=0.01)


@pytest.mark.slow
def test_contract_with_running_statistics() -> None:
    net = {"name": "ResNet18", "width": 4}
    shape = (1, 16, 16)
    check_strategy(WSN, scenarios=("task",), heads=("multi",), net=net, input_shape=shape, lr=0.01)


def reference(score: Tensor, c: float) -> Tensor:
    """The mask of section 1.2 of the paper's code, by sorting."""
    flat = score.abs().flatten()
    threshold = flat.sort().values[len(flat) - kept(len(flat), c)]
    return score.abs() >= threshold


def by_hand(stream: Stream, c: float, epochs: int, batch_size: int, seed: int) -> dict[str, Any]:
    """Winning subnetworks in plain torch, on an MLP: two layers, straight-through by hand."""
    net = build_net("MLP", stream, seed=0, hidden=(12, 9), bias=False)
    weights = [p for p in net.backbone.parameters()]
    generator = Generators(seed).get("scores")
    scores = []
    for weight in weights:
        bound = 1 / math.sqrt(weight.shape[1])
        drawn = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
        scores.append(drawn.requires_grad_())
    used = [torch.zeros_like(weight, dtype=torch.bool) for weight in weights]
    masks = []
    for task in stream:
        head = net.head.linears[task.index]
        optimizer = torch.optim.Adam([*weights, *scores, *head.parameters()], lr=1e-3)
        whole = next(task.train.batches(len(task.train)))
        first = task.classes[0]
        for epoch in range(epochs):
            sampler = torch.Generator().manual_seed(derive_seed(seed, "sampler", task.index, epoch))
            for rows in torch.randperm(len(whole), generator=sampler).split(batch_size):
                now = [reference(score.detach(), c) for score in scores]
                leaves = [
                    (w.detach() * m).requires_grad_() for w, m in zip(weights, now, strict=True)
                ]
                x = whole.x[rows].flatten(1)
                for leaf in leaves:
                    x = (x @ leaf.T).relu()
                loss = cross_entropy(head(x), whole.y[rows] - first)
                optimizer.zero_grad()
                loss.backward()
                for w, s, m, u, leaf in zip(weights, scores, now, used, leaves, strict=True):
                    w.grad = leaf.grad * (m & ~u)
                    s.grad = leaf.grad * w.detach() * s.detach().sign()
                optimizer.step()
        masks.append([reference(score.detach(), c) for score in scores])
        used = [u | m for u, m in zip(used, masks[-1], strict=True)]
    return {"weights": weights, "scores": scores, "masks": masks}


def test_equals_a_loop_written_by_hand(tiny_stream: Callable[..., Stream]) -> None:
    stream = tiny_stream(scenario="task")
    net = build_net("MLP", stream, seed=0, hidden=(12, 9), bias=False)
    ours = WSN(net, c=0.3)
    Run(ours, stream, seed=3, training=Training(epochs=3, batch_size=7, chunk_size=5)).fit()
    expected = by_hand(stream, c=0.3, epochs=3, batch_size=7, seed=3)
    found = ours.subnetworks
    for weight, w in zip(found.weights, expected["weights"], strict=True):
        torch.testing.assert_close(weight, w)
    for score, s in zip(found.scores, expected["scores"], strict=True):
        torch.testing.assert_close(score.detach(), s.detach())
    for bits, masks in zip(found.named_masks(), expected["masks"], strict=True):
        for (name, packed), mask in zip(bits.items(), masks, strict=True):
            assert torch.equal(unpack_bits(packed, mask.shape), mask), name


class Encoder(nn.Module):
    """A small language model of transformers over the pixels of an image, read as tokens."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=256,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        self.model = transformers.BertModel(config, add_pooling_layer=False)
        self.model.embeddings.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, 0].flatten(1) * 255).round().clamp(0, 255).long()
        return self.model(tokens).last_hidden_state[:, 0]


BACKBONES: dict[str, Callable[[Sequence[int]], nn.Module]] = {
    "MLP with biases": lambda shape: MLP(shape, hidden=(20, 20)),
    "ResNet-18": ReducedResNet18,
    "timm ViT": lambda shape: timm_builder("test_vit")(shape),
    "transformers encoder": lambda shape: Encoder(),
}


class Keep(WSN):
    """Takes down what every learned task says to some inputs, after every task."""

    said: list[list[Tensor]]

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.eval()
        with torch.no_grad():
            probes = [next(t.test.batches(16)).x for t in self.stream.tasks[: task.index + 1]]
            self.said.append([self.predict(x, index) for index, x in enumerate(probes)])
        self.train()


@pytest.mark.parametrize("name", BACKBONES)
def test_old_tasks_answer_bit_by_bit_as_before(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    size = 160 if name == "timm ViT" else 8
    x = torch.rand(24, 3, size, size, generator=generator)
    y = torch.arange(6).repeat(4)
    stream = Stream.from_arrays(x, y, x[:6], y[:6], num_tasks=3, scenario="task")
    torch.manual_seed(0)
    backbone = BACKBONES[name](stream.input_shape)
    classes = [task.classes for task in stream]
    net = Net(backbone, MultiHead(backbone.num_features, classes, stream.num_classes))
    strategy = Keep(net, c=0.4, lr=0.01)
    strategy.said = []
    result = Run(strategy, stream, training=Training(epochs=2, batch_size=4)).fit()
    assert result.metrics["bwt"] == 0
    for before, after in pairwise(strategy.said):
        for old, new in zip(before, after, strict=False):
            assert torch.equal(old, new)
    assert not torch.equal(strategy.said[0][0], strategy.said[1][1])


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "Adam"},
        {"optimizer": "Adam", "weight_decay": 0.1},
        {"optimizer": "AdamW", "weight_decay": 0.1},
        {"optimizer": "SGD", "lr": 0.1, "momentum": 0.9},
        {"optimizer": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_frozen_weights_are_bit_equal(
    options: dict[str, Any], tiny_stream: Callable[..., Stream]
) -> None:
    class Check(WSN):
        def begin_task(self, task: Task) -> None:
            super().begin_task(task)
            self.before = [weight.detach().clone() for weight in self.subnetworks.weights]

        def end_task(self, task: Task) -> None:
            used = self.subnetworks.of_mask(self.subnetworks.used)
            moved = 0
            for name, old in zip(self.subnetworks.names, self.before, strict=True):
                frozen = used[name] != 0
                new = self.net.backbone.get_parameter(name)
                assert torch.equal(new[frozen], old[frozen])
                moved += int((new != old).sum())
            assert moved > 0
            super().end_task(task)

    stream = tiny_stream(scenario="task")
    strategy = Check(build_net("MLP", stream, seed=0), c=0.3, **options)
    result = Run(strategy, stream, training=Training(epochs=3, batch_size=8)).fit()
    assert result.metrics["bwt"] == 0


def test_a_task_ends_with_its_best_state(tiny_stream: Callable[..., Stream]) -> None:
    """Of the epoch with the lowest loss, the first of equals; with the mask of those scores."""
    losses = [3.0, 1.0, 2.0, 1.0]

    class Check(WSN):
        def begin_task(self, task: Task) -> None:
            super().begin_task(task)
            self.seen: list[dict[str, Tensor]] = []

        def end_epoch(self, task: Task, validation: Validation | None) -> bool:
            assert validation is not None
            self.seen.append({n: p.detach().clone() for n, p in self.named_parameters()})
            return super().end_epoch(task, Validation(0.5, losses[len(self.seen) - 1]))

        def end_task(self, task: Task) -> None:
            super().end_task(task)
            for name, parameter in self.named_parameters():
                assert torch.equal(parameter, self.seen[1][name]), name
            assert torch.equal(self.subnetworks.mask(task.index), self.subnetworks.selection())
            score = "subnetworks.scores.0"
            assert not torch.equal(self.seen[1][score], self.seen[3][score])

    stream = tiny_stream(scenario="task", validation=0.25)
    strategy = Check(build_net("MLP", stream, seed=0), c=0.3)
    Run(strategy, stream, training=Training(epochs=4, batch_size=4)).fit()


def test_a_buffer_that_is_not_in_the_state_goes_back_too(
    tiny_stream: Callable[..., Stream],
) -> None:
    class Counts(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone = backbone
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            return self.backbone(x)

    stream = tiny_stream(scenario="task", validation=0.25, keep_tasks=1)
    net = build_net("MLP", stream, seed=0)
    net.backbone = Counts(net.backbone)
    ends: list[float] = []

    class Check(WSN):
        def end_epoch(self, task: Task, validation: Validation | None) -> bool:
            ends.append(self.net.backbone.calls.item())
            return super().end_epoch(task, Validation(0.5, float(len(ends))))  # the first is best

    Run(Check(net), stream, training=Training(epochs=3, batch_size=4)).fit()
    assert ends[0] < ends[1] < ends[2]
    assert net.backbone.calls.item() == ends[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_its_fused_optimizer_goes_with_clipping(
    precision: str, tiny_stream: Callable[..., Stream]
) -> None:
    """A limit that no gradient reaches changes nothing; one below all changes the weights."""
    stream, found = tiny_stream(scenario="task", keep_tasks=1), []
    for clip in (None, 1e6, 1e-12):
        strategy = WSN(build_net("MLP", stream, seed=0), c=0.3)
        training = Training(epochs=2, batch_size=4, clip_grad=clip)
        trainer = {"accelerator": "cpu", "precision": precision}
        Run(strategy, stream, training=training, trainer=trainer).fit()
        found.append(torch.cat([p.detach().flatten() for p in strategy.net.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_the_rate_is_halved_and_ends_a_task(tiny_stream: Callable[..., Stream]) -> None:
    """Patience counts epochs without a strictly lower loss; the best state is not reloaded."""
    rates: list[float] = []

    class Plateau(WSN):
        def end_epoch(self, task: Task, validation: Validation | None) -> bool:
            done = super().end_epoch(task, Validation(0.5, 1.0))  # never improves after the first
            rates.append(self.optimizers().param_groups[0]["lr"])
            return done

    stream = tiny_stream(scenario="task", keep_tasks=1)
    strategy = Plateau(build_net("MLP", stream, seed=0), lr=1.0, patience=2, lr_min=0.2)
    Run(strategy, stream, training=Training(epochs=50)).fit()
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_official_stale_mask_is_that_of_the_last_step(tiny_stream: Callable[..., Stream]) -> None:
    stream = tiny_stream(scenario="task", validation=0.25, keep_tasks=1)
    kept_masks, selections = [], []
    for stale in (False, True):
        strategy = WSN(build_net("MLP", stream, seed=0), c=0.3, lr=0.03, official_stale_mask=stale)
        Run(strategy, stream, training=Training(epochs=4, batch_size=4)).fit()
        kept_masks.append(strategy.subnetworks.mask(0))
        selections.append(strategy.subnetworks.selection())
    assert torch.equal(kept_masks[0], selections[0])
    assert not torch.equal(kept_masks[1], selections[1])


def test_running_statistics_are_those_of_each_task() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 3, 8, 8, generator=generator)
    x[8:] += 5  # the second task has other statistics
    y = torch.arange(4).repeat_interleave(4)
    stream = Stream.from_arrays(x, y, x[::4], y[::4], num_tasks=2, scenario="task")
    strategy = WSN(build_net("ReducedResNet18", stream, seed=0), c=0.5)
    Run(strategy, stream, training=Training(epochs=4, batch_size=4)).fit()
    names = list(strategy._rest)
    mean = names.index("norm.running_mean")
    first, second = (strategy.rest.of_task(index)[mean] for index in (0, 1))
    assert not torch.allclose(first, second, rtol=0.5)
    norms = [m for m in strategy.net.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    channels = sum(m.num_features for m in norms)
    # weight, bias, mean and variance per channel, a count of 8 bytes per layer, for two tasks
    assert strategy.bytes_stored()["per task"] == 2 * (4 * 4 * channels + 8 * len(norms))


def test_prediction_follows_the_weights(tiny_stream: Callable[..., Stream]) -> None:
    """Weights made ready in eval mode are not used once they are out of date."""
    stream = tiny_stream(scenario="task")
    strategy = WSN(build_net("MLP", stream, seed=0), c=0.3)
    strategy.prepare(stream, Generators(0))
    x = next(stream[0].test.batches(4)).x
    strategy.eval()
    first = strategy.predict(x, 0)
    strategy.train()
    with torch.no_grad():
        for weight in strategy.subnetworks.weights:
            weight.mul_(2)
    strategy.eval()
    second = strategy.predict(x, 0)
    assert not torch.equal(first, second)
    state = {
        name: tensor.clone()
        for name, tensor in strategy.state_dict().items()
        if "_extra" not in name
    }
    for name in state:
        if "backbone" in name and name.endswith("weight"):
            state[name] /= 2
    strategy.load_state_dict(state, strict=False)
    torch.testing.assert_close(strategy.predict(x, 0), first)
    torch.testing.assert_close(strategy.double().predict(x.double(), 0).float(), first)


def test_record_holds_capacity_and_archive(
    tmp_path: Path, tiny_stream: Callable[..., Stream]
) -> None:
    stream = tiny_stream(scenario="task")
    strategy = WSN(build_net("MLP", stream, seed=0), c=0.3)
    result = Run(strategy, stream, folder=tmp_path / "record").fit()
    metrics = result.metrics
    assert metrics["cap_raw"] >= metrics["cap_paper"] > 1 - metrics["sparsity"] > 0.3
    archive = MaskArchive.open(tmp_path / "record" / "masks.clmask")
    assert archive.num_tasks == 3
    for task, masks in enumerate(strategy.subnetworks.named_masks()):
        for name, bits in masks.items():
            assert torch.equal(archive.mask(task, name), bits)


def test_a_checkpoint_holds_one_bit_per_weight_and_task(
    tmp_path: Path, tiny_stream: Callable[..., Stream]
) -> None:
    stream = tiny_stream(scenario="task")

    def size(tasks: int) -> int:
        strategy = WSN(build_net("MLP", stream, seed=0, hidden=(1000, 1000), bias=False))
        strategy.prepare(stream, Generators(0))
        for _ in range(tasks):
            strategy.subnetworks.keep(strategy.subnetworks.selection())
        torch.save(strategy.state_dict(), tmp_path / "state")
        return (tmp_path / "state").stat().st_size

    weights = 5 * 1000 + 1000 * 1000
    assert (size(3) - size(1)) / 2 == pytest.approx(weights / 8, rel=0.01)


def test_scenario_and_head_are_checked(tiny_stream: Callable[..., Stream]) -> None:
    stream = tiny_stream(scenario="class")
    with pytest.raises(UserError, match=r"stream\.scenario: class is not valid for WSN"):
        WSN(build_net("MLP", stream)).prepare(stream, Generators(0))
    stream = tiny_stream(scenario="task")
    with pytest.raises(UserError, match=r"net\.head: a SingleHead is shared"):
        WSN(build_net("MLP", stream, head="single")).prepare(stream, Generators(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": 1.5}, r"strategy\.c: 1\.5"),
        ({"optimizer": "RMSprop"}, r"strategy\.optimizer: 'RMSprop'.*Adam, AdamW or SGD"),
        ({"patience": 0}, r"strategy\.patience: 0"),
        ({"lr_min": -1.0}, r"strategy\.lr_min: -1"),
    ],
    ids=str,
)
def test_options_are_checked(
    options: dict[str, Any], message: str, tiny_stream: Callable[..., Stream]
) -> None:
    with pytest.raises(UserError, match=message):
        WSN(build_net("MLP", tiny_stream(scenario="task")), **options)
