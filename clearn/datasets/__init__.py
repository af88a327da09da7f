"""The data sets that streams are made of: bundled, or read from a data root."""

from clearn.datasets.characters import digits, mnist, not_mnist
from clearn.datasets.files import data_root, natural, resize
from clearn.datasets.omniglot import Omniglot, omniglot
from clearn.datasets.photographs import cub200, imagenet, mini_imagenet, tiny_imagenet
from clearn.datasets.small import SUPERCLASSES, cifar, svhn

__all__ = [
    "SUPERCLASSES",
    "Omniglot",
    "cifar",
    "cub200",
    "data_root",
    "digits",
    "imagenet",
    "mini_imagenet",
    "mnist",
    "natural",
    "not_mnist",
    "omniglot",
    "resize",
    "svhn",
    "tiny_imagenet",
]
