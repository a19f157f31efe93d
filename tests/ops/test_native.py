"""The native kernels: right against plain code, and the same bits whatever a row is computed with."""

import copy
import pickle
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cierzo.ops import Expert, Format, PackedMatrix, Window, native, pack, quantize, reference
from cierzo.ops.coded import SPAN
from support.kernels import FORMATS, kernels, needs_kernels, on_every_isa, paged, random_matrix

pytestmark = needs_kernels


def plain_linear(x: Tensor, w: PackedMatrix) -> Tensor:
    """The contract in float64: activations rounded to int8 a group of 32 (a span for Q4T), then exact products."""
    span = SPAN if w.format is Format.Q4T else 32
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % span)).unflatten(1, (-1, span))
    peak = groups.abs().amax(-1, keepdim=True)
    values = (groups * torch.where(peak > 0, 127 / peak, 0)).round()
    rounded = (values.double() * (peak / 127).double()).flatten(1)[:, : x.shape[1]]
    return torch.as_tensor(rounded @ w.unpacked().double().T)


@settings(deadline=None, max_examples=60)
@given(FORMATS, st.integers(1, 90), st.integers(1, 600), st.integers(1, 70))
def test_linear_equals_the_contract(format: Format, outputs: int, inputs: int, rows: int) -> None:
    w, x = random_matrix(format, outputs, inputs), torch.randn(rows, inputs)
    got = on_every_isa(lambda: native.project_out(x, w, torch.zeros(rows, outputs)))
    expected = plain_linear(x, w)
    largest_sum = x.double().abs().sum(1, keepdim=True) * w.unpacked().abs().max()
    assert ((got - expected).abs() / largest_sum).max() < 1e-6


@settings(deadline=None, max_examples=30)
@given(FORMATS, st.integers(1, 90), st.integers(1, 600), st.integers(2, 300))
def test_a_row_is_the_same_bits_alone_and_among_many(format: Format, outputs: int, inputs: int, rows: int) -> None:
    w, x, norm = random_matrix(format, outputs, inputs), torch.randn(rows, inputs), torch.rand(inputs)
    together = native.gate_up(x, norm, w, w, eps=1e-5)
    for row in range(0, rows, 7):
        assert torch.equal(native.gate_up(x[row : row + 1], norm, w, w, eps=1e-5)[0], together[row])


@pytest.mark.parametrize("format", Format)
def test_no_rows_are_no_work(format: Format) -> None:
    """A step may end no prompt, and then nobody's scores are asked for."""
    w = random_matrix(format, 40, 100)
    assert native._linear(torch.empty(0, 100), w).shape == (0, 40)
    assert native.gate_up(torch.empty(0, 100), torch.ones(100), w, w, eps=1e-5).shape == (0, 40)
    assert native.embed(torch.empty(0, dtype=torch.int64), w).shape == (0, 100)


def test_threads_do_not_change_bits(isa: str, threads: int) -> None:
    w, x = random_matrix(Format.Q4, 200, 256), torch.randn(33, 256)
    got = native.project_out(x, w, torch.zeros(33, 200))
    assert kernels is not None
    assert kernels.threads() == threads
    kernels.set_threads(1)
    assert torch.equal(got, native.project_out(x, w, torch.zeros(33, 200)))


def test_extreme_weights_and_activations_do_not_overflow(isa: str) -> None:
    """All products at their largest, where 16-bit sums are nearest to their limit."""
    for format, value in ((Format.Q4, 15), (Format.Q4, 0), (Format.Q4M, 15), (Format.Q8, -128), (Format.Q8, 127)):
        kind = torch.int8 if format is Format.Q8 else torch.uint8
        sides = [torch.ones(16, 8).half() for _ in range(2 if format is Format.Q4M else 1)]
        w = pack(format, torch.full((16, 256), value, dtype=kind), *sides)
        for sign in (1.0, -1.0):
            x = torch.full((5, 256), 127.0) * sign
            got = native.project_out(x, w, torch.zeros(5, 16))
            assert torch.equal(got, (x @ w.unpacked().T))


def test_gate_up_norm_and_embedding_equal_the_reference(isa: str) -> None:
    w1, w3 = random_matrix(Format.Q8, 48, 100), random_matrix(Format.Q8, 48, 100)
    x, norm = torch.randn(9, 100), torch.rand(100)
    got = native.gate_up(x, norm, w1, w3, eps=1e-5)
    torch.testing.assert_close(got, reference.gate_up(x, norm, w1, w3, eps=1e-5), rtol=0.05, atol=0.6)
    tokens = torch.tensor([3, 47, 0, 3])
    for format in Format:
        w = random_matrix(format, 48, 100)
        assert torch.equal(native.embed(tokens, w), reference.embed(tokens, w))
    with pytest.raises(ValueError, match="row 48 of a matrix of 48"):
        native.embed(torch.tensor([48]), w1)


