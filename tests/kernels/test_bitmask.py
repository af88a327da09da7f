"""Packed masks against their straightforward forms and against Python's integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from clearn.kernels import (
    apply_bits,
    count_bits,
    keep_unset_,
    or_bits_,
    overlap_bits,
    pack_bits,
    stack_bits,
    symbol_histogram,
    unpack_bits,
    unstack_bits,
)
from clearn.kernels._bits_cpu import PIECE, in_bytes, pieces
from tests.kernels import reference
from tests.kernels.reference import FLOATS, SIZES, draw, same, values

FLAGS = st.lists(st.booleans(), max_size=70)
ops = torch.ops.clearn


def packed(num_tasks: int, n: int) -> Tensor:
    return torch.stack([reference.pack(draw(n, seed=task)) for task in range(num_tasks)])


@given(FLAGS)
def test_bit_j_of_byte_i_is_element_8i_plus_j(flags: list[bool]) -> None:
    number = sum(1 << index for index, flag in enumerate(flags) if flag)
    expected = list(number.to_bytes((len(flags) + 7) // 8, "little"))
    mask = torch.tensor(flags, dtype=torch.bool)
    assert pack_bits(mask).tolist() == reference.pack(mask).tolist() == expected
    assert unpack_bits(torch.tensor(expected, dtype=torch.uint8), [len(flags)]).tolist() == flags


@pytest.mark.parametrize("n", SIZES)
def test_pack_and_unpack(n: int) -> None:
    mask = draw(n)
    bits = pack_bits(mask)
    assert same(bits, reference.pack(mask))
    assert same(unpack_bits(bits, [n]), mask)
    assert same(pack_bits(torch.ones(n, dtype=torch.bool)), reference.pack(torch.ones(n)))


def test_packing_follows_the_logical_order() -> None:
    mask = draw(6, 5, 7).permute(2, 0, 1)[:, ::2]
    assert not mask.is_contiguous()
    bits = pack_bits(mask)
    assert same(bits, reference.pack(mask.contiguous()))
    assert same(unpack_bits(bits, mask.shape), mask.contiguous())
    strided = torch.stack([bits, bits], 1)[:, 0]
    assert same(unpack_bits(strided, mask.shape), mask.contiguous())


def test_scalars_are_masks_of_one_element() -> None:
    assert pack_bits(torch.tensor(True)).tolist() == [1]
    assert unpack_bits(torch.tensor([1], dtype=torch.uint8), ()).shape == ()
    assert unpack_bits(torch.tensor([], dtype=torch.uint8), (3, 0)).shape == (3, 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_apply_bits(n: int, dtype: torch.dtype) -> None:
    weight, bits = values(dtype, n), reference.pack(draw(n))
    expected = reference.apply(weight, bits)
    assert same(apply_bits(weight, bits), expected)
    weight.requires_grad_()
    upstream = values(dtype, n, seed=1)
    apply_bits(weight, bits).backward(upstream)
    assert same(weight.grad, reference.apply(upstream, bits))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_keep_unset(n: int, dtype: torch.dtype) -> None:
    grad, bits = values(dtype, n), reference.pack(draw(n))
    expected = reference.keep_unset(grad, bits)
    assert keep_unset_(grad, bits) is grad
    assert same(grad, expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_left_out_is_plus_zero_whatever_it_was(dtype: torch.dtype) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, -1.0], dtype=dtype)
    none, every = torch.tensor([0], dtype=torch.uint8), torch.tensor([31], dtype=torch.uint8)
    assert same(apply_bits(odd, none), torch.zeros(5, dtype=dtype))
    assert same(apply_bits(odd, every), odd)
    assert same(keep_unset_(odd.clone(), every), torch.zeros(5, dtype=dtype))
    assert same(keep_unset_(odd.clone(), none), odd)


@pytest.mark.parametrize("dtype", FLOATS)
def test_strided_weights_and_gradients(dtype: torch.dtype) -> None:
    base = values(dtype, 40, 30)
    bits = reference.pack(draw(30, 20))
    view = base.t()[:, ::2]
    expected = reference.keep_unset(view, bits)
    assert same(apply_bits(view, bits), reference.apply(view, bits))
    untouched = base[1::2].clone()
    assert keep_unset_(view, bits) is view
    assert same(view, expected)
    assert same(base[1::2], untouched)


def test_writing_in_place_and_autograd() -> None:
    weight, first = values(torch.float32, 8).requires_grad_(), torch.tensor([7], dtype=torch.uint8)
    hidden = weight * 2
    squared = hidden**2
    with pytest.raises(ValueError, match=r"grad: autograd records it .* use no_grad\(\)"):
        keep_unset_(hidden, first)
    with torch.no_grad():
        keep_unset_(hidden, first)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


@pytest.mark.parametrize("n", SIZES)
def test_or_count_and_overlap(n: int) -> None:
    masks = packed(3, n)
    either = unpack_bits(masks[0], [n]) | unpack_bits(masks[1], [n])
    merged = masks[0].clone()
    assert or_bits_(merged, masks[1]) is merged
    assert same(merged, reference.pack(either))
    assert same(count_bits(merged), reference.count(merged))
    assert same(overlap_bits(masks), reference.overlap(masks))


def test_overlap_of_no_and_of_many_tasks() -> None:
    assert overlap_bits(torch.zeros(0, 4, dtype=torch.uint8)).shape == (0, 0)
    masks = packed(41, 1001)
    assert same(overlap_bits(masks), reference.overlap(masks))


@pytest.mark.parametrize("num_tasks", [1, 2, 7, 8, 9, 15, 16])
@pytest.mark.parametrize("n", [0, 1, 9, 65, 4099])
def test_symbols(n: int, num_tasks: int) -> None:
    masks = packed(num_tasks, n)
    symbols = stack_bits(masks, n)
    assert same(symbols, reference.stack(masks, n))
    assert same(unstack_bits(symbols, num_tasks), masks)
    assert same(unstack_bits(symbols, num_tasks), reference.unstack(symbols, num_tasks))
    counts = symbol_histogram(symbols, num_tasks)
    assert same(counts, torch.bincount(symbols, minlength=2**num_tasks))


@pytest.mark.parametrize("num_tasks", [7, 12])
def test_symbols_of_a_large_tensor(num_tasks: int) -> None:
    masks = packed(num_tasks, 300_007)
    symbols = stack_bits(masks, 300_007)
    assert same(symbols, reference.stack(masks, 300_007))
    assert same(unstack_bits(symbols, num_tasks), masks)
    assert int(symbol_histogram(symbols, num_tasks).sum()) == 300_007


def test_strided_masks_and_symbols() -> None:
    masks = packed(6, 100)
    symbols = stack_bits(masks[::2], 100)
    assert same(symbols, reference.stack(masks[::2], 100))
    wide = torch.stack([symbols, symbols], 1)
    assert same(unstack_bits(wide[:, 0], 3), masks[::2])
    assert same(symbol_histogram(wide[:, 0], 3), symbol_histogram(symbols, 3))
    assert same(overlap_bits(masks.t().contiguous().t()), overlap_bits(masks))


def test_bits_of_later_tasks_are_ignored() -> None:
    symbols = stack_bits(packed(5, 50), 50)
    assert same(unstack_bits(symbols, 3), packed(3, 50))


def test_shapes_past_two_to_the_31_elements() -> None:
    n, size = 2**33 + 1, 2**30 + 1
    mask, weight = (torch.empty(n, dtype=t, device="meta") for t in (torch.bool, torch.float16))
    bits = pack_bits(mask)
    assert bits.shape == (size,)
    assert unpack_bits(bits, [n]).shape == apply_bits(weight, bits).shape == (n,)
    symbols = stack_bits(bits.expand(3, -1), n)
    assert symbols.shape == (n,)
    assert unstack_bits(symbols, 3).shape == (3, size)


@pytest.mark.parametrize("n", [0, 1, PIECE, 2 * PIECE, 2 * PIECE + 1, 5 * PIECE - 3, 2**31 + 5])
def test_pieces_cover_all_elements_and_bytes(n: int) -> None:
    parts = pieces(n)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert not n or (parts[0].start, parts[-1].stop) == (0, n)
    packed = [in_bytes(part) for part in parts]
    assert [part.start for part in packed[1:]] == [part.stop for part in packed[:-1]]
    assert not n or packed[-1].stop == (n + 7) // 8
    assert max((part.stop - part.start for part in parts), default=0) <= 2 * PIECE


BITS = torch.zeros(3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_bits(torch.zeros(3)), "mask: type torch.float32 .* expected bool"),
        (lambda: unpack_bits(BITS, [25]), "3 bytes do not hold the mask of 25 .* expected 4"),
        (lambda: unpack_bits(BITS, [16]), "3 bytes do not hold the mask of 16 .* expected 2"),
        (lambda: unpack_bits(BITS, [-20]), r"shape: \[-20\] is not valid"),
        (lambda: unpack_bits(BITS.int(), [20]), "bits: type torch.int32 .* expected uint8"),
        (lambda: unpack_bits(BITS.view(1, 3), [20]), r"bits: shape \[1, 3\] .* expected \[bytes\]"),
        (lambda: apply_bits(torch.zeros(20, dtype=torch.int32), BITS), "weight: type torch.int32"),
        (lambda: apply_bits(torch.zeros(30), BITS), "3 bytes do not hold"),
        (lambda: keep_unset_(torch.zeros(30), BITS), "3 bytes do not hold"),
        (lambda: keep_unset_(torch.zeros(20, dtype=torch.bool), BITS), "grad: type torch.bool"),
        (lambda: or_bits_(BITS, BITS[:2]), r"other: \[2\] of .* expected \[3\] of"),
        (lambda: or_bits_(BITS, BITS.int()), "other: .* of torch.int32"),
        (lambda: or_bits_(BITS, BITS.to("meta")), "other: .* on meta"),
        (lambda: apply_bits(torch.zeros(20), BITS.to("meta")), "bits: on meta: expected on cpu"),
        (lambda: keep_unset_(torch.zeros(20), BITS.to("meta")), "used_bits: on meta"),
        (lambda: or_bits_(BITS.view(1, 3), BITS), r"bits: shape \[1, 3\]"),
        (lambda: count_bits(BITS.bool()), "bits: type torch.bool"),
        (lambda: overlap_bits(BITS), r"masks: shape \[3\] .* expected \[tasks, bytes\]"),
        (lambda: stack_bits(BITS.view(1, 3), 25), "3 bytes do not hold the mask of 25"),
        (lambda: stack_bits(BITS.view(1, 3), -1), "n: -1 is not valid"),
        (lambda: stack_bits(BITS.new_zeros(0, 3), 24), "tasks: 0 is not valid: expected 1 to 16"),
        (lambda: stack_bits(BITS.new_zeros(17, 3), 24), "tasks: 17 is not valid"),
        (lambda: unstack_bits(BITS, 9), "symbols: type torch.uint8 .* expected int32"),
        (lambda: unstack_bits(BITS.int(), 8), "symbols: type torch.int32 .* expected uint8"),
        (lambda: unstack_bits(BITS.view(1, 3), 8), r"symbols: shape \[1, 3\]"),
        (lambda: symbol_histogram(BITS, 0), "tasks: 0 is not valid"),
        (lambda: symbol_histogram(BITS + 4, 2), r"symbols: 4 is not valid: expected .* \[0, 4\)"),
        (lambda: symbol_histogram(BITS.int() - 1, 9), r"symbols: -1 is not valid"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_keep_the_contract_of_torch_library() -> None:
    bits, mask = reference.pack(draw(5, 7)), draw(5, 7)
    weight = values(torch.float32, 5, 7).requires_grad_()
    masks = packed(3, 35)
    symbols = reference.stack(masks, 35)
    for op, arguments in [
        (ops.pack_bits, (mask,)),
        (ops.unpack_bits, (bits, [5, 7])),
        (ops.apply_bits, (weight, bits)),
        (ops.keep_unset_, (values(torch.float32, 5, 7), bits)),
        (ops.or_bits_, (bits.clone(), masks[0])),
        (ops.count_bits, (bits,)),
        (ops.overlap_bits, (masks,)),
        (ops.stack_bits, (masks, 35)),
        (ops.unstack_bits, (symbols, 3)),
        (ops.symbol_histogram, (symbols, 3)),
    ]:
        opcheck(op.default, arguments)


def test_under_compile() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(weight: Tensor, bits: Tensor, used: Tensor) -> tuple[Tensor, ...]:
        masked = apply_bits(weight, bits)
        grad = 2 * masked.detach()
        keep_unset_(grad, used)
        or_bits_(used, bits)
        masks = torch.stack([bits, used])
        symbols = stack_bits(masks, weight.numel())
        return masked, grad, used, count_bits(used), overlap_bits(masks), symbols, unstack_bits(
            symbols, 2
        ), symbol_histogram(symbols, 2), pack_bits(unpack_bits(bits, weight.shape))  # fmt: skip

    weight = values(torch.float32, 6, 7).requires_grad_()
    bits, used = packed(2, 42)
    masked, grad, merged, size, overlap, symbols, rows, counts, again = step(
        weight, bits.clone(), used.clone()
    )
    both = torch.stack([bits, bits | used])
    assert same(masked.detach(), reference.apply(weight.detach(), bits))
    masked.square().sum().backward()
    assert same(weight.grad, 2 * masked.detach())
    assert same(grad, reference.keep_unset(2 * masked.detach(), used))
    assert same(merged, both[1])
    assert same(size, reference.count(both[1]))
    assert same(overlap, reference.overlap(both))
    assert same(symbols, reference.stack(both, 42))
    assert same(rows, both)
    assert same(counts, torch.bincount(symbols, minlength=4))
    assert same(again, bits)


def test_under_autocast() -> None:
    weight, bits = values(torch.float32, 4, 8).requires_grad_(), packed(1, 32)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = torch.nn.functional.linear(values(torch.float32, 3, 8), apply_bits(weight, bits))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32
    assert not weight.grad[~unpack_bits(bits, [4, 8])].any()
