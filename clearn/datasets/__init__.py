"""The data sets that streams are made of: bundled, or read from a data root."""

from clearn.datasets.characters import digits, mnist
from clearn.datasets.files import data_root, natural, resize
from clearn.datasets.photographs import cifar, imagenet, tiny_imagenet

__all__ = [
    "cifar",
    "data_root",
    "digits",
    "imagenet",
    "mnist",
    "natural",
    "resize",
    "tiny_imagenet",
]
