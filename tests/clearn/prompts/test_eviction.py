"""Evictions against NumPy's singular value decomposition, slow loops and closed forms."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from clearn.errors import UserError
from clearn.prompts import EVICTIONS, EvictionOptions, dq_pca, fifo, merge_oldest, random_rows

Array = NDArray[np.float64]

SIZES = {"count": st.integers(1, 12), "width": st.integers(1, 20), "seed": st.integers(0, 999)}


def queue(count: int, width: int, seed: int = 0) -> Tensor:
    """Rows about a mean that is not 0, float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count + 1, width, generator=generator, dtype=torch.float64)
    return rows[1:] + 0.3 * rows[0]


def by_svd(rows: Array, keep: int, keep_mean: bool = False, rescale: bool = False) -> Array:
    """The specification, one row after the other."""
    mean = rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(rows - mean, full_matrices=False)
    result = np.zeros((keep, rows.shape[1]))
    for index in range(min(keep, len(sizes))):
        if sizes[index] < 1e-8 * sizes[0] or sizes[index] < 1e-13 * np.linalg.norm(rows):
            break
        row = sizes[index] * directions[index]
        dot = row @ mean
        if abs(dot) > 1e-6 * np.linalg.norm(row) * np.sqrt((rows**2).sum() / len(rows)):
            sign = np.sign(dot)
        else:
            largest = max(abs(entry) for entry in row)
            sign = np.sign(next(entry for entry in row if abs(entry) > largest * (1 - 1e-6)))
        result[index] = sign * row
    result += mean if keep_mean else 0
    lengths = [np.linalg.norm(row) for row in result if row.any()]
    if rescale and lengths:
        result *= np.mean(np.linalg.norm(rows, axis=1)) / np.mean(lengths)
    return result


@given(**SIZES, share=st.floats(0, 1), keep_mean=st.booleans(), rescale=st.booleans())
def test_is_the_leading_part_of_the_decomposition(
    count: int, width: int, seed: int, share: float, keep_mean: bool, rescale: bool
) -> None:
    rows, keep = queue(count, width, seed), round(share * count)
    found = dq_pca(rows, keep, keep_mean=keep_mean, rescale=rescale)
    expected = by_svd(rows.numpy(), keep, keep_mean, rescale)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-9)


def test_at_the_size_of_a_real_queue() -> None:
    """In float32, as queues are; a hundredth of a singular value apart, rounding weighs more."""
    rows = queue(100, 1024).float()
    found = dq_pca(rows, 90)
    expected = by_svd(rows.double().numpy(), 90)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
    assert (found.norm(dim=1).diff() < 0).all()


@given(**SIZES, share=st.floats(0, 1))
def test_captures_the_energy_of_the_spectrum(
    count: int, width: int, seed: int, share: float
) -> None:
    """And leaves of the centred rows what no subspace of that dimension could avoid."""
    rows, keep = queue(count, width, seed), round(share * count)
    found = dq_pca(rows, keep).numpy()
    centred = rows.numpy() - rows.numpy().mean(axis=0)
    squares = np.linalg.svd(centred, compute_uv=False) ** 2
    total = squares.sum() + 1e-300
    assert np.square(found).sum() / total == pytest.approx(squares[:keep].sum() / total, abs=1e-12)
    found = found[found.any(axis=1)]
    basis = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-7)
    rest = centred - centred @ basis.T @ basis
    assert np.square(rest).sum() / total == pytest.approx(squares[keep:].sum() / total, abs=1e-12)


@given(**SIZES, rank=st.integers(0, 12))
def test_all_is_recovered_when_the_rank_fits(count: int, width: int, seed: int, rank: int) -> None:
    """R'R is that of the centred rows; each of them is a combination of the rows of R."""
    rank = min(rank, count - 1, width)
    mixing = queue(count, max(1, rank), seed)[:, :rank]
    rows = mixing @ queue(max(1, rank), width, seed + 1)[:rank] + queue(1, width, seed + 2)
    centred = (rows - rows.mean(dim=0)).numpy()
    size = rows.square().sum().item()
    for keep in range(rank, count + 1):
        found = dq_pca(rows, keep).numpy()
        assert not found[rank:].any()  # exactly 0 beyond the rank
        np.testing.assert_allclose(found.T @ found, centred.T @ centred, rtol=0, atol=1e-10 * size)
        combination = np.linalg.lstsq(found.T, centred.T, rcond=1e-10)[0]
        np.testing.assert_allclose(combination.T @ found, centred, rtol=0, atol=1e-8)
    assert rank == 0 or dq_pca(rows, rank - 1).square().sum() < (1 - 1e-9) * (centred**2).sum()


