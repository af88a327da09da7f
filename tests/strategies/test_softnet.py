"""SoftNet and HardNet against loops written by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearn.errors import UserError
from clearn.kernels.bitmask import unpack_bits
from clearn.masks import Subnetworks
from clearn.nets import Net, SingleHead, build_net
from clearn.nets.heads import MASKED
from clearn.preprocess import Preprocess
from clearn.run import Run, Training
from clearn.seeding import Generators, derive_seed
from clearn.strategies import HardNet, SoftNet
from clearn.stream import Stream
from clearn.testing import check_strategy

FEW = {"num_tasks": None, "base_classes": 2, "ways": 2, "shots": 5}


class Spy(SoftNet):
    """Takes down the state after each task, the draws and the losses."""

    def __init__(self, net: Net, **options: Any) -> None:
        super().__init__(net, **options)
        self.states: list[dict[str, Any]] = []
        self.draws: list[list[Tensor]] = []

    def step(self, batch: Any) -> Tensor:
        loss = super().step(batch)
        self.draws.append([u.clone() for u in self._minors()])
        return loss

    def end_task(self, task: Any) -> None:
        super().end_task(task)
        state = self.state_dict()
        self.states.append({k: v.clone() for k, v in state.items() if isinstance(v, Tensor)})


def learn(strategy: Any, stream: Stream, epochs: int = 2, **training: Any) -> Any:
    run = Run(strategy, stream, seed=3, training=Training(epochs=epochs, **training))
    return run.fit()


def soft_mask(strategy: SoftNet) -> dict[str, Tensor]:
    """1 where the kept bit is set, else the u of the seed kept: by name."""
    nets, state = strategy.subnetworks, strategy.get_extra_state()
    generator = torch.Generator().manual_seed(derive_seed(state["seed"], state["draw"]))
    found = {}
    for name, shape, bits in zip(nets.names, nets.shapes, nets.split(nets.mask(0)), strict=True):
        u = torch.rand(shape, generator=generator)
        found[name] = torch.where(unpack_bits(bits, shape), 1, u)
    return found


def images(**options: Any) -> Stream:
    """Base task of two classes and a session of two, RGB images of 16x16."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(4).repeat_interleave(12)
    x = torch.randint(256, (48, 3, 16, 16), generator=generator, dtype=torch.uint8)
    x[:, :2] = (x[:, :2] // 4) + 45 * y[:, None, None, None].to(torch.uint8)
    return Stream.from_arrays(
        x, y, x, y, preprocess=Preprocess([0.5], [0.25], padding=2, flip=True), **(FEW | options)
    )


# The contract


def test_contract() -> None:
    check_strategy(SoftNet, scenarios=("class",), stage="layers")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (HardNet, {"c": 0.5}),
        (HardNet, {"ncm_metric": "euclidean"}),
        (SoftNet, {"redraw": "forward", "soft_epoch": 1, "milestones": [1], "gamma": 0.5}),
        (SoftNet, {"exemplars_per_class": 3, "ncm_metric": "euclidean", "temperature": 0.1}),
        (SoftNet, {"session_epochs": 1, "c": 0.3}),
    ],
)
def test_contract_of_variants(kind: Any, options: dict[str, Any]) -> None:
    check_strategy(kind, scenarios=("class",), **options)


@pytest.mark.slow
@pytest.mark.parametrize("bn_mode", ["frozen", "official"])
def test_contract_with_normalisation(bn_mode: str) -> None:
    net = {"name": "ResNet18", "width": 4}
    options = {"stage": "blocks.7", "bn_mode": bn_mode, "lr": 0.05}
    check_strategy(SoftNet, scenarios=("class",), net=net, input_shape=(3, 16, 16), **options)


# The soft mask