def test_silu_at_its_ends(isa: str) -> None:
    """Gates from far below zero, where silu vanishes, to far above, where it is the gate."""
    gates = torch.tensor([-1e4, -300.0, -90.0, -20.0, -1.0, 0.0, 1.0, 20.0, 90.0, 300.0, 1e15])
    w = pack(Format.Q8, torch.full((16, 1), 127, dtype=torch.int8), torch.full((16, 1), 1 / 127).half())
    ones = pack(Format.Q8, torch.full((16, 1), 127, dtype=torch.int8), torch.full((16, 1), 1 / 127).half())
    got = native.gate_up(gates.unsqueeze(1), None, w, ones, eps=0)[:, 0]
    g = gates.double() * w.unpacked()[0, 0].double()
    torch.testing.assert_close(got.double(), torch.nn.functional.silu(g) * g, rtol=2e-6, atol=1e-30)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40), st.sampled_from([(1, 1), (2, 1), (4, 2), (8, 2), (8, 8), (5, 3)]),
    st.sampled_from([Format.Q4, Format.Q4T, Format.Q8]),
    st.sampled_from([8, 64, 72, 200]), st.sampled_from([16, 40, 130]),
)  # fmt: skip
def test_a_mixture_is_the_references_and_a_rows_bits_are_its_own(
    n: int, counts: tuple[int, int], format: Format, dim: int, hidden: int
) -> None:
    torch.manual_seed(n)
    matrices = [
        [quantize(torch.randn(shape), format) for shape in ((hidden, dim), (dim, hidden), (hidden, dim))]
        for _ in range(counts[0])
    ]
    experts = [Expert(*three) for three in matrices]
    x, norm, gate = torch.randn(n, dim), torch.rand(dim), torch.randn(counts[0], dim)
    run = {"chosen": counts[1], "eps": 1e-5}
    got = on_every_isa(lambda: native.mixture(x, norm, gate, experts, **run))  # type: ignore[arg-type]
    expected = reference.mixture(x, norm, gate, experts, **run)  # type: ignore[arg-type]
    assert (got - expected).norm() < 0.03 * (expected - x).norm() + 1e-6  # int8 activations
    row = n // 2
    alone = native.mixture(x[row : row + 1], norm, gate, experts, **run)  # type: ignore[arg-type]
    assert torch.equal(alone[0], got[row])


def test_wrong_lengths_and_tables_are_refused() -> None:
    assert kernels is not None
    w = random_matrix(Format.Q4, 32, 64)
    with pytest.raises(ValueError, match=r"expected contiguous float32 \[2, 64\]"):
        native.project_out(torch.zeros(2, 63), w, torch.zeros(2, 32))
    with pytest.raises(ValueError, match="expected contiguous float32"):
        native.project_out(torch.zeros(2, 64).double(), w, torch.zeros(2, 32))
    with pytest.raises(TypeError, match="take packed matrices"):
        native.project_out(torch.zeros(2, 64), torch.zeros(32, 64), torch.zeros(2, 32))
    for options, message in (
        ((99, 10, 0, 16, 64), "bytes"), ((64, 1152, 7, 16, 64), "unknown format"), ((64, 1152, 0, 0, 64), "between 1"),
        ((65, 2304 // 2, 0, 32, 64), "64-byte aligned"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            kernels.Matrix(*options)
    for rows, firsts, ends, blocks, message in (
        ([0, 3, 0], [0], [1], [9], "outside the cache of 4"), ([0, 3, 0], [0], [1], [-1], "outside the cache"),
        ([0, 9, 0], [0], [1], [0], "not covered"), ([0, 3, 0], [0], [2], [0], "not covered"),
        ([0, 1, 5], [2], [1], [0], "not covered"), ([0, 3], [0], [1], [0], "three numbers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            kernels.Tables(4, 4, rows, firsts, ends, blocks)
    context = paged([Window(4)], [1], [30], 2, 8, 4, torch.float32)
    with pytest.raises(ValueError, match="begin after the oldest visible key"):
        native.attend(torch.zeros(1, 4, 8), context.cache.layers[0], window=None, context=context, layer=0)
    with pytest.raises(ValueError, match="is not 8 blocks of 4 tokens, 1 heads of 8"):
        native.project_qkv(
            torch.zeros(1, 64), torch.ones(64), w, random_matrix(Format.Q4, 8, 64), random_matrix(Format.Q4, 8, 64),
            eps=1e-5, rotation=native.rotation(torch.tensor([30]), 8, 1e4), context=context, layer=0,
        )  # fmt: skip


def test_numbers_that_are_none_stay_visible(isa: str) -> None:
    """NaN and infinities in a row's group reach every output of that row, and of no other."""
    for format, bad in product((Format.Q4, Format.Q4T), (torch.nan, torch.inf, -torch.inf)):
        w = random_matrix(format, 32, 4000)
        for column in (0, 17, 40, 600, 3999):
            x = torch.randn(5, 4000)
            good = native.project_out(x, w, torch.zeros(5, 32))
            x[2, column] = bad
            got = native.project_out(x, w, torch.zeros(5, 32))
            assert got[2].isnan().all()
            assert torch.equal(got[[0, 1, 3, 4]], good[[0, 1, 3, 4]])
    context = paged([None], [2], [70], 2, 8, 4, torch.float32)
    q = torch.randn(2, 4, 8)
    q[1, 3, 5] = torch.nan
    mixed = native.attend(q, context.cache.layers[0], window=None, context=context, layer=0).view(2, 4, 8)
    assert mixed[1, 3].isnan().all()
    assert mixed.isnan().sum() == 8


def test_vanishing_activations_are_zero() -> None:
    w = random_matrix(Format.Q8, 16, 64)
    for size in (1e-31, 1e-38, 1e-45):
        assert not on_every_isa(lambda x=size: native.project_out(torch.full((1, 64), x), w, torch.zeros(1, 16))).any()  # type: ignore[misc]


def test_a_packed_matrix_can_be_copied_after_use() -> None:
    w, x = random_matrix(Format.Q4, 32, 64), torch.randn(1, 64)
    expected = native.project_out(x, w, torch.zeros(1, 32))
    assert torch.equal(native.project_out(x, copy.deepcopy(w), torch.zeros(1, 32)), expected)
    assert torch.equal(native.project_out(x, pickle.loads(pickle.dumps(w)), torch.zeros(1, 32)), expected)