@pytest.mark.parametrize("solver", ["ev", "evd", "evr", "evx", "numpy", "flipped"])
def test_the_solver_changes_only_rounding(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever signs it gives."""
    rows = queue(40, 64)
    expected = {keep: dq_pca(rows, keep) for keep in (1, 30, 40)}
    eigh = torch.linalg.eigh
    called = []

    def solve(matrix: Tensor) -> tuple[Tensor, Tensor]:
        called.append(solver)
        if solver == "flipped":
            values, vectors = eigh(matrix)
            coins = torch.randint(2, (40,), generator=torch.Generator().manual_seed(5))
            return values, vectors * (2 * coins - 1)
        if solver == "numpy":
            found: Any = np.linalg.eigh(matrix.numpy())
        else:
            found = scipy.linalg.eigh(matrix.numpy(), driver=solver)
        return torch.tensor(found[0]), torch.tensor(found[1])

    monkeypatch.setattr(torch.linalg, "eigh", solve)
    for keep, result in expected.items():
        torch.testing.assert_close(dq_pca(rows, keep), result, rtol=0, atol=1e-11)
    assert called


def test_threads_change_only_rounding() -> None:
    rows = queue(100, 256)
    expected = dq_pca(rows, 90)
    torch.set_num_threads(2)
    try:
        found = dq_pca(rows, 90)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_noise_and_order_of_the_rows_change_only_rounding() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = queue(30, 50)
    expected = dq_pca(rows, 29)
    for _ in range(20):
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        order = torch.randperm(30, generator=generator)
        found = dq_pca((rows + 1e-12 * noise)[order], 29)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ([3.0, -1.0, 0.0], [3.0, -1.0, 0.0]),
        ([-3.0, 1.0, 0.0], [3.0, -1.0, 0.0]),
        ([1.0, -3.0, 0.0], [-1.0, 3.0, 0.0]),
        ([-2.0, 2.0, 1.0], [2.0, -2.0, -1.0]),  # as large twice: the first counts
        ([0.0, -2.0, 2.0], [0.0, 2.0, -2.0]),
    ],
)
@pytest.mark.parametrize("mean", [[0.0, 0.0, 0.0], "orthogonal"])
def test_sign_of_a_row_orthogonal_to_the_mean(
    direction: list[float], expected: list[float], mean: Any
) -> None:
    """Its largest entry decides, and noise does not."""
    row = torch.tensor(direction, dtype=torch.float64)
    centre = row.cross(row.flip(0) + 1, dim=0) if mean == "orthogonal" else torch.tensor(mean)
    rows = torch.stack([centre + row, centre - row])
    wanted = 2**0.5 * torch.tensor(expected, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for scale in [0.0] + 50 * [1e-12]:
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        found = dq_pca(rows + scale * noise, 1)[0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_a_positive_product_with_the_mean_goes_before_the_largest_entry() -> None:
    mean, row = torch.tensor([1.0, 9.0]), torch.tensor([2.0, -1.0])
    found = dq_pca(torch.stack([mean + row, mean - row]), 1)[0]
    torch.testing.assert_close(found, -(2**0.5) * row)


def test_equal_singular_values_share_a_space() -> None:
    """Their rows are any basis of it, R'R is settled."""
    basis = torch.linalg.qr(queue(6, 6)).Q
    rows = torch.cat([basis[:2], -basis[:2], 3 * basis[2:3], -3 * basis[2:3]])
    noise = queue(6, 6, seed=1)
    for scale in (0, 1e-12):
        found = dq_pca(rows + scale * noise, 3)
        torch.testing.assert_close(found.T @ found, rows.T @ rows, rtol=0, atol=1e-10)
        found = dq_pca(rows + scale * noise, 1)
        expected = 18 * torch.outer(basis[2], basis[2])
        torch.testing.assert_close(found.T @ found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", [[0.1, -0.7, 0.3], [0.0, 0.0, 0.0], [1e30, 1e-30, 1.0]])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_rows_have_no_component(count: int, row: list[float], dtype: torch.dtype) -> None:
    rows = torch.tensor([row], dtype=dtype).repeat(count, 1)
    for rescale in (False, True):
        assert not dq_pca(rows, count, rescale=rescale).any()
        found = dq_pca(rows, count, keep_mean=True, rescale=rescale)
        torch.testing.assert_close(found, rows)


def test_mean_and_scale() -> None:
    rows = queue(9, 5)  # rank 5, so that of 7 rows two are 0
    plain, length = dq_pca(rows, 7), rows.norm(dim=1).mean()
    torch.testing.assert_close(dq_pca(rows, 7, keep_mean=True), plain + rows.mean(dim=0))
    scaled = dq_pca(rows, 7, rescale=True)
    torch.testing.assert_close(scaled[:5].norm(dim=1).mean(), length)
    torch.testing.assert_close(scaled, plain * scaled[0, 0] / plain[0, 0])
    both = dq_pca(rows, 7, keep_mean=True, rescale=True)
    torch.testing.assert_close(both.norm(dim=1).mean(), length)
    expected = plain + rows.mean(dim=0)
    torch.testing.assert_close(both, expected * both[0, 0] / expected[0, 0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    rows = queue(4, 3)
    rows[2, 1] = value
    with pytest.raises(UserError, match=r"rows: .* nan or infinite; .* lower the learning rate"):
        dq_pca(rows, 2)


def test_fifo_keeps_the_newest() -> None:
    rows = queue(5, 2)
    for keep in range(6):
        expected = [row.tolist() for position, row in enumerate(rows) if position >= 5 - keep]
        assert fifo(rows, keep).tolist() == expected


def test_random_rows_are_every_choice_equally_often_and_in_order() -> None:
    rows, generator = torch.arange(5.0)[:, None], torch.Generator().manual_seed(0)
    draws = 5000
    found = [tuple(random_rows(rows, 3, generator)[:, 0].tolist()) for _ in range(draws)]
    choices = list(combinations([0.0, 1.0, 2.0, 3.0, 4.0], 3))
    assert set(found) == set(choices)
    expected = draws / len(choices)
    chi = sum((found.count(choice) - expected) ** 2 / expected for choice in choices)
    assert chi < 9 + 4 * (2 * 9) ** 0.5  # nine degrees of freedom, four standard deviations
    again = torch.Generator().manual_seed(0)
    assert tuple(random_rows(rows, 3, again)[:, 0].tolist()) == found[0]


@given(blocks=st.integers(1, 6), block=st.integers(1, 4), merges=st.integers(0, 5))
def test_merging_halves_the_share_of_what_is_old(blocks: int, block: int, merges: int) -> None:
    """Whole blocks: after m merges the first holds 2^-m of each of the two oldest, then doubles."""
    merges = min(merges, blocks - 1)
    rows = queue(blocks * block, 3)
    found = merge_oldest(rows, (blocks - merges) * block, block)
    shares = [2.0**-merges] + [2.0 ** (i - 1 - merges) for i in range(1, merges + 1)]
    assert sum(shares) == 1
    parts = rows.split(block)
    first = sum(share * part for share, part in zip(shares, parts[: merges + 1], strict=True))
    torch.testing.assert_close(found, torch.cat([first, rows[(merges + 1) * block :]]))


def test_merging_less_than_a_block() -> None:
    rows = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    assert merge_oldest(rows, 4, 2).tolist() == [[1.5], [4], [8], [16]]  # one row is to go
    assert merge_oldest(rows, 3, 2).tolist() == [[2.5], [5], [16]]  # a block
    assert merge_oldest(rows, 2, 2).tolist() == [[3.75], [16]]  # and one row more
    assert merge_oldest(rows, 2, 9).tolist() == [[3.75], [16]]  # two blocks of two fit, then one
    assert merge_oldest(rows, 1).tolist() == [[10.6875]]
    assert merge_oldest(rows, 0, 2).shape == (0, 1)
    with pytest.raises(UserError, match="block: 0 is not valid: expected the rows of a prompt"):
        merge_oldest(rows, 2, 0)


@pytest.mark.parametrize("name", EVICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(count=st.integers(0, 9), share=st.floats(0, 1), block=st.integers(1, 4))
def test_all_evictions_by_name(
    name: str, dtype: torch.dtype, count: int, share: float, block: int
) -> None:
    """The rows asked for, apart from those given, which stay as they are."""
    rows, keep = queue(count, 3).to(dtype), round(share * count)
    options = EvictionOptions(block=block, generator=torch.Generator().manual_seed(0))
    before, leaf = rows.clone(), rows.requires_grad_()
    found = EVICTIONS[name](options)(leaf, keep)
    assert found.shape == (keep, 3)
    assert found.dtype == dtype
    assert not found.requires_grad
    if keep == count and name != "pca":
        assert found.equal(before)
    found.fill_(7)
    assert leaf.detach().equal(before)


@pytest.mark.parametrize("name", EVICTIONS)
def test_what_no_eviction_takes(name: str) -> None:
    evict = EVICTIONS[name](EvictionOptions(block=2, generator=torch.Generator()))
    for keep in (-1, 5):
        with pytest.raises(UserError, match=rf"keep: {keep} is not valid: .* in \[0, 4\]"):
            evict(queue(4, 3), keep)
    for rows in (torch.zeros(4), torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 0)):
        with pytest.raises(UserError, match=r"rows: shape \[.* expected prompt rows \[C, d\]"):
            evict(rows, 2)


def test_options_reach_the_components() -> None:
    rows, generator = queue(5, 3), torch.Generator()
    for keep_mean, rescale in ((False, False), (True, False), (False, True), (True, True)):
        options = EvictionOptions(
            block=2, generator=generator, keep_mean=keep_mean, rescale=rescale
        )
        expected = dq_pca(rows, 3, keep_mean=keep_mean, rescale=rescale)
        assert EVICTIONS["pca"](options)(rows, 3).equal(expected)


@pytest.mark.gpu
def test_components_on_a_device() -> None:
    """Found on the CPU, hence the same bits."""
    rows = queue(20, 32).float()
    found = dq_pca(rows.cuda(), 15)
    assert found.is_cuda
    assert found.cpu().equal(dq_pca(rows, 15))
