"""The Avalanche benchmark underneath a stream, and streams of Avalanche's own benchmarks."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from clearn import _avalanche
from clearn.errors import UserError
from clearn.examples import Examples
from clearn.preprocess import Preprocess
from clearn.stream import Stream
from clearn.streams import SplitDigits

library = _avalanche._benchmarks()


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)


def make(**options: Any) -> Stream:
    y = np.arange(6).repeat(9)
    preprocess = options.pop("preprocess", Preprocess((0.5,), (0.25,)))
    return Stream.from_arrays(
        images(54, 0), y, images(54, 1), y, preprocess=preprocess, **{"num_tasks": 3, **options}
    )


@pytest.mark.parametrize(
    ("scenario", "options"),
    [("class", {}), ("task", {}), ("domain", {}), ("domain", {"split": "instances"})],
)
def test_experiences_are_the_tasks(scenario: str, options: dict[str, Any]) -> None:
    stream = make(scenario=scenario, order_seed=3, validation=0.3, **options)
    benchmark = stream.benchmark
    assert isinstance(benchmark, library.CLScenario)
    for name in ("train", "test", "validation"):
        experiences = getattr(
            benchmark, "valid_stream" if name == "validation" else f"{name}_stream"
        )
        assert len(experiences) == len(stream)
        for task, experience in zip(stream, experiences, strict=True):
            examples: Examples = getattr(task, name)
            (batch,) = examples.batches(100)
            x, y, t = (
                torch.stack([torch.as_tensor(i[k]) for i in experience.dataset]) for k in range(3)
            )
            assert torch.equal(x, batch.x)  # no augmentation in this stream
            assert torch.equal(y, batch.y)
            task_label = task.index if scenario == "task" else 0
            assert t.tolist() == [task_label] * len(examples)
            assert list(experience.dataset.targets) == y.tolist()
            assert experience.task_labels == [task_label]
            assert experience.current_experience == task.index
            assert experience.classes_in_this_experience == list(task.classes)
            past = [other.classes for other in stream.tasks[: task.index]]
            assert experience.previous_classes == sorted(set().union(*past))
            assert experience.classes_seen_so_far == sorted(set().union(*past, task.classes))


def test_there_is_no_validation_stream_without_a_share() -> None:
    assert set(make().benchmark.streams) == {"train", "test"}


def test_transforms_of_a_task_are_seen_by_avalanche_too() -> None:
    from clearn.sources import from_tensors
    from clearn.split import Split

    y = np.arange(6).repeat(9)
    source = from_tensors(images(54, 0), y, images(54, 1), y, name="n")
    stream = Stream.from_source(source, Split(scenario="domain"), [None, lambda raw: 255 - raw])
    plain, inverse = (e.dataset[7][0] for e in stream.benchmark.train_stream)
    torch.testing.assert_close(plain, 1 - inverse)


def test_train_items_are_augmented_and_test_items_are_not() -> None:
    stream = make(preprocess=Preprocess((), (), padding=1, flip=True))
    train, test = (
        s[0].dataset for s in (stream.benchmark.train_stream, stream.benchmark.test_stream)
    )
    torch.manual_seed(0)
    assert len({train[0][0].numpy().tobytes() for _ in range(50)}) > 10
    assert len({test[0][0].numpy().tobytes() for _ in range(5)}) == 1
    assert len({train.eval()[0][0].numpy().tobytes() for _ in range(5)}) == 1


def avalanche_naive(net: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.training.supervised import Naive
    return Naive(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        train_epochs=3,
        eval_mb_size=64,
        evaluator=None,
    )


@pytest.mark.filterwarnings("ignore:No loggers specified")
def test_an_avalanche_strategy_learns_a_stream() -> None:
    stream = SplitDigits(num_tasks=5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    strategy = avalanche_naive(net)
    experience = stream.benchmark.train_stream[0]
    strategy.train(experience)
    (batch,) = stream[0].test.batches(1000)
    with torch.no_grad():
        assert (net(batch.x).argmax(1) == batch.y).float().mean() > 0.9


@pytest.mark.filterwarnings("ignore:No loggers specified")
def test_an_avalanche_strategy_gets_the_task_labels() -> None:
    from avalanche.models import MTSimpleMLP

    stream = SplitDigits(num_tasks=5, scenario="task")
    net = MTSimpleMLP(input_size=64, hidden_size=8)
    strategy = avalanche_naive(net)
    for experience in stream.benchmark.train_stream[:2]:
        strategy.train(experience)
    assert set(net.classifier.classifiers) == {"0", "1"}


# The other way round


class Pictures(Dataset[tuple[Image.Image, int]]):
    def __init__(self, count: int, seed: int, classes: int = 4) -> None:
        self.pixels = images(count, seed)
        self.targets = [index % classes for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index, 0]), self.targets[index]


def classification(data: Any, **options: Any) -> Any:
    return library.utils.as_classification_dataset(data, **options)


def class_incremental(**options: Any) -> Any:
    datasets = {
        "train": classification(Pictures(40, 0), **options),
        "test": classification(Pictures(20, 1), **options),
    }
    return library.class_incremental_benchmark(
        datasets, num_experiences=2, class_order=[2, 0, 3, 1]
    )


def test_a_class_incremental_benchmark_keeps_its_numbers() -> None:
    benchmark = class_incremental()
    stream = Stream.from_avalanche(benchmark, scenario="class")
    assert stream.benchmark is benchmark
    assert [task.classes for task in stream] == [(0, 2), (1, 3)]
    assert (stream.num_classes, stream.original_classes) == (4, (0, 1, 2, 3))
    for name, data in (("train", Pictures(40, 0)), ("test", Pictures(20, 1))):
        for task, experience in zip(stream, getattr(benchmark, f"{name}_stream"), strict=True):
            (batch,) = getattr(task, name).batches(100)
            assert batch.raw.dtype == torch.uint8
            assert batch.y.tolist() == list(experience.dataset.targets)
            rows = [
                np.flatnonzero((data.pixels == raw.numpy()).all((1, 2, 3))) for raw in batch.raw
            ]
            assert [data.targets[int(row[0])] for row in rows] == batch.y.tolist()
            assert len(np.unique(rows)) == len(batch)


def test_transforms_for_evaluation_are_applied_once_and_those_for_training_are_not() -> None:
    from torchvision.transforms import ToTensor

    def fail(image: Any) -> Any:
        raise AssertionError("a transform for training was used")

    groups = library.utils.TransformGroups({"train": (fail, None), "eval": (ToTensor(), None)})
    stream = Stream.from_avalanche(
        class_incremental(transform_groups=groups), scenario="task", validation=0.2
    )
    (batch,) = stream[1].train.batches(100)
    assert (batch.raw.dtype, stream.input_shape) == (torch.float32, (1, 4, 4))
    assert torch.equal(batch.x, batch.raw)
    assert float(batch.x.max()) <= 1
    assert stream[1].validation is not None
    assert len(stream[1].validation) + len(batch) == 20
    assert len(stream.benchmark.train_stream[1].dataset) == len(batch)  # for Avalanche's own


def test_one_test_experience_serves_all_tasks() -> None:
    train = [classification(Pictures(12, s)) for s in range(3)]
    benchmark = library.benchmark_from_datasets(train=train, test=[classification(Pictures(8, 9))])
    stream = Stream.from_avalanche(benchmark, scenario="domain", keep_tasks=2)
    assert [len(task.test) for task in stream] == [8, 8]
    assert len(stream.benchmark.train_stream) == 2
    assert stream[0].classes == stream[1].classes == (0, 1, 2, 3)

    narrow = [classification(Pictures(12, s, classes=2)) for s in range(2)]
    benchmark = library.benchmark_from_datasets(train=narrow, test=[classification(Pictures(8, 9))])
    stream = Stream.from_avalanche(benchmark, scenario="task")
    assert stream[1].test.labels.tolist() == [0, 1, 0, 1]


def test_new_instances_benchmark() -> None:
    benchmark = library.new_instances_benchmark(
        classification(Pictures(40, 0)), classification(Pictures(20, 1)), 5, seed=0
    )
    stream = Stream.from_avalanche(benchmark, scenario="domain")
    assert sum(len(task.train) for task in stream) == 40
    assert [len(task.test) for task in stream] == [20] * 5


def test_a_deprecated_classic_benchmark() -> None:
    benchmark = library.nc_benchmark(
        Pictures(40, 0),
        Pictures(20, 1),
        2,
        task_labels=True,
        seed=0,
        class_ids_from_zero_in_each_exp=True,
    )
    stream = Stream.from_avalanche(benchmark, scenario="task")
    assert [task.classes for task in stream] == [(0, 1), (0, 1)]
    assert stream.num_classes == 2


def test_our_own_benchmark_comes_back() -> None:
    ours = make(order_seed=1)
    again = Stream.from_avalanche(ours.benchmark, scenario="class")
    for a, b in zip(ours, again, strict=True):
        (x,), (y,) = a.test.batches(100), b.test.batches(100)
        assert torch.equal(x.x, y.x)
        assert torch.equal(x.y, y.y)


@pytest.mark.parametrize(
    ("benchmark", "options", "message"),
    [
        (object(), {}, "benchmark: a object without a train_stream"),
        (
            library.benchmark_from_datasets(train=[classification(Pictures(4, 0))]),
            {},
            "benchmark: a CLScenario without a test_stream",
        ),
        (
            library.benchmark_from_datasets(
                train=[classification(Pictures(4, 0))] * 3,
                test=[classification(Pictures(4, 0))] * 2,
            ),
            {},
            "benchmark: 3 train and 2 test experiences do not go together",
        ),
        (
            library.benchmark_from_datasets(
                train=[classification(Pictures(4, 0))] * 2,
                test=[classification(Pictures(4, 0))] * 2,
            ),
            {},
            "stream.scenario: 'class' is not valid: tasks 0 and 1 both have class 0",
        ),
        (class_incremental(), {"keep_tasks": 3}, "stream.keep_tasks: 3 is not valid"),
        (class_incremental(), {"budget_gib": 0.0}, "budget_gib: train takes"),
        (class_incremental(), {"scenario": "online"}, "stream.scenario: 'online' is not valid"),
    ],
)
def test_benchmarks_that_cannot_be_used(
    benchmark: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Stream.from_avalanche(benchmark, **{"scenario": "class", **options})


def test_avalanche_is_imported_when_needed_and_without_a_warning() -> None:
    code = (
        "import sys, numpy as np\n"
        "import clearn.streams\n"
        "from clearn.stream import Stream\n"
        "assert 'avalanche' not in sys.modules\n"
        "x, y = np.zeros((4, 2)), np.array([0, 0, 1, 1])\n"
        "Stream.from_arrays(x, y, x, y, num_tasks=2)\n"
        "assert 'avalanche' in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
