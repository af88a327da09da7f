"""The conformance suite passes what keeps the contract, and names the fault of what does not."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clearn import laboratory, testing
from clearn.batch import Batch
from clearn.errors import UserError
from clearn.seeding import Generators
from clearn.strategies import ER, Naive
from clearn.strategy import Strategy
from clearn.stream import Stream, Task
from clearn.testing import check_strategy
from tests.clearn.broken_strategies import (
    BROKEN,
    ClassState,
    Counts,
    ForgetsTheNet,
    NarrowPredict,
    NeverLearns,
    Raises,
)

THIRD_PARTY = '''
"""Learning without forgetting, as another package might write it."""

import copy

import torch
from torch.nn.functional import cross_entropy, kl_div

from clearn import Strategy


class Lwf(Strategy):
    """Distil the net as it was before the task.

    Args:
        net: The network to train.
        strength: Weight of the distillation.
    """

    def __init__(self, net, *, strength: float = 0.1, lr: float = 0.1):
        super().__init__(net, lr=lr)
        self.strength = strength
        self.teacher = copy.deepcopy(net).requires_grad_(False)
        self.register_buffer("tasks_begun", torch.tensor(0))

    def begin_task(self, task):
        self.teacher.load_state_dict(self.net.state_dict())
        super().begin_task(task)
        self.tasks_begun += 1

    def loss(self, batch):
        logits = self.logits(batch)
        if self.task.index == 0:
            return cross_entropy(logits, batch.y)
        task_id = batch.task_id if self.stream.scenario == "task" else None
        with torch.no_grad():
            before = self.teacher(batch.x, task_id)
        new, old = logits.log_softmax(1), before.log_softmax(1)
        distance = kl_div(new, old, reduction="batchmean", log_target=True)
        return cross_entropy(logits, batch.y) + self.strength * distance

    def bytes_stored(self):
        size = sum(t.numel() * t.element_size() for t in self.teacher.state_dict().values())
        return super().bytes_stored() | {"teacher": size}
'''


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package on the path, installed with an entry point."""
    (tmp_path / "otherlab").mkdir()
    (tmp_path / "otherlab" / "__init__.py").write_text(THIRD_PARTY)
    installed = tmp_path / "otherlab-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: otherlab\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[clearn.strategies]\nLwf = otherlab:Lwf\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "otherlab"
    sys.modules.pop("otherlab", None)


def test_a_strategy_of_another_package_passes(other_package: str) -> None:
    by_path = importlib.import_module(other_package).Lwf
    (point,) = metadata.entry_points(group="clearn.strategies", name="Lwf")
    assert point.load() is by_path
    check_strategy(by_path, scenarios=["class", "task"], strength=0.05)


def test_a_strategy_with_charts_passes() -> None:
    check_strategy(Counts, scenarios=["domain"])


