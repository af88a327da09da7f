"""Supervised pre-training of a small backbone on 100 classes of TinyImageNet at 32x32 pixels.

    OMP_NUM_THREADS=1 python experiments/pretrain/supervised.py --epochs 20

Cross-entropy with smoothed labels on random crops and mirror images. The same command continues a
run that was stopped. It writes results/pretrain/supervised.safetensors and supervised.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from pretraining import arguments, pretrain
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.preprocess import Preprocess


class Classifier(nn.Module):
    """A backbone with a linear layer for all classes."""

    def __init__(self, backbone: nn.Module, classes: int, preprocess: Preprocess) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, classes)
        self.preprocess = preprocess

    def loss(self, raw: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        logits = self.head(self.backbone(self.preprocess.train(raw, generator)))
        return F.cross_entropy(logits, y, label_smoothing=0.1)


def main(words: Sequence[str] | None = None) -> None:
    pretrain("supervised", Classifier, arguments(__doc__).parse_args(words))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
