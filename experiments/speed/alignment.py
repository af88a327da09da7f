"""Classifier alignment of 100 classes against the form in which it was published.

    OMP_NUM_THREADS=1 python experiments/speed/alignment.py

Stage 2 after the tenth task of 10 classes: 768 features (of ViT-B), 4 to 60 of them per class as
with 4 labelled images and what passes for confident among the others; 5 epochs of 256 draws of each
class, temperature 0.5. Statistics of the 10 new classes are part of what is timed.

"As published" keeps a covariance matrix per class, makes `torch.distributions.MultivariateNormal`
of it for every class in every epoch, and draws from that. Nine tenths of its time are the draws,
for which that class multiplies the matrix by one vector after another. "Factors kept" multiplies
matrices, and factors a covariance once, when the class is new. All else is clearn's in all forms,
the training of the head included, whose share is timed by itself as well. Before anything is timed,
covariances have to agree, and so do the losses of all forms, within the noise of the draws.

Bar: as published takes >= 5x as long.
"""

from __future__ import annotations

import torch
from harness import interleave
from torch import Tensor
from torch.distributions import MultivariateNormal

from clearn.alignment import align, mean_scale
from clearn.gaussians import JITTER, ClassGaussians
from clearn.nets import JoinedHead

torch.set_num_threads(1)
CLASSES, TASKS, WIDTH = 100, 10, 768
TRAINING = {"lr": 0.005, "momentum": 0.9, "weight_decay": 5e-3, "tau": 0.5, "per_class": 256}
EPOCHS = 5
CLEARN, PUBLISHED, FACTORS = "clearn", "as published", "factors kept"
LOOP = "the head's training alone"

generator = torch.Generator().manual_seed(0)
COUNTS = torch.randint(4, 61, (CLASSES,), generator=generator).tolist()
CENTRES = torch.randn(CLASSES, WIDTH, generator=generator)
FEATURES = [
    centre + torch.randn(count, WIDTH, generator=generator)
    for centre, count in zip(CENTRES, COUNTS, strict=True)
]
TASK_CLASSES = torch.arange(CLASSES).view(TASKS, -1).tolist()
NEW = TASK_CLASSES[-1]


class Published(ClassGaussians):
    """A covariance matrix of each class, factored whenever features are drawn."""

    def __init__(self) -> None:
        super().__init__(CLASSES, WIDTH)
        self.covariances: dict[int, Tensor] = {}

    @property
    def known(self) -> tuple[int, ...]:
        return tuple(sorted(self.covariances))

    def keep(self, label: int, features: Tensor) -> None:
        self.means[label] = features.mean(dim=0)
        self.covariances[label] = torch.cov(features.T) + JITTER * torch.eye(WIDTH)

    def sample(
        self, count: int, scale: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draws from torch's global generator, for distributions take no other."""
        rows = []
        for label in self.known:
            normal = MultivariateNormal(scale[label] * self.means[label], self.covariances[label])
            rows.append(normal.sample((count,)))
        return torch.cat(rows), torch.tensor(self.known).repeat_interleave(count)


class Factored(Published):
    """A Cholesky factor of each class, and one product of matrices for the draws of a class."""

    def keep(self, label: int, features: Tensor) -> None:
        super().keep(label, features)
        self.covariances[label] = torch.linalg.cholesky(self.covariances[label])

    def sample(
        self, count: int, scale: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        rows = [
            scale[label] * self.means[label]
            + torch.randn(count, WIDTH, generator=generator) @ self.covariances[label].T
            for label in self.known
        ]
        return torch.cat(rows), torch.tensor(self.known).repeat_interleave(count)


class Drawn(Published):
    """Hands out the same features in every epoch: what is left is the training."""

    def __init__(self, rows: Tensor, y: Tensor) -> None:
        super().__init__()
        self.drawn = rows, y

    @property
    def known(self) -> tuple[int, ...]:
        return tuple(range(CLASSES))

    def sample(
        self, count: int, scale: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return self.drawn


def make_head() -> JoinedHead:
    torch.manual_seed(0)
    head = JoinedHead(WIDTH, CLASSES, TASK_CLASSES)
    for task, labels in enumerate(TASK_CLASSES):
        head.begin_task(task, labels, torch.Generator())
    return head


def stage(gaussians: ClassGaussians, new: list[int], epochs: int = EPOCHS) -> Tensor:
    """Statistics of new classes, then the alignment; the loss of each epoch."""
    for label in new:
        gaussians.keep(label, FEATURES[label])
    head = make_head()
    scale, draws = mean_scale(head.task_of, TASKS - 1), torch.Generator().manual_seed(1)
    return align(head, gaussians, scale=scale, epochs=epochs, generator=draws, **TRAINING)


def filled(gaussians: ClassGaussians) -> ClassGaussians:
    for label, features in enumerate(FEATURES):
        gaussians.keep(label, features)
    return gaussians


OURS, THEIRS = filled(ClassGaussians(CLASSES, WIDTH)), filled(Published())
KEPT = filled(Factored())
for label in (0, 50):
    own = OURS._factors[label]
    found = own.T @ own + JITTER * torch.eye(WIDTH)
    torch.testing.assert_close(found, THEIRS.covariances[label], atol=1e-5, rtol=1e-4)
for other in (THEIRS, KEPT):
    torch.testing.assert_close(stage(OURS, NEW, 1), stage(other, NEW, 1), atol=0.01, rtol=0.01)
MATRICES = sum(matrix.nbytes for matrix in THEIRS.covariances.values())
print(f"stored: {OURS.bytes_stored() / 2**20:.1f} MiB, as published {MATRICES / 2**20:.1f} MiB")
DRAWN = Drawn(*OURS.sample(256, torch.ones(CLASSES), generator))
interleave(
    f"classifier alignment, {CLASSES} classes, {WIDTH} features, {EPOCHS} epochs of 256 draws",
    {
        CLEARN: lambda: stage(OURS, NEW),
        PUBLISHED: lambda: stage(THEIRS, NEW),
        FACTORS: lambda: stage(KEPT, NEW),
        LOOP: lambda: stage(DRAWN, []),
    },
    reference=CLEARN,
    rounds=3,  # minutes each
    bar=">= 5 (as published)",
)
