"""The native kernels: right against plain code, and the same bits whatever a row is computed with."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cierzo.model import ModelConfig, MoeConfig
from cierzo.ops import (
    Expert,
    Format,
    PackedContext,
    PackedMatrix,
    Window,
    attend,
    machine,
    native,
    pack,
    quantize,
    reference,
)
from cierzo.ops.coded import SPAN
from cierzo.ops.context import BlockTable, KeyValues, PagedCache, PagedContext
from cierzo.ops.kept import kept, read
from support.logits import paged_logits
from support.models import packed_model, tiny_config

kernels = machine().kernels
if kernels is None:
    pytest.skip("no native kernels in this installation", allow_module_level=True)

ISAS: list[str] = [name for name, against in kernels.candidates() if not against]
FORMATS = st.sampled_from(list(Format))


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert kernels is not None
    before = kernels.isa()
    kernels.use(request.param)
    yield request.param
    kernels.use(before)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    assert kernels is not None
    kernels.set_threads(request.param)
    yield request.param
    kernels.set_threads(machine().threads)


def random_matrix(format: Format, outputs: int, inputs: int) -> PackedMatrix:
    torch.manual_seed(outputs * 1000 + inputs)
    if format is not Format.Q4M:
        return quantize(torch.randn(outputs, inputs), format)
    groups = -(-inputs // 32)
    values = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    return pack(format, values, torch.rand(outputs, groups).half(), torch.randn(outputs, groups).half())


def on_every_isa(run: Callable[[], Tensor]) -> Tensor:
    """The result, which must be the same bits on each instruction set."""
    assert kernels is not None
    before = kernels.isa()
    results = []
    for name in ISAS:
        kernels.use(name)
        results.append(run())
    kernels.use(before)
    for other in results[1:]:
        assert torch.equal(results[0], other)
    return results[0]


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


def paged(windows: list[Window | None], lengths: list[int], positions: list[int], heads: int, dim: int, block: int,
          dtype: torch.dtype) -> PagedContext:  # fmt: skip
    """A step over a cache of random keys, blocks in a random order."""
    needed = [-(-(p + n) // block) for p, n in zip(positions, lengths, strict=True)]
    order = torch.randperm(sum(needed)).tolist()
    cache = PagedCache(
        [[layer] for layer in range(len(windows))], [sum(needed)] * len(windows),
        block_size=block, n_kv_heads=heads, head_dim=dim, dtype=dtype,
    )  # fmt: skip
    for side in (side for layer in cache.layers.values() for side in layer):
        side.copy_(kept(torch.randn(*side.shape[:2], dim), dtype))
    tables = []
    for window in windows:
        at, group = 0, []
        for need, position in zip(needed, positions, strict=True):
            first = 0 if window is None else max(0, position - window.size + 1) // block
            group.append(BlockTable(first, tuple(order[at + first : at + need])))
            at += need
        tables.append(group)
    return PagedContext(cache, lengths, positions, tables)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([None, 1, 2, 5, 64, 100]), st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), min_size=1,
    max_size=4), st.sampled_from([(4, 1), (4, 2), (3, 3), (9, 3)]), st.sampled_from([2, 8, 20, 64, 80]),
    st.sampled_from([1, 3, 16]), st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
)  # fmt: skip
def test_attention_equals_the_reference(
    size: int | None, spans: list[tuple[int, int]], heads: tuple[int, int], dim: int, block: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(dim + block)
    window = None if size is None else Window(size)
    context = paged([window], [n for n, _ in spans], [p for _, p in spans], heads[1], dim, block, dtype)
    q = 2 * torch.randn(sum(n for n, _ in spans), heads[0], dim)
    kv = context.cache.layers[0]
    got = on_every_isa(lambda: native.attend(q, kv, window=window, context=context, layer=0))
    torch.testing.assert_close(
        got, reference.attend(q, kv, window=window, context=context, layer=0), atol=2e-5, rtol=1e-4
    )


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([2, 16, 20, 64, 80, 128]), st.integers(1, 3), st.sampled_from([0.0, 1e-38, 1e-20, 1.0, 1e30]))
def test_eight_bit_keys_are_kept_as_the_reference_keeps_them(dim: int, heads: int, size: float) -> None:
    """To the bit, and within half a step of what they were."""
    w = quantize(torch.randn(heads * dim, 64), Format.Q8)
    norm, x = size * torch.rand(64), torch.randn(5, 64)
    rotation = reference.rotation(torch.arange(5), dim, 10_000.0)

    def sides(dtype: torch.dtype) -> Tensor:
        context = paged([None], [5], [0], heads, dim, 4, dtype)
        native.project_qkv(x, norm, w, w, w, eps=0.0, rotation=rotation, context=context, layer=0)
        rows = context.key_rows(0, 0, 0)
        return torch.stack([side[rows] for side in context.cache.layers[0]])

    exact = sides(torch.float32)
    torch.manual_seed(0)
    got = on_every_isa(lambda: sides(torch.int8))
    assert torch.equal(got, kept(exact, torch.int8))
    step = exact.abs().amax(-1, keepdim=True) / 127
    assert ((read(got) - exact).abs() <= 0.5001 * step + 1e-30).all()


def test_what_is_no_number_stays_none_in_eight_bits() -> None:
    x = torch.tensor([[[1.0, torch.nan]], [[torch.inf, 0.0]], [[1.0, -2.0]]])
    assert read(kept(x, torch.int8)).isnan().any(-1).flatten().tolist() == [True, True, False]


@pytest.mark.parametrize("window", [None, Window(1500)], ids=["all", "window"])
def test_threads_that_share_a_querys_keys_do_not_change_its_bits(isa: str, window: Window | None) -> None:
    """Alone, its chunks of 1024 keys are spread over threads; among many queries, one thread takes all of them."""
    torch.manual_seed(1)
    many = paged([window], [9, 40], [1020, 2500], 1, 16, 16, torch.bfloat16)
    q = torch.randn(49, 2, 16)
    kv = many.cache.layers[0]
    together = native.attend(q, kv, window=window, context=many, layer=0)
    expected = reference.attend(q, kv, window=window, context=many, layer=0)
    torch.testing.assert_close(together, expected, atol=2e-5, rtol=1e-4)
    for row, (sequence, position) in {0: (0, 1020), 8: (0, 1028), 30: (1, 2521), 48: (1, 2539)}.items():
        alone = PagedContext(many.cache, [1], [position], [[many.tables[0][sequence]]])
        assert torch.equal(native.attend(q[row : row + 1], kv, window=window, context=alone, layer=0)[0], together[row])


@pytest.mark.parametrize(
    ("format", "cache_dtype"),
    [
        (Format.Q4, torch.float32),
        (Format.Q4T, torch.bfloat16),
        (Format.Q8, torch.float32),
        (Format.Q8, torch.int8),
    ],
)
@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(sliding_window=5, n_kv_heads=1),
        tiny_config(sliding_window=(70, None), dim=40, hidden_dim=72, head_dim=20),
        tiny_config(moe=MoeConfig(4, 2), tied_embeddings=True),
    ],
    ids=["full", "sliding", "mixed", "experts"],
)
def test_a_models_bits_do_not_depend_on_chunks_or_company(
    isa: str, config: ModelConfig, format: Format, cache_dtype: torch.dtype
) -> None:
    """Decoded token by token, in one chunk and in many: the same logits to the bit."""
    model = packed_model(config, format)
    text = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(1))
    whole = paged_logits(model, text, [150], cache_dtype=cache_dtype)
    assert torch.equal(whole, paged_logits(model, text, [1], cache_dtype=cache_dtype))
    assert torch.equal(whole, paged_logits(model, text, [13, 64, 1], block_size=7, cache_dtype=cache_dtype))
    assert whole.std() > 0.3  # they say something


def test_eight_bit_keys_change_little() -> None:
    model = packed_model(tiny_config(sliding_window=20), Format.Q8)
    text = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(3))
    exact, near = (paged_logits(model, text, [60], cache_dtype=kind) for kind in (torch.float32, torch.int8))
    assert 0 < (exact - near).norm() < 0.05 * exact.norm()


def test_a_packed_model_is_near_its_unpacked_self(isa: str) -> None:
    """The native path against the reference on the same packed weights, paged and packed."""
    config = tiny_config(sliding_window=20)
    model = packed_model(config, Format.Q8)
    text = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(2))
    fast = paged_logits(model, text, [60])
    for owner in model.modules():
        if isinstance(vars(owner).get("weight"), PackedMatrix):
            weight = vars(owner).pop("weight").unpacked()
            owner.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
    with torch.inference_mode():
        slow = model(text, PackedContext([60]))
    assert (fast - slow).abs().max() < 0.1 * slow.std()


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
    with pytest.raises(ValueError, match="is not 32 slots of 1 heads of 8 numbers"):
        native.project_qkv(
            torch.zeros(1, 64), torch.ones(64), w, random_matrix(Format.Q4, 8, 64), random_matrix(Format.Q4, 8, 64),
            eps=1e-5, rotation=native.rotation(torch.tensor([30]), 8, 1e4), context=context, layer=0,
        )  # fmt: skip


def test_a_cache_runs_the_layers_of_whoever_calls() -> None:
    """Also when another model has used it before; one that does not fit is refused, not overrun."""
    first, second = (packed_model(tiny_config(rope_theta=theta), Format.Q8) for theta in (1e4, 50.0))
    for name, parameter in second.named_parameters():
        if "norm" in name:
            parameter.data += 0.5
    tokens = torch.tensor([1, 2, 3])
    expected = paged_logits(second, tokens, [3])
    context = paged([None], [3], [0], 2, 8, 4, torch.float32)
    shared = PagedCache([[0, 1]], [1], block_size=4, n_kv_heads=2, head_dim=8, dtype=torch.float32)
    step = [BlockTable(0, (0,))]
    with torch.inference_mode():
        first(tokens, PagedContext(shared, [3], [0], [step]))
        assert torch.equal(second(tokens.int(), PagedContext(shared, [3], [0], [step])), expected)
    narrow = PagedCache([[0, 1]], [1], block_size=4, n_kv_heads=2, head_dim=4, dtype=torch.float32)
    with torch.inference_mode(), pytest.raises(ValueError, match="is not 4 slots of 2 heads of 8 numbers"):
        first(tokens, PagedContext(narrow, [3], [0], [step]))
    with pytest.raises(ValueError, match="those that the context keeps"):
        native.attend(torch.zeros(3, 4, 8), shared.layers[0], window=None, context=context, layer=0)


def test_numbers_that_are_none_stay_visible(isa: str) -> None:
    """NaN and infinities in a row's group reach every output of that row, and of no other."""
    w = random_matrix(Format.Q4, 32, 128)
    for bad in (torch.nan, torch.inf, -torch.inf):
        for column in (0, 17, 40, 127):
            x = torch.randn(5, 128)
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


