"""The image path: clearn's Naive against Avalanche's Naive and against a plain loop.

    OMP_NUM_THREADS=1 python experiments/speed/images.py

Random 32x32 RGB images (10 000 for the small CNN, 2 000 for the ResNet), 2 tasks, batch 64, random
crop with padding 4, horizontal flip, normalise. Bars: small CNN >= 2.5x Avalanche's images per
second (CPU seconds <= 0.4x); reduced ResNet-18 <= 1.05x the plain loop over clearn's own batches.
"""

from __future__ import annotations

import torch
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.supervised import Naive as AvalancheNaive
from harness import interleave
from torch import nn
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from clearn.nets import build_net
from clearn.preprocess import Preprocess
from clearn.run import Run, Training
from clearn.strategies import Naive
from clearn.stream import Stream

torch.set_num_threads(1)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)


def images(count: int) -> tuple[torch.Tensor, torch.Tensor, Stream]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    y = torch.arange(count) % 10
    preprocess = Preprocess(MEAN, STD, padding=4, flip=True)
    return x, y, Stream.from_arrays(x, y, x[:10], y[:10], num_tasks=2, preprocess=preprocess)


X, Y, STREAM = images(10_000)
FEW_X, FEW_Y, FEW = images(2_000)


class PilImages(torch.utils.data.Dataset):
    """The same images as a torchvision data set keeps them."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.images = [to_pil_image(X[row]) for row in rows]
        self.targets = Y[rows].tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.images[index], self.targets[index]


AUGMENT = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
BENCHMARK = benchmark_from_datasets(
    train=[
        as_classification_dataset(
            PilImages(task.train.rows), transform_groups={"train": (AUGMENT, None), "eval": None}
        )
        for task in STREAM
    ]
)


def clearn(name: str, stream: Stream) -> None:
    strategy = Naive(build_net(name, stream, head="single"))
    Run(strategy, stream, training=Training(batch_size=64, evaluate_every=2)).fit()


def avalanche() -> None:
    net = build_net("SmallCNN", STREAM, head="single")
    strategy = AvalancheNaive(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=64,
        evaluator=None,
    )
    for experience in BENCHMARK.train_stream:
        strategy.train(experience)


def plain() -> None:
    net = build_net("ReducedResNet18", FEW, head="single")
    draws = torch.Generator().manual_seed(0)
    for task in FEW:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for index in torch.randperm(len(task.train)).split(64):
            rows = task.train.rows[index]
            x = FEW.preprocess.train(FEW_X[rows], draws)
            loss = nn.functional.cross_entropy(net(x), FEW_Y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


interleave(
    "32x32 crop+flip+normalise, small CNN, batch 64, 10 000 images",
    {"avalanche Naive, torchvision": avalanche, "clearn Naive": lambda: clearn("SmallCNN", STREAM)},
    reference="avalanche Naive, torchvision",
    bar="<= 0.40 (2.5x the images per second)",
)
interleave(
    "32x32 crop+flip+normalise, reduced ResNet-18, batch 64, 2 000 images",
    {"plain torch": plain, "clearn Naive": lambda: clearn("ReducedResNet18", FEW)},
    reference="plain torch",
    rounds=5,
    bar="<= 1.05",
)
