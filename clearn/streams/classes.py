"""Streams that are one data set split by class."""

from __future__ import annotations

from clearn import datasets
from clearn.sources import Source
from clearn.stream import Stream
from clearn.streams.options import FILES, PHOTOS, SPLIT, Options, builder


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


@builder(*SPLIT, "download", *PHOTOS, num_tasks=10)
def SplitTinyImageNet(options: Options) -> Stream:
    """Tiny-ImageNet: 110 000 photographs of 64x64 pixels, 200 classes, split by class.

    Classes are numbered by their sorted WordNet ids, and tested on the `val` images. The data are
    in `tiny-imagenet-200` below the root.
    """
    source = datasets.tiny_imagenet(
        options.root,
        options.download,
        options.image_size,
        options.augment,
        options.budget_gib,
        options.workers,
    )
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
    source = datasets.imagenet(
        options.root,
        num_classes,
        options.image_size,
        options.augment,
        options.budget_gib,
        options.workers,
    )
    return Stream.from_source(source, options)


def _cifar(classes: int, options: Options) -> Source:
    return datasets.cifar(
        classes, options.root, options.download, options.image_size, options.augment
    )