@pytest.mark.parametrize("c", [0.03, 0.5, 1.0])
def test_mask_is_one_on_the_largest_scores_and_between_zero_and_one_elsewhere(c: float) -> None:
    module = nn.Sequential(nn.Linear(63, 65), nn.ReLU(), nn.Linear(65, 7))
    nets = Subnetworks(module, c)
    nets.draw_scores(torch.Generator().manual_seed(0))
    minors = nets.uniform(5)
    for weight in nets.weights:
        nn.init.uniform_(weight, 1, 2)
    soft = nets.softly_selected(minors)
    for name, weight, score, u in zip(nets.names, nets.weights, nets.scores, minors, strict=True):
        sizes = np.sort(np.abs(score.detach().numpy()).ravel())
        major = score.detach().abs() >= sizes[round((1 - c) * (sizes.size - 1))]
        torch.testing.assert_close(soft[name] / weight, torch.where(major, 1, u))
        assert ((u > 0) & (u < 1)).all()
        assert major.sum() == sizes.size - round((1 - c) * (sizes.size - 1))
    again, other = nets.uniform(5), nets.uniform(6)
    assert all(torch.equal(a, b) for a, b in zip(minors, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(minors, other, strict=True))


def test_gradients_equal_the_closed_form() -> None:
    """G m for a weight, and for all scores G w sign(s), as if m were 1."""
    module = nn.Linear(13, 9, bias=False).double()
    nets = Subnetworks(module, 0.4)
    nets.draw_scores(torch.Generator().manual_seed(0))
    (weight,), (score,), (u,) = nets.weights, nets.scores, nets.uniform(1)
    x = torch.randn(6, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = (x @ nets.softly_selected([u])["weight"].T).tanh()
    y.pow(2).sum().backward()

    mask = torch.where(score.abs() >= nets.thresholds()[0], 1, u).detach()
    plain = (weight * mask).detach().requires_grad_()
    (x @ plain.T).tanh().pow(2).sum().backward()
    torch.testing.assert_close(weight.grad, plain.grad * mask)
    torch.testing.assert_close(score.grad, plain.grad * weight.detach() * score.detach().sign())


def test_shared_weights_have_one_soft_mask(tiny_stream: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_features = 5
            self.a = self.b = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    stream = tiny_stream(**FEW)
    strategy = SoftNet(Net(Tied(), SingleHead(5, 6)))
    result = learn(strategy, stream, epochs=3, batch_size=8)
    assert np.isfinite(result.matrix[-1]).all()
    weights = strategy.subnetworks.named(strategy._fixed_weights())
    assert weights["a.weight"] is weights["b.weight"]


@pytest.mark.parametrize(("redraw", "soft_epoch"), [("epoch", 0), ("forward", 0), ("epoch", 2)])
def test_minor_weights_are_drawn_when_they_are_due(
    redraw: str, soft_epoch: int, tiny_stream: Any
) -> None:
    """And what the last step of the base task used is what is kept, also in a fresh object."""
    stream = tiny_stream(**FEW)
    strategy = Spy(build_net("MLP", stream, seed=0), redraw=redraw, soft_epoch=soft_epoch)
    learn(strategy, stream, epochs=3, batch_size=8)
    flat = [torch.cat([u.flatten() for u in draw]) for draw in strategy.draws]
    base, later = flat[:12], flat[12:]  # 3 epochs of 32 examples
    for step, (now, after) in enumerate(pairwise(base), start=1):
        hard = step // 4 < soft_epoch
        fresh = not hard and (redraw == "forward" or step % 4 == 0)
        assert torch.equal(now, after) != fresh
    for draw, hard in zip(base, [step // 4 < soft_epoch for step in range(12)], strict=True):
        assert not draw.any() if hard else ((draw > 0) & (draw < 1)).all()
    assert all(torch.equal(draw, base[-1]) for draw in later)

    fresh = SoftNet(build_net("MLP", stream, seed=1))
    fresh.load_state_dict(strategy.state_dict())
    for ours, kept in zip(fresh._minors(), strategy._minors(), strict=True):
        assert torch.equal(ours, kept)


# The base task


@pytest.mark.parametrize("redraw", ["epoch", "forward"])
def test_base_task_equals_a_loop_written_by_hand(redraw: str, tiny_stream: Any) -> None:
    stream = tiny_stream(keep_tasks=1, **FEW)
    options = {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.01, "c": 0.3}
    ours = Spy(
        build_net("MLP", stream, seed=0, hidden=(9, 8)),
        redraw=redraw,
        milestones=[2, 3],
        gamma=0.5,
        **options,
    )
    learn(ours, stream, epochs=4, batch_size=7)

    net, plan = build_net("MLP", stream, seed=0, hidden=(9, 8)), Generators(3)
    masked = {n: p for n, p in net.named_parameters() if "weight" in n and "backbone" in n}
    scores = {}
    for name, p in masked.items():
        bound = p.shape[1] ** -0.5
        drawn = torch.empty(p.shape).uniform_(-bound, bound, generator=plan.get("scores", "cpu"))
        scores[name] = nn.Parameter(drawn)
    sgd = torch.optim.SGD([*net.parameters(), *scores.values()], 0.05, 0.5, weight_decay=0.01)
    base, step = stream[0].train, 0
    for epoch in range(4):
        for group in sgd.param_groups:
            group["lr"] = 0.05 * {0: 1, 1: 1, 2: 0.5, 3: 0.25}[epoch]
        sampler = torch.Generator().manual_seed(derive_seed(3, "sampler", 0, epoch))
        for rows in torch.randperm(len(base), generator=sampler).split(7):
            (batch,) = base.batches(7, order=rows)
            draw = epoch if redraw == "epoch" else step
            seed = derive_seed(derive_seed(3, "minor weights"), draw)
            generator = torch.Generator().manual_seed(seed)
            soft = {}
            for name, p in masked.items():
                size = scores[name].detach().abs()
                kept = p.numel() - round(0.7 * (p.numel() - 1))
                least = size.flatten().sort(descending=True).values[kept - 1]
                soft[name] = torch.where(size >= least, 1, torch.rand(p.shape, generator=generator))
            used = {n: (p * soft[n]).detach().requires_grad_() for n, p in masked.items()}
            sgd.zero_grad()
            logits = torch.func.functional_call(net, used, (batch.x,))
            cross_entropy(logits, batch.y).backward()
            for name, p in masked.items():
                p.grad = used[name].grad * soft[name]
                scores[name].grad = used[name].grad * p.detach() * scores[name].detach().sign()
            sgd.step()
            step += 1
    for (name, plain), p in zip(net.named_parameters(), ours.net.parameters(), strict=True):
        torch.testing.assert_close(p, plain, msg=name)
    for score, plain in zip(ours.subnetworks.scores, scores.values(), strict=True):
        torch.testing.assert_close(score, plain)


def test_classifier_predicts_until_the_base_task_has_ended(tiny_stream: Any) -> None:
    stream = tiny_stream(**FEW)
    strategy = SoftNet(build_net("MLP", stream, seed=0))
    strategy.prepare(stream, Generators(0))
    strategy.eval()
    x = next(stream[0].test.batches(9)).x
    weights = strategy.subnetworks.of_mask(strategy.subnetworks.selection())
    logits = strategy.net.head(torch.func.functional_call(strategy.net.backbone, weights, (x,)))
    assert torch.equal(strategy.predict(x), logits)
    learn(strategy, stream)
    strategy.eval()
    assert (strategy.predict(x) <= 0).all()


# Sessions


@pytest.mark.parametrize("bn_mode", ["frozen", "official"])
def test_a_session_moves_only_the_minor_weights_of_its_stage(bn_mode: str) -> None:
    stream = images()
    net = build_net("ResNet18", stream, width=4, seed=0)
    strategy = Spy(
        net, c=0.6, stage=["blocks.6", "blocks.7.conv1"], bn_mode=bn_mode, session_lr=1.0
    )
    learn(strategy, stream, batch_size=10)
    before, after = strategy.states[0], strategy.states[-1]
    mask = soft_mask(strategy)
    moved = []
    for name, old in before.items():
        inner = name.removeprefix("net.backbone.")
        if inner in mask and inner.startswith(("blocks.6.", "blocks.7.conv1.")):
            changed = after[name] != old
            assert not changed[mask[inner] == 1].any()
            assert changed.sum() > 0.5 * (mask[inner] < 1).sum()
            moved.append(inner)
        elif inner in mask or not name.startswith("net.backbone."):
            same = name.startswith("prototypes") or torch.equal(after[name], old)
            assert same, name
        elif bn_mode == "frozen":
            assert torch.equal(after[name], old), name
        else:  # nothing but normalisation is left
            assert not torch.equal(after[name], old), name
    assert len(moved) == 4  # two convolutions and a shortcut, and a convolution


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_session_equals_a_loop_written_by_hand(metric: Any, tiny_stream: Any) -> None:
    stream = tiny_stream(keep_tasks=2, **FEW)
    options = {"c": 0.5, "ncm_metric": metric, "temperature": 0.5, "session_lr": 0.3}
    strategy = Spy(build_net("MLP", stream, seed=0, hidden=(8, 6)), session_epochs=2, **options)
    learn(strategy, stream, epochs=3, batch_size=7)
    state = strategy.states[0]
    mask = soft_mask(strategy)
    w = {
        n: state[f"net.backbone.{n}"].double() for n, _ in strategy.net.backbone.named_parameters()
    }
    means = state["prototypes.means"].double()
    for epoch in range(2):
        sampler = torch.Generator().manual_seed(derive_seed(3, "sampler", 1, epoch))
        for rows in torch.randperm(10, generator=sampler).split(7):
            (batch,) = stream[1].train.batches(7, order=rows)
            used = {n: v * mask[n].double() if n in mask else v for n, v in w.items()}
            last = used["layers.2.weight"].clone().requires_grad_()
            hidden = (batch.x.double() @ used["layers.0.weight"].T + used["layers.0.bias"]).relu()
            z = (hidden @ last.T + used["layers.2.bias"]).relu()
            if metric == "cosine":
                z = z / z.norm(dim=1, keepdim=True).clamp(min=1e-12)
            new = [k for k in (2, 3) if (batch.y == k).any()]
            labels = [0, 1, *new]
            p = torch.stack([*means[:2], *(z[batch.y == k].mean(dim=0) for k in new)])
            cosine = torch.cosine_similarity(z[:, None], p[None], dim=2, eps=1e-12)
            target = torch.tensor([labels.index(int(k)) for k in batch.y])
            cross_entropy((cosine - 1) / 0.5, target).backward()
            minor = mask["layers.2.weight"].double()
            w["layers.2.weight"] -= 0.3 * last.grad * torch.where(minor < 1, minor, 0)
    for name, expected in w.items():
        ours = strategy.net.backbone.get_parameter(name).detach().double()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    moved = strategy.net.backbone.get_parameter("layers.2.weight")
    assert not torch.equal(moved, state["net.backbone.layers.2.weight"])


def test_prototypes_are_of_training_images_as_in_a_test() -> None:
    """No crops, no flips, evaluation mode, the frozen mask, all training images of the class."""
    stream = images()
    strategy = SoftNet(build_net("ResNet18", stream, width=4, seed=0), stage="blocks.7")
    result = learn(strategy, stream, batch_size=10)
    strategy.eval()
    parameters = dict(strategy.net.backbone.named_parameters())
    weights = {n: parameters[n].detach() * m for n, m in soft_mask(strategy).items()}
    means = []
    with torch.no_grad():
        for task in stream:
            batch = next(task.train.batches(100))
            z = torch.func.functional_call(strategy.net.backbone, weights, (batch.x,))
            z = z / z.norm(dim=1, keepdim=True)
            means += [z[batch.y == label].mean(dim=0) for label in task.classes]
    # Those of the base task were taken before the session moved the net.
    torch.testing.assert_close(strategy.prototypes.means[2:], torch.stack(means[2:]))
    assert not torch.equal(strategy.prototypes.means[:2], torch.stack(means[:2]))
    assert strategy.prototypes.known.all()
    assert [sorted(stored) for stored in result.bytes] == [
        ["masks", "parameters", "prototypes"]
    ] * 2
    assert [stored["prototypes"] for stored in result.bytes] == [2 * 32 * 4, 4 * 32 * 4]
    assert result.bytes[0]["masks"] == sum(-(-m.numel() // 8) for m in weights.values()) + 16


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_predicts_the_nearest_mean_among_the_classes_seen(metric: Any, tiny_stream: Any) -> None:
    stream = tiny_stream(**FEW)
    strategy = SoftNet(build_net("MLP", stream, seed=0, hidden=(8,)), ncm_metric=metric)
    result = learn(strategy, stream)
    assert result.matrix[0, 1] == result.matrix[1, 2] == 0  # classes of the next task are ruled out
    strategy.prototypes.known[1] = False
    strategy.eval()
    weight, bias = (p.detach().double().numpy() for p in strategy.net.backbone.parameters())
    weight = weight * soft_mask(strategy)["layers.0.weight"].double().numpy()
    means = strategy.prototypes.means.double().numpy()
    for batch in stream[1].test.batches(16):
        logits = strategy.predict(batch.x).detach().numpy()
        for row, ours in zip(batch.x.double().numpy(), logits, strict=True):
            z = np.maximum(weight @ row + bias, 0)
            if metric == "cosine":
                distances = 1 - means @ z / np.linalg.norm(means, axis=1) / np.linalg.norm(z)
            else:
                distances = np.linalg.norm(means - z, axis=1)
            distances[1] = -MASKED
            np.testing.assert_allclose(-ours, distances, rtol=1e-4, atol=1e-5)


def test_sessions_have_their_own_number_of_epochs(tiny_stream: Any) -> None:
    stream = tiny_stream(**FEW)
    strategy = Spy(build_net("MLP", stream, seed=0), session_epochs=2)
    learn(strategy, stream, epochs=5, batch_size=16)
    assert len(strategy.draws) == 5 * 2 + 2 + 2


def test_exemplars_are_of_earlier_sessions_only(tiny_stream: Any) -> None:
    stream = tiny_stream(**FEW)
    strategy = SoftNet(build_net("MLP", stream, seed=0), exemplars_per_class=2)
    result = learn(strategy, stream)
    assert strategy.examples(stream[0], ()).labels.tolist() == stream[0].train.labels.tolist()
    assert len(strategy.examples(stream[1], stream.tasks[:1])) == 10
    mixed = strategy.examples(stream[2], stream.tasks[:2])
    assert mixed.labels.bincount().tolist() == [0, 0, 2, 2, 5, 5]
    kept = set(mixed.rows[mixed.labels < 4].tolist())
    assert kept <= set(stream[1].train.rows.tolist())
    assert [stored["exemplars"] for stored in result.bytes] == [0, 4 * 28, 8 * 28]


def test_hardnet_has_zeros_and_learns_in_the_base_task_alone() -> None:
    stream = images()
    options = {"c": 0.4, "lr": 0.05}
    hard = HardNet(build_net("ResNet18", stream, width=4, seed=0), **options)
    learn(hard, stream, batch_size=10)
    soft = Spy(build_net("ResNet18", stream, width=4, seed=0), soft_epoch=None, **options)
    learn(soft, stream, batch_size=10)
    for name, value in soft.states[0].items():
        if not name.startswith("prototypes"):
            assert torch.equal(hard.state_dict()[name], value), name
    bits = hard.subnetworks.split(hard.subnetworks.mask(0))
    for weight, own, bit in zip(hard._fixed_weights(), hard.subnetworks.weights, bits, strict=True):
        major = unpack_bits(bit, weight.shape)
        assert torch.equal(weight[major], own[major])
        assert not weight[~major].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": 0.0}, r"strategy\.c: 0\.0 is not valid"),
        ({"stage": "layer.0"}, r"'layer\.0' is unknown; did you mean layers\.0.*Known: layers"),
        ({"stage": ["layers", "body"]}, r"strategy\.stage: 'body' is unknown"),
        ({"stage": "lay"}, r"strategy\.stage: 'lay' is unknown"),
        ({"stage": []}, r"strategy\.stage: \[\] is not valid: expected a name"),
        ({"redraw": "step"}, r"strategy\.redraw: 'step' is not valid: expected epoch or forward"),
        ({"bn_mode": "eval"}, r"strategy\.bn_mode: 'eval' .* frozen or official"),
        ({"ncm_metric": "l2"}, r"strategy\.ncm_metric: 'l2' .* cosine or euclidean"),
        ({"gamma": 0.0}, r"strategy\.gamma: 0\.0 is not valid: expected a number in \(0, 1\]"),
        ({"milestones": [0]}, r"strategy\.milestones: \[0\] is not valid: expected integers >= 1"),
        ({"milestones": [1.5]}, r"strategy\.milestones: \[1\.5\] is not valid"),
        ({"soft_epoch": -1}, r"strategy\.soft_epoch: -1 is not valid"),
        ({"session_epochs": 0}, r"strategy\.session_epochs: 0 is not valid"),
        ({"session_lr": 0.0}, r"strategy\.session_lr: 0\.0 is not valid"),
        ({"temperature": float("nan")}, r"strategy\.temperature: nan is not valid"),
        ({"exemplars_per_class": -1}, r"strategy\.exemplars_per_class: -1 is not valid"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str, tiny_stream: Any) -> None:
    with pytest.raises(UserError, match=message):
        SoftNet(build_net("MLP", tiny_stream()), **options)


def test_streams_and_heads_are_checked(tiny_stream: Any) -> None:
    stream = tiny_stream(scenario="domain")
    with pytest.raises(UserError, match=r"stream\.scenario: domain is not valid for HardNet"):
        HardNet(build_net("MLP", stream)).prepare(stream, Generators(0))
    heads = build_net("MLP", tiny_stream(scenario="task"))
    with pytest.raises(UserError, match=r"net\.head: a MultiHead needs the task's id"):
        SoftNet(heads).prepare(tiny_stream(scenario="class"), Generators(0))
