"""SimCLR on images of 100 classes of TinyImageNet at 32x32 pixels, without their labels.

    OMP_NUM_THREADS=1 python experiments/pretrain/selfsupervised.py --epochs 8 --batch-size 256

Chen et al. 2020, arXiv 2002.05709: two views of every image of a batch are to be found among the
views of all others. Views are random crops of an image, mirrored and with other colours. The same
command continues a run that was stopped. It writes results/pretrain/selfsupervised.safetensors and
selfsupervised.json.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from pretraining import arguments, pretrain
from torch import Tensor, nn
from torch.nn import functional as F

from clearn.preprocess import Preprocess
from clearn.views import Views

TEMPERATURE = 0.2


class SimCLR(nn.Module):
    """A backbone with a projection of its features to 128 numbers."""

    def __init__(self, backbone: nn.Module, classes: int, preprocess: Preprocess) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.num_features
        self.projection = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, 128),
        )
        self.views = Views(preprocess, scale=(0.2, 1.0), brightness=0.0)

    def loss(self, raw: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        views = self.views.weak(torch.cat([raw, raw]), generator)
        return nt_xent(self.projection(self.backbone(recolour(views, generator))), TEMPERATURE)


def recolour(x: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised images `[B, C, H, W]` with other saturation, contrast and tint, one in 5 grey.

    Done to normalised values all at once; of an image of its own brightness and contrast nothing
    is cut off.
    """
    drawn = torch.rand(3 + x.shape[1], len(x), 1, 1, 1, generator=generator).to(x.device)
    grey = x.mean(1, keepdim=True)
    saturation = torch.where(drawn[0] < 0.2, 0.0, 0.2 + 1.6 * drawn[1])
    contrast = 0.4 + 1.2 * drawn[2]
    tint = drawn[3:].flatten(1).T[..., None, None] - 0.5
    x = grey + saturation * (x - grey)
    middle = x.mean((1, 2, 3), keepdim=True)
    return middle + contrast * (x - middle) + tint


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """How badly each of 2B views is found by its pair among the 2B - 1 others, in nats.

    The normalised temperature-scaled cross-entropy over cosine similarities.

    Args:
        z: `[2B, d]`; row i and row i + B are of one image.
        temperature: > 0.
    """
    z = F.normalize(z, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarities = (z @ z.T / temperature).masked_fill(itself, float("-inf"))
    return F.cross_entropy(similarities, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def main(words: Sequence[str] | None = None) -> None:
    pretrain("selfsupervised", SimCLR, arguments(__doc__).parse_args(words))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
