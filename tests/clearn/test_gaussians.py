"""Gaussians of classes against their exact moments: what is drawn, what is kept, what is stored."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clearn.errors import UserError
from clearn.gaussians import ClassGaussians

WIDTH = 5
DRAWS = 200_000


def features_of(count: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    """Correlated features whose mean is not 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    centre = torch.randn(width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + centre


def covariance(features: Tensor) -> NDArray[np.float64]:
    """The unbiased covariance + 1e-4 I, `[F, F]`."""
    rows = features.numpy()
    return np.cov(rows, rowvar=False).reshape(2 * rows.shape[1:]) + 1e-4 * np.eye(rows.shape[1])


def kept(*counts: int, width: int = WIDTH) -> tuple[ClassGaussians, list[Tensor]]:
    """Class k has counts[k] features."""
    gaussians = ClassGaussians(len(counts), width).double()
    features = [features_of(count, width, seed) for seed, count in enumerate(counts)]
    for label, rows in enumerate(features):
        gaussians.keep(label, rows)
    return gaussians, features


def check_moments(rows: Tensor, mean: NDArray[Any], cov: NDArray[Any]) -> None:
    """Within four standard errors of a Gaussian's sample mean and covariance, entry by entry."""
    count, drawn = len(rows), rows.numpy()
    variance = np.diag(cov)
    errors = np.abs(drawn.mean(axis=0) - mean) / np.sqrt(variance / count)
    assert errors.max() < 4
    spread = np.sqrt((np.outer(variance, variance) + cov**2) / (count - 1))
    errors = np.abs(np.cov(drawn, rowvar=False).reshape(cov.shape) - cov) / spread
    assert errors.max() < 4
    # A mixture of Gaussians can have both moments; the fourth tells it apart. Of z'z, z a whitened
    # draw, the mean of squares is F (F + 2), and 8 F (F + 2) (F + 3) the variance of these squares.
    z = (drawn - mean) @ np.linalg.inv(np.linalg.cholesky(cov)).T
    width = len(mean)
    fourth = (np.square(z).sum(axis=1) ** 2).mean()
    spread = np.sqrt(8 * width * (width + 2) * (width + 3) / count)
    assert abs(fourth - width * (width + 2)) < 4 * spread


@pytest.mark.parametrize("count", [2, 3, WIDTH - 1, WIDTH, WIDTH + 1, 40])
def test_moments(count: int) -> None:
    """With fewer features than dimensions, as many, and more."""
    gaussians, (features,) = kept(count)
    scale = torch.tensor([0.93])
    rows, y = gaussians.sample(DRAWS, scale, torch.Generator().manual_seed(count))
    assert y.tolist() == [0] * DRAWS
    mean = features.mean(dim=0)
    torch.testing.assert_close(gaussians.means[0], mean)
    check_moments(rows, 0.93 * mean.numpy(), covariance(features))


@pytest.mark.parametrize(
    "counts",
    [(1,), (1, 1), (1, 3), (1, 2, 1, 2), (3, 1, 4), (1, WIDTH), (1, 3, 9), (7, 8, 1)],
    ids=str,
)
def test_a_single_feature_has_the_mean_of_the_other_covariances(counts: tuple[int, ...]) -> None:
    """Of those with more than one, however they are kept; of none, only the jitter."""
    gaussians, features = kept(*counts)
    scale = torch.linspace(0.5, 1.5, len(counts), dtype=torch.float64)
    rows, y = gaussians.sample(DRAWS, scale, torch.Generator().manual_seed(7))
    others = [covariance(each) for each in features if len(each) > 1]
    expected = np.mean(others, axis=0) if others else 1e-4 * np.eye(WIDTH)
    for label, own in enumerate(features):
        mean = scale[label].item() * own.mean(dim=0).numpy()
        check_moments(rows[y == label], mean, expected if len(own) == 1 else covariance(own))


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    width=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_factors_are_exact(counts: list[int], width: int, seed: int) -> None:
    """The linear map from the numbers drawn to features, found column by column."""
    gaussians, features = kept(*counts, width=width)

    def sample(drawn: NDArray[Any]) -> Tensor:
        numbers = iter(torch.from_numpy(drawn))

        def take(shape: tuple[int, ...], generator: Any) -> Tensor:
            values = [next(numbers) for _ in range(int(np.prod(shape)))]
            return torch.stack(values).reshape(shape) if values else torch.zeros(shape).double()

        gaussians._normal = take  # type: ignore[method-assign]
        return gaussians.sample(1, torch.ones(len(counts)), torch.Generator())[0]

    most = len(counts) * (width + sum(counts) + len(counts) * width)
    mean = sample(np.zeros(most))
    torch.testing.assert_close(mean, torch.stack([each.mean(dim=0) for each in features]))
    columns = np.stack([(sample(unit) - mean).numpy() for unit in np.eye(most)], axis=-1)
    others = [covariance(each) for each in features if len(each) > 1]
    for label, own in enumerate(features):
        expected = covariance(own) if len(own) > 1 else np.mean(others or [1e-4 * np.eye(width)], 0)
        np.testing.assert_allclose(columns[label] @ columns[label].T, expected, atol=1e-12)
        for other in range(label):  # independent
            assert not (columns[label] @ columns[other].T).any()


def test_no_square_matrix_of_few_features() -> None:
    """Not in what is stored, nor while it is kept or drawn from."""
    width, counts = 400, (1, 2, 7, 60)
    gaussians = ClassGaussians(5, width)
    features = [features_of(count, width).float() for count in counts]
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in [result] if isinstance(t, Tensor))
            return result

    with Watch():
        for label, rows in enumerate(features):
            before = gaussians.bytes_stored()
            gaussians.keep(label, rows)
            assert gaussians.bytes_stored() - before <= 4 * (len(rows) + 1) * width
        gaussians.sample(3, torch.ones(5), torch.Generator())
    assert max(largest) <= sum(counts) * width < width**2