def test_gradients_go_through_the_reference() -> None:
    context = paged([None], [1], [5], 2, 8, 4, torch.float32)
    q = torch.randn(1, 4, 8, requires_grad=True)
    out = attend(q, context.cache.layers[0], window=None, context=context, layer=0)
    assert out.requires_grad


def test_a_forked_child_computes_too() -> None:
    """The parent's threads are not in the child; a pool of its own must be."""
    w, x = random_matrix(Format.Q4, 64, 64), torch.randn(3, 64)
    expected = native.project_out(x, w, torch.zeros(3, 64))
    child = os.fork()
    if child == 0:
        same = torch.equal(native.project_out(x, w, torch.zeros(3, 64)), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CIERZO_ISA": "sse9"}, "CIERZO_ISA=sse9 is not available: this machine and build run"),
        ({"CIERZO_THREADS": "many"}, "CIERZO_THREADS must be a whole number"),
        ({"CIERZO_ISA": "reference"}, "instruction set  reference (CIERZO_ISA names it)"),
        ({"CIERZO_ISA": "portable", "CIERZO_THREADS": "3"}, "threads          3 of"),
    ],
)
def test_the_environment_chooses(environment: dict[str, str], message: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cierzo", "doctor"], env=os.environ | environment, capture_output=True, text=True
    )
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert (result.returncode != 0) == ("error:" in result.stderr)