@pytest.fixture
def _restored() -> Iterator[None]:
    """What the broken ones leave changed."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    ClassState.weights.clear()


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_strategy_is_caught(broken: type[Strategy]) -> None:
    with pytest.raises(AssertionError) as caught:
        check_strategy(broken, scenarios=_fewest(broken), lr=0.1)
    assert re.search(BROKEN[broken], str(caught.value).replace("\n", " ")), str(caught.value)
    assert str(caught.value).startswith(broken.__name__)


def _fewest(broken: type[Strategy]) -> list[Any]:
    """The one scenario whose message the table expects; domain is the fastest."""
    return [
        {NeverLearns: "task", Raises: "task", ForgetsTheNet: "class", NarrowPredict: "class"}.get(
            broken, "domain"
        )
    ]


def test_what_is_no_strategy_is_refused() -> None:
    with pytest.raises(UserError, match=r"is not a subclass of clearn\.Strategy"):
        check_strategy(dict)  # type: ignore[arg-type]
    for scenarios in ([], ["clas"]):
        with pytest.raises(UserError, match=r"scenarios: .* expected task, class, domain"):
            check_strategy(Naive, scenarios=scenarios)  # type: ignore[arg-type]


def test_an_option_the_constructor_does_not_know_is_named() -> None:
    with pytest.raises(AssertionError, match=r"Naive, domain scenario.*TypeError: .*'strength'"):
        check_strategy(Naive, scenarios=["domain"], strength=1)


def test_only_the_scenarios_named_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlyDomain(Naive):
        def prepare(self, stream: Stream, generators: Generators) -> None:
            super().prepare(stream, generators)
            if stream.scenario != "domain":
                raise UserError("strategy: the domain scenario only")

    check_strategy(OnlyDomain, scenarios=["domain"])
    with pytest.raises(AssertionError, match="class scenario, single head: strategy: the domain"):
        check_strategy(OnlyDomain, scenarios=["class"])


def test_heads_net_and_shape_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    class Looks(Naive):
        def begin_task(self, task: Task) -> None:
            super().begin_task(task)
            names = [type(part).__name__ for part in (self.net.backbone, self.net.head)]
            seen.add((self.stream.scenario, *names, self.stream.input_shape))

    images = {"net": {"name": "SmallCNN"}, "input_shape": (2, 6, 5)}
    check_strategy(Looks, scenarios=["task"], heads=["wide", "multi"], lr=0.1, **images)
    assert seen == {("task", "SmallCNN", name, (2, 6, 5)) for name in ("WideHead", "MultiHead")}
    seen.clear()
    monkeypatch.setattr(testing, "_check_learning", lambda case: case.run())
    for name in ("_check_predict", "_check_repetition", "_check_future", "_check_resume"):
        monkeypatch.setattr(testing, name, lambda *_: None)
    check_strategy(Looks, net={"hidden": (4,)}, heads=["growing", "multi"])
    heads = {"task": ["GrowingHead", "MultiHead"], "class": ["GrowingHead"]}
    heads["domain"] = heads["class"]
    assert seen == {(kind, "MLP", head, (8,)) for kind in heads for head in heads[kind]}
    seen.clear()
    check_strategy(Looks)
    heads = {"task": ["SingleHead", "MultiHead"], "class": ["SingleHead", "GrowingHead"]}
    heads["domain"] = ["SingleHead"]
    assert seen == {(kind, "MLP", head, (8,)) for kind in heads for head in heads[kind]}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"heads": ["mutli"]}, r"heads: 'mutli' is unknown; did you mean multi"),
        ({"heads": []}, r"heads: \[\] is not valid for the task scenario"),
        ({"heads": ["multi"]}, r"not valid for the class scenario, which allows single, growing"),
        ({"heads": ["wide"], "scenarios": ["domain"]}, r"not valid for the domain scenario"),
    ],
)
def test_heads_that_do_not_fit(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        check_strategy(Naive, **options)


def test_a_net_that_does_not_exist_is_named() -> None:
    with pytest.raises(AssertionError, match=r"Naive, domain scenario.*net\.name: 'CNN' is"):
        check_strategy(Naive, scenarios=["domain"], net={"name": "CNN"})


def test_a_net_with_statistics_of_the_batch_is_caught() -> None:
    net = {"name": "ResNet18", "width": 2, "statistics": "batch"}
    with pytest.raises(AssertionError, match="no statistics of the batch"):
        check_strategy(Naive, scenarios=["domain"], net=net, input_shape=(1, 16, 16))


@pytest.mark.parametrize("stop", [{"chunk": 20}, {"fit": 2}])
def test_the_suite_really_stops_its_runs(stop: dict[str, int], tmp_path: Path) -> None:
    case = laboratory.Case(ER, {}, "class", "single", {"chunk_size": 1})
    outcome = case.run(folder=tmp_path / "r", stop=laboratory.Stop(**stop))
    assert not (tmp_path / "r" / "metrics.json").exists()
    assert len(outcome.states) == (1 if "chunk" in stop else 2)
    assert list((tmp_path / "r" / "checkpoints").glob("*.ckpt"))


def test_differences_are_found_in_nested_states() -> None:
    a = {"x": torch.zeros(2), "y": {"z": [1, (2, torch.ones(1))]}, "w": 1}
    assert laboratory.differences(a, laboratory.copy_state(a)) == []
    for change, names in [
        ({"x": torch.zeros(3)}, ["x"]),
        ({"x": torch.zeros(2, dtype=torch.int64)}, ["x"]),
        ({"y": {"z": [1, (2, torch.zeros(1))]}}, ["z"]),
        ({"y": {"z": [1]}}, ["z"]),
        ({"w": 1.0}, ["w"]),
        ({"v": 0}, ["v"]),
    ]:
        assert laboratory.differences(a, {**a, **change}) == names
    assert laboratory.differences({"n": 0}, {}) == ["n"]
    assert laboratory.name_some(list("abcae")) == "a, b, c and 1 more"


@pytest.mark.gpu
def test_waiting_for_the_device_is_caught() -> None:
    class Waits(Naive):
        def loss(self, batch: Batch) -> Tensor:
            loss = super().loss(batch)
            self.last = loss.item()
            return loss

    with pytest.raises(AssertionError, match="step makes the host wait for the device"):
        check_strategy(Waits, scenarios=["domain"])
