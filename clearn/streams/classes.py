"""Streams that are one data set split by class."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from clearn import datasets
from clearn.datasets import SUPERCLASSES
from clearn.sources import Source
from clearn.split import draws, invalid
from clearn.stream import Stream
from clearn.streams.options import FILES, PHOTOS, SPLIT, Options, builder

Layout = Literal["correct", "apd"]


@builder(*SPLIT, "image_size", num_tasks=5)
def SplitDigits(options: Options) -> Stream:
    """scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels, 10 classes, no download.

    The 17 grey levels are spread over 0 to 255. A fifth of every class is for testing.
    """
    return Stream.from_source(datasets.digits(options.image_size), options)


@builder(*SPLIT, *FILES, num_tasks=5)
def SplitMNIST(options: Options) -> Stream:
    """MNIST: 70 000 grey images of 28x28 pixels, 10 handwritten digits, split by class."""
    return Stream.from_source(
        datasets.mnist(options.root, options.download, options.image_size), options
    )


@builder(*SPLIT, *FILES, num_tasks=5)
def SplitFMNIST(options: Options) -> Stream:
    """Fashion-MNIST: 70 000 grey images of 28x28 pixels, 10 kinds of clothes, split by class."""
    return Stream.from_source(
        datasets.mnist(options.root, options.download, options.image_size, fashion=True), options
    )


@builder(*SPLIT, *FILES, "augment", num_tasks=5)
def SplitCIFAR10(options: Options) -> Stream:
    """CIFAR-10: 60 000 photographs of 32x32 pixels, 10 classes, split by class."""
    return Stream.from_source(_cifar(10, options), options)


@builder(*SPLIT, *FILES, "augment", num_tasks=10)
def SplitCIFAR100(options: Options) -> Stream:
    """CIFAR-100: 60 000 photographs of 32x32 pixels, 100 classes (fine labels), split by class."""
    return Stream.from_source(_cifar(100, options), options)


@builder("scenario", "order_seed", "keep_tasks", "validation", *FILES, "augment", scenario="task")
def CIFAR100Superclass(options: Options, *, layout: Layout = "correct") -> Stream:
    """CIFAR-100 in 20 tasks of 5 related classes: its superclasses, in the order of their labels.

    Args:
        options: The shared ones.
        order_seed: Draws the order of the superclasses; that of their labels when missing.
        augment: Train on random crops and mirror images; with the correct layout only.
        layout: How an image lies in memory. correct: as it should, normalised. apd: what the
            published accuracies were measured on, through the data code of APD (Yoon et al. 2020;
            Kang et al. 2022): planes of colour are read as if they were pixels, which scrambles the
            image, and values are only divided by 255.
    """
    if layout not in get_args(Layout):
        raise invalid("layout", repr(layout), " or ".join(get_args(Layout)))
    source = _cifar(100, options, scrambled=layout == "apd")
    groups = SUPERCLASSES
    if options.order_seed is not None:
        order = draws(options.order_seed, "class order").permutation(len(groups))
        groups = tuple(groups[index] for index in order)
    split = replace(options, classes=groups, order_seed=None)
    return Stream.from_source(replace(source, name="CIFAR100Superclass"), split)


@builder(*SPLIT, "download", *PHOTOS, num_tasks=10)
def SplitTinyImageNet(options: Options) -> Stream:
    """Tiny-ImageNet: 110 000 photographs of 64x64 pixels, 200 classes, split by class.

    Classes are numbered by their sorted WordNet ids, and tested on the `val` images. The data are
    in `tiny-imagenet-200` below the root.
    """
    source = datasets.tiny_imagenet(options.root, options.download, *_photos(options))
    return Stream.from_source(source, options)


@builder(*SPLIT, *PHOTOS, num_tasks=20, image_size=84)
def SplitMiniImageNet(options: Options) -> Stream:
    """miniImageNet: 60 000 photographs, 100 classes of ImageNet, split by class.

    The images are in `miniimagenet/images` below the root; `train.csv` and `test.csv` beside it or
    in `miniimagenet/split`, with the columns `filename` and `label`, say which are for testing.
    Classes are numbered in the order in which `train.csv` names them.
    """
    source = datasets.mini_imagenet(options.root, *_photos(options))
    return Stream.from_source(source, options)


@builder(*SPLIT, *PHOTOS, num_tasks=20, image_size=224)
def SplitCUB200(options: Options) -> Stream:
    """CUB-200-2011: 11 788 photographs of birds, 200 species, split by class.

    The data are in `CUB_200_2011` below the root, as they are packed.
    """
    source = datasets.cub200(options.root, *_photos(options))
    return Stream.from_source(source, options)


@builder(*SPLIT, *PHOTOS, num_tasks=10, image_size=224)
def SplitImageNet(options: Options, *, num_classes: int | None = None) -> Stream:
    """ImageNet, or any folder of class folders, split by class and tested on `val`.

    The images are `train/<class>/*` and `val/<class>/*` below the root or its folder `imagenet`;
    classes are numbered by the sorted names of their folders.

    Args:
        options: The shared ones.
        num_classes: Use the first so many classes only, for example 100; all when missing.
    """
    source = datasets.imagenet(options.root, num_classes, *_photos(options))
    return Stream.from_source(source, options)


def _photos(options: Options) -> tuple[int | None, bool, float, int | None]:
    return options.image_size, options.augment, options.budget_gib, options.workers


def _cifar(classes: int, options: Options, *, scrambled: bool = False) -> Source:
    return datasets.cifar(
        classes,
        options.root,
        options.download,
        options.image_size,
        options.augment,
        scrambled=scrambled,
    )