def test_without_the_extension_the_reference_computes_and_says_so() -> None:
    """In a process that cannot import it; packed weights are then unpacked, to the same model but for rounding."""
    code = (
        "import sys; sys.modules['cierzo.ops._native'] = None\n"
        "import torch\n"
        "from cierzo.ops import Format, machine, project_out, quantize\n"
        "w = quantize(torch.eye(40), Format.Q8)\n"
        "x = torch.arange(80.0).view(2, 40)\n"
        "assert torch.allclose(project_out(x, w, torch.zeros(2, 40)), x, rtol=1e-3)\n"
        "machine(); print(machine().isa)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "reference\n", result.stderr
    assert result.stderr.count("no native kernels") == 1
    assert "install Cierzo with a C++ compiler" in result.stderr


def test_rotation_is_that_of_the_reference() -> None:
    positions = torch.tensor([0, 1, 5, 4095, 32_767])
    for fast, slow in zip(native.rotation(positions, 64, 1e4), reference.rotation(positions, 64, 1e4), strict=True):
        np.testing.assert_allclose(fast, slow, atol=3e-7)


def test_keys_are_written_where_the_reference_reads_them() -> None:
    context = paged([None], [5, 3], [7, 0], 2, 8, 4, torch.bfloat16)
    ws = [random_matrix(Format.Q8, n, 64) for n in (32, 16, 16)]
    x, norm = torch.randn(8, 64), torch.rand(64)
    angles = native.rotation(context.positions, 8, 1e4)
    _, kept = native.project_qkv(x, norm, *ws, eps=1e-5, rotation=angles, context=context, layer=0)
    fast = KeyValues(kept.k.clone(), kept.v.clone())
    reference.project_qkv(x, norm, *ws, eps=1e-5, rotation=angles, context=context, layer=0)
    for a, b in zip(fast, kept, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=0.3, rtol=0.1)
