"""Native attention and its cache: right against plain code, and the same bits whatever a row is computed with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cierzo.errors import CierzoError
from cierzo.model import ModelConfig, MoeConfig
from cierzo.ops import Format, PackedContext, PackedMatrix, Window, attend, native, quantize, reference
from cierzo.ops.context import BlockTable, KeyValues, PagedCache, PagedContext
from cierzo.ops.kept import CACHE_TYPES, put, read, side_shape
from support.kernels import needs_kernels, on_every_isa, paged, random_matrix
from support.logits import paged_logits
from support.models import packed_model, tiny_config

pytestmark = needs_kernels


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([None, 1, 2, 5, 64, 100]), st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), min_size=1,
    max_size=4), st.sampled_from([(4, 1), (4, 2), (3, 3), (9, 3)]), st.sampled_from([4, 8, 20, 64, 80]),
    st.sampled_from([1, 3, 4, 8, 16, 32]), st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
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
@given(st.sampled_from([4, 16, 20, 64, 80, 128]), st.integers(1, 3), st.sampled_from([0.0, 1e-38, 1e-20, 1.0, 1e30]))
def test_eight_bit_keys_are_kept_as_the_reference_keeps_them(dim: int, heads: int, size: float) -> None:
    """To the bit, and within half a step of what they were."""
    w = quantize(torch.randn(heads * dim, 64), Format.Q8)
    norm, x = size * torch.rand(64), torch.randn(5, 64)
    rotation = reference.rotation(torch.arange(5), dim, 10_000.0)

    def kept(dtype: torch.dtype, exact: Tensor | None = None) -> Tensor:
        context = paged([None], [5], [0], heads, dim, 4, dtype)
        if exact is None:
            native.project_qkv(x, norm, w, w, w, eps=0.0, rotation=rotation, context=context, layer=0)
        else:
            context.store(0, *exact)
        return torch.stack(context.read(context.cache.layers[0], 0, 0, 0))

    exact = kept(torch.float32)
    torch.manual_seed(0)
    got = on_every_isa(lambda: kept(torch.int8))
    assert torch.equal(got, kept(torch.int8, exact))
    step = exact.abs().amax(-1, keepdim=True) / 127
    assert ((got - exact).abs() <= 0.5001 * step + 1e-30).all()


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("dtype", CACHE_TYPES.values())
@pytest.mark.parametrize("block", [1, 4, 5, 20])
def test_what_is_put_is_read(block: int, dtype: torch.dtype, keys: bool) -> None:
    side = torch.zeros(side_shape(40 // block, block, 3, 12, dtype), dtype=dtype)
    rows, x = torch.randperm(40), torch.randn(40, 3, 12)
    for part, some in zip(rows.split(7), x.split(7), strict=True):  # what comes later leaves the rest as it is
        put(side, part, some, keys=keys)
    close = {torch.float32: 0.0, torch.bfloat16: 0.01, torch.int8: 0.02}[dtype]
    torch.testing.assert_close(read(side, rows, keys=keys).float(), x, rtol=close, atol=close)
    assert side.count_nonzero() <= 40 * 3 * (12 + 4 * (dtype is torch.int8))


def test_heads_that_cannot_be_kept_in_eight_bits_are_refused() -> None:
    with pytest.raises(CierzoError, match="heads of 6 numbers cannot be kept in int8, only multiples of 4"):
        side_shape(1, 4, 1, 6, torch.int8)


def test_what_is_no_number_stays_none_in_eight_bits() -> None:
    x = torch.tensor([[[1.0, torch.nan, 1.0, 1.0]], [[torch.inf, 0.0, 0.0, 0.0]], [[1.0, -2.0, 3.0, 4.0]]])
    side, rows = torch.zeros(side_shape(1, 3, 1, 4, torch.int8), dtype=torch.int8), torch.arange(3)
    put(side, rows, x, keys=True)
    assert read(side, rows, keys=True).isnan().any(-1).flatten().tolist() == [True, True, False]


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
    with torch.inference_mode(), pytest.raises(ValueError, match="is not 1 blocks of 4 tokens, 2 heads of 8"):
        first(tokens, PagedContext(narrow, [3], [0], [step]))
    with pytest.raises(ValueError, match="those that the context keeps"):
        native.attend(torch.zeros(3, 4, 8), shared.layers[0], window=None, context=context, layer=0)


def test_gradients_go_through_the_reference() -> None:
    context = paged([None], [1], [5], 2, 8, 4, torch.float32)
    q = torch.randn(1, 4, 8, requires_grad=True)
    out = attend(q, context.cache.layers[0], window=None, context=context, layer=0)
    assert out.requires_grad


def test_rotation_is_that_of_the_reference() -> None:
    positions = torch.tensor([0, 1, 5, 4095, 32_767])
    for fast, slow in zip(native.rotation(positions, 64, 1e4), reference.rotation(positions, 64, 1e4), strict=True):
        np.testing.assert_allclose(fast, slow, atol=3e-7)


def test_keys_are_written_where_the_reference_reads_them() -> None:
    context = paged([None], [5, 3], [7, 0], 2, 8, 4, torch.bfloat16)
    ws = [random_matrix(Format.Q8, n, 64) for n in (32, 16, 16)]
    x, norm = torch.randn(8, 64), torch.rand(64)
    angles = native.rotation(context.positions, 8, 1e4)
    by: list[KeyValues] = []
    for ops in (native, reference):
        _, kv = ops.project_qkv(x, norm, *ws, eps=1e-5, rotation=angles, context=context, layer=0)
        by.append(KeyValues(*(torch.cat(s) for s in zip(*(context.read(kv, 0, i, 0) for i in (0, 1)), strict=True))))
    for a, b in zip(*by, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=0.3, rtol=0.1)
