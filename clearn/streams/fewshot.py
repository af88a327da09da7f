"""Few-shot class-incremental streams: a large base task, then sessions of a few examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from clearn import datasets
from clearn.fewshot import FewShot
from clearn.sources import Source
from clearn.split import invalid
from clearn.stream import Stream
from clearn.streams.options import FILES, Options, builder

Dataset = Literal["CIFAR100", "miniImageNet", "CUB200", "TinyImageNet"]


@dataclass(frozen=True)
class _Preset:
    """What the literature does with a data set."""

    base_classes: int
    ways: int
    shots: int
    image_size: int | None = None


# Tao et al. (2020); Tiny-ImageNet is not among theirs, and has the same shares.
_PRESETS: dict[Dataset, _Preset] = {
    "CIFAR100": _Preset(60, 5, 5),
    "miniImageNet": _Preset(60, 5, 5, image_size=84),
    "CUB200": _Preset(100, 10, 5, image_size=224),
    "TinyImageNet": _Preset(120, 5, 5),
}


@builder(
    *("scenario", "class_order", "order_seed", "keep_tasks", "validation"),
    *(*FILES, "augment", "budget_gib", "workers"),
)
def FewShotStream(
    options: Options,
    *,
    dataset: Dataset = "CIFAR100",
    base_classes: int | None = None,
    ways: int | None = None,
    shots: int | None = None,
    shot_seed: int = 0,
) -> Stream:
    """Few-shot class-incremental learning: a base task with much data, then sessions with little.

    Task 0 has all training images of the base classes, every session after it a few of each of its
    classes; all are tested on all test images of their classes. Classes are in the data set's
    order unless one is given or drawn.

    Args:
        options: The shared ones.
        image_size: Height and width to bring the images to, in pixels. None: 224 for CUB200, 84
            for miniImageNet, else as they are.
        download: Download what is missing; CIFAR100 and TinyImageNet only.
        dataset: Where the images are from. miniImageNet: `miniimagenet/images` with `train.csv` and
            `test.csv`; CUB200: `CUB_200_2011` as it is packed.
        base_classes: Classes of task 0. None: 60 of CIFAR100 and miniImageNet, 100 of CUB200, 120
            of TinyImageNet.
        ways: Classes of each session. None: 10 of CUB200, else 5.
        shots: Training images of each class of a session. None: 5.
        shot_seed: Seeds the draw of the shots.
    """
    if dataset not in get_args(Dataset):
        raise invalid("dataset", repr(dataset), ", ".join(get_args(Dataset)))
    preset = _PRESETS[dataset]
    split = FewShot(
        scenario=options.scenario,
        class_order=options.class_order,
        order_seed=options.order_seed,
        keep_tasks=options.keep_tasks,
        validation=options.validation,
        base_classes=preset.base_classes if base_classes is None else base_classes,
        ways=preset.ways if ways is None else ways,
        shots=preset.shots if shots is None else shots,
        shot_seed=shot_seed,
    )
    size = preset.image_size if options.image_size is None else options.image_size
    source = _open(dataset, replace(options, image_size=size))
    return Stream.from_source(replace(source, name=f"FewShot{dataset}"), split)


def _open(dataset: Dataset, options: Options) -> Source:
    photos = (options.image_size, options.augment, options.budget_gib, options.workers)
    if dataset == "CIFAR100":
        return datasets.cifar(
            100, options.root, options.download, options.image_size, options.augment
        )
    if dataset == "TinyImageNet":
        return datasets.tiny_imagenet(options.root, options.download, *photos)
    read = {"miniImageNet": datasets.mini_imagenet, "CUB200": datasets.cub200}[dataset]
    return read(options.root, *photos)
