"""CIFAR and SVHN: small photographs in files that torchvision reads.

Nothing here unpickles what it has not checked: CIFAR's pickles are read by torchvision after their
MD5 sums were compared.
"""

from __future__ import annotations

import torch

from clearn.datasets.files import data_root, fetch, natural, resize
from clearn.errors import UserError
from clearn.sources import Source, from_tensors

CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_STATISTICS = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)


def cifar(
    classes: int, root: str | None, download: bool, image_size: int | None, augment: bool
) -> Source:
    """CIFAR-10 or CIFAR-100 (fine labels) as torchvision keeps them."""
    from torchvision import datasets

    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    folder = data_root(root) / kind.base_folder

    def get() -> None:
        kind(data_root(root), download=True)

    for file, _ in (*kind.train_list, *kind.test_list, (kind.meta["filename"], None)):
        if not (folder / file).is_file():
            fetch(get if download else None, folder, file, f"CIFAR-{classes}")
    try:
        # The files are pickles: torchvision compares their MD5 sums before it reads them.
        train, test = (kind(data_root(root), train=part) for part in (True, False))
    except RuntimeError as error:
        raise UserError(
            f"stream.root: the files in {folder} are damaged ({error}); remove them and get them "
            "again, for example with --stream.download true"
        ) from error
    x, x_test = (
        resize(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), image_size)
        for part in (train, test)
    )
    statistics = CIFAR10_STATISTICS if classes == 10 else CIFAR100_STATISTICS
    return from_tensors(
        x,
        train.targets,
        x_test,
        test.targets,
        name=f"SplitCIFAR{classes}",
        preprocess=natural(*statistics, size=x.shape[-1], augment=augment),
        class_names=train.classes,
    )