@pytest.mark.parametrize("count", [WIDTH, 100])
def test_many_features_take_a_triangle(count: int) -> None:
    gaussians = ClassGaussians(3, WIDTH)
    assert gaussians.bytes_stored() == 0
    gaussians.keep(1, features_of(count))
    assert gaussians.bytes_stored() == 4 * (WIDTH + WIDTH * (WIDTH + 1) // 2)


def test_features_that_do_not_vary() -> None:
    """A covariance that rounding would make indefinite: units of a net that are dead or alike."""
    rows = 100 * torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    features = torch.cat([rows, rows, torch.zeros(300, 38)], dim=1)
    with pytest.raises(RuntimeError, match=r"positive|cholesky"):
        torch.linalg.cholesky(torch.cov(features.T) + 1e-4 * torch.eye(40))
    gaussians = ClassGaussians(1, 40)
    gaussians.keep(0, features)
    drawn, _ = gaussians.sample(2000, torch.ones(1), torch.Generator().manual_seed(0))
    assert torch.isfinite(drawn).all()
    assert drawn[:, 0].std().item() == pytest.approx(100, rel=0.1)
    assert drawn[:, 2:].std().item() == pytest.approx(0.01, rel=0.02)


def test_classes_in_any_order_and_kept_again() -> None:
    gaussians, features = ClassGaussians(6, WIDTH).double(), features_of(9)
    assert gaussians.known == ()
    assert gaussians.sample(4, torch.ones(6), torch.Generator())[0].shape == (0, WIDTH)
    for label in (4, 0, 4):
        gaussians.keep(label, features_of(3, seed=label))
    gaussians.keep(4, features)
    assert gaussians.known == (0, 4)
    assert not gaussians.means[[1, 2, 3, 5]].any()
    once = ClassGaussians(6, WIDTH).double()
    once.keep(0, features_of(3))
    once.keep(4, features)
    for each in (gaussians, once):
        each.keep(5, features[:0].new_ones(1, WIDTH))
    a, b = (g.sample(4, torch.ones(6), torch.Generator().manual_seed(1)) for g in (gaussians, once))
    assert a[1].tolist() == [0] * 4 + [4] * 4 + [5] * 4
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_what_was_given_may_change_afterwards() -> None:
    gaussians, single = ClassGaussians(2, WIDTH).double(), features_of(1)
    rows = features_of(3)
    gaussians.keep(0, rows)
    gaussians.keep(1, single)
    first = gaussians.sample(2, torch.ones(2), torch.Generator().manual_seed(0))[0]
    rows.zero_(), single.zero_()
    assert torch.equal(
        gaussians.sample(2, torch.ones(2), torch.Generator().manual_seed(0))[0], first
    )


def test_draws_come_from_the_generator_alone() -> None:
    gaussians, _ = kept(1, 3, 9)
    state = torch.get_rng_state()
    a, b, c = (
        gaussians.sample(3, torch.ones(3), torch.Generator().manual_seed(seed))[0]
        for seed in (5, 5, 6)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_state_goes_through_a_file_into_a_fresh_object() -> None:
    gaussians, _ = kept(1, 3, 9, 2)
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"gaussians": gaussians}).state_dict(), file)
    file.seek(0)
    fresh = ClassGaussians(4, WIDTH).double()
    fresh.keep(0, features_of(8, seed=5))
    nn.ModuleDict({"gaussians": fresh}).load_state_dict(torch.load(file, weights_only=True))
    assert fresh.known == (0, 1, 2, 3)
    assert fresh.bytes_stored() == gaussians.bytes_stored()
    rows = [
        g.sample(5, torch.ones(4), torch.Generator().manual_seed(2))[0] for g in (gaussians, fresh)
    ]
    assert torch.equal(*rows)
    for each in (gaussians, fresh):
        each.keep(0, features_of(2, seed=6))
    fresh.load_state_dict(ClassGaussians(4, WIDTH).state_dict())
    assert fresh.known == ()


def test_types_move_together() -> None:
    gaussians = ClassGaussians(3, WIDTH)
    for label, count in enumerate((1, 3, 9)):
        gaussians.keep(label, features_of(count))
    stored = gaussians.bytes_stored()
    rows, _ = gaussians.sample(2, torch.ones(3), torch.Generator())
    assert rows.dtype == torch.float32
    rows, y = gaussians.double().sample(2, torch.ones(3), torch.Generator())
    assert gaussians.bytes_stored() == 2 * stored
    assert (rows.dtype, y.dtype) == (torch.float64, torch.int64)


def test_a_class_without_features() -> None:
    with pytest.raises(UserError, match="features: class 1 has none"):
        ClassGaussians(2, WIDTH).keep(1, torch.empty(0, WIDTH))


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_device(device: str) -> None:
    """The same features from a generator on the CPU, and moments from one on the device."""
    gaussians, features = kept(1, 3, 9)
    expected, _ = gaussians.sample(4, torch.ones(3), torch.Generator().manual_seed(0))
    gaussians.cuda()
    if device == "cpu":
        found, y = gaussians.sample(4, torch.ones(3), torch.Generator().manual_seed(0))
        torch.testing.assert_close(found.cpu(), expected)
        assert y.is_cuda
        return
    generator = torch.Generator(device).manual_seed(0)
    rows, y = gaussians.sample(DRAWS, torch.ones(3, device=device), generator)
    others = [covariance(each) for each in features[1:]]
    for label, own in enumerate(features):
        cov = np.mean(others, axis=0) if label == 0 else others[label - 1]
        check_moments(rows[y == label].cpu(), own.mean(dim=0).numpy(), cov)
