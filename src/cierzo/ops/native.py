"""The seam's operations by the native kernels: packed matrices, float32 activations, a paged cache.

A row's result is the same bits whatever it is computed with (see "Numerics" in docs/architecture.md). Shapes, types
and layouts are checked here against the matrices and tables that kernels get; those check their own numbers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cierzo.ops import reference
from cierzo.ops.context import AttentionContext, KeyValues, PagedContext
from cierzo.ops.kept import CACHE_TYPES, side_shape
from cierzo.ops.machine import machine
from cierzo.ops.packed import PackedMatrix
from cierzo.ops.reference import Draw, Expert, Rotation, Weight
from cierzo.ops.window import Window


def _kernels() -> Any:
    return machine().kernels


def _handle(weight: Weight) -> Any:
    """What kernels take for a packed matrix."""
    if not isinstance(weight, PackedMatrix):
        raise TypeError("native kernels take packed matrices: all matrices of a model are packed, or none")
    return weight.native


def _address(x: Tensor, *shape: int) -> int:
    """Where a float32 tensor of this shape lies."""
    if x.dtype is not torch.float32 or x.shape != shape or not x.is_contiguous() or not x.is_cpu:
        raise ValueError(f"expected contiguous float32 {list(shape)} on the CPU, not {x.dtype} {list(x.shape)}")
    return x.data_ptr()


def rotation(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    frequencies = reference.frequencies(head_dim, theta)
    angles = Rotation(*(torch.empty(len(positions), head_dim // 2) for _ in "cs"))
    addresses = [_address(side, len(positions), head_dim // 2) for side in angles]
    positions = _ids(positions)
    _kernels().rotation(positions.data_ptr(), len(positions), frequencies.data_ptr(), head_dim // 2, *addresses)
    return angles


def _ids(x: Tensor) -> Tensor:
    """Token ids or positions as kernels read them."""
    if not x.is_cpu or x.is_floating_point() or x.ndim != 1:
        raise ValueError(f"expected whole numbers [T] on the CPU, not {x.dtype} {list(x.shape)} on {x.device}")
    return x.to(torch.int64).contiguous()


def _cache(context: PagedContext, layer: int, n_kv_heads: int, head_dim: int) -> tuple[int, int, int]:
    """Addresses of a layer's keys and values, and the number of their type."""
    cache = context.cache
    kept = cache.layers[layer]
    blocks = cache.block_counts[cache.group_of_layer[layer]]
    shape = side_shape(blocks, cache.block_size, n_kv_heads, head_dim, kept.k.dtype)
    for side in kept:
        if side.shape != shape or side.dtype is not kept.k.dtype or not side.is_contiguous():
            raise ValueError(
                f"a cache of {list(side.shape)} is not {blocks} blocks of {cache.block_size} tokens, "
                f"{n_kv_heads} heads of {head_dim}"
            )
    return kept.k.data_ptr(), kept.v.data_ptr(), list(CACHE_TYPES.values()).index(kept.k.dtype)


class LayerWeights(NamedTuple):
    """What one dense layer computes with: norms [D], packed matrices, its window."""

    attention_norm: Tensor
    wq: Weight
    wk: Weight
    wv: Weight
    wo: Weight
    ffn_norm: Tensor
    w1: Weight
    w2: Weight
    w3: Weight
    window: Window | None


def run_layers(
    x: Tensor, layers: Sequence[LayerWeights], *, n_heads: int, eps: float, rotation: Rotation, context: PagedContext
) -> Tensor:
    """All layers in one call, as the operations below compute them one by one; x [T, D] is changed in place.

    The weights must not be replaced between calls with the same `layers`.
    """
    cache, half = context.cache, rotation.cos.shape[-1]
    if cache.native_layers is None or cache.native_layers[0] is not layers:
        n_kv_heads = layers[0].wk.shape[0] // (2 * half)
        handle = _kernels().Layers(n_heads, n_kv_heads, 2 * half, eps)
        for number, layer in enumerate(layers):
            dim = layer.wq.shape[1]
            handle.add(
                _address(layer.attention_norm, dim), _address(layer.ffn_norm, dim),
                *map(_handle, (layer.wq, layer.wk, layer.wv, layer.wo, layer.w1, layer.w2, layer.w3)),
                *_cache(context, number, n_kv_heads, 2 * half),
                0 if layer.window is None else layer.window.size, cache.group_of_layer[number],
            )  # fmt: skip
        cache.native_layers = layers, half, handle
    if cache.native_layers[1] != half:
        raise ValueError(f"angles for heads of {2 * half}, and the layers were run with {2 * cache.native_layers[1]}")
    first_of_group = [group[0] for group in cache.groups]
    n = len(x)
    cache.native_layers[2].run(
        _address(x, n, layers[0].wq.shape[1]), n, [_tables(context, layer) for layer in first_of_group],
        _address(rotation.cos, n, half), _address(rotation.sin, n, half),
    )  # fmt: skip
    return x


class EncoderWeights(NamedTuple):
    """A layer of an encoder: packed matrices [outputs, inputs] with their biases, norms [2, D] of weight and bias."""

    qkv: PackedMatrix
    qkv_bias: Tensor
    out: PackedMatrix
    out_bias: Tensor
    up: PackedMatrix
    up_bias: Tensor
    down: PackedMatrix
    down_bias: Tensor
    attention_norm: Tensor
    ffn_norm: Tensor


class EncoderLayers:
    """Layers that see the whole text, each with norms behind its sums and GELU (arXiv:1810.04805), in one call.

    The weights must not be replaced while this is in use.
    """

    def __init__(self, layers: Sequence[EncoderWeights], *, n_heads: int, eps: float) -> None:
        self._layers = list(layers)
        self._handle = _kernels().Encoder(n_heads, eps)
        for layer in layers:
            dim, hidden = layer.qkv.shape[1], layer.up.shape[0]
            self._handle.add(
                _handle(layer.qkv), _address(layer.qkv_bias, 3 * dim),
                _handle(layer.out), _address(layer.out_bias, dim),
                _handle(layer.up), _address(layer.up_bias, hidden),
                _handle(layer.down), _address(layer.down_bias, dim),
                _address(layer.attention_norm, 2, dim), _address(layer.ffn_norm, 2, dim),
            )  # fmt: skip

    def means(self, x: Tensor) -> Tensor:
        """The mean over the text of each layer's result, [layers, D]; x [T, D] is changed in place."""
        n, dim = len(x), self._layers[0].qkv.shape[1]
        means = torch.empty(len(self._layers), dim)
        self._handle.run(_address(x, n, dim), n, means.data_ptr())
        return means


def embed(tokens: Tensor, weight: Weight) -> Tensor:
    out = torch.empty(len(tokens), weight.shape[1])
    tokens = _ids(tokens)
    _kernels().unpack(_handle(weight), tokens.data_ptr(), len(tokens), out.data_ptr())
    return out


def _linear(
    x: Tensor, weight: Weight, *, norm: Tensor | None = None, eps: float = 0, residual: Tensor | None = None
) -> Tensor:
    n = len(x)
    out = torch.empty(n, weight.shape[0])
    _kernels().linear(
        _address(x, n, weight.shape[1]), n,
        0 if norm is None else _address(norm, weight.shape[1]), eps,
        _handle(weight),
        0 if residual is None else _address(residual, n, weight.shape[0]),
        out.data_ptr(),
    )  # fmt: skip
    return out


def attends(context: AttentionContext, window: Window | None) -> bool:
    """Whether `attend` can serve this layer: its keys are in a paged cache on the CPU, and its window has no gaps."""
    return isinstance(context, PagedContext) and context.cache.native and (window is None or window.dilation == 1)


def _tables(context: PagedContext, layer: int) -> Any:
    """The layer's block tables, made once a step."""
    group = context.cache.group_of_layer[layer]
    if group not in context.native_tables:
        tables = context.tables[group]
        context.native_tables[group] = _kernels().Tables(
            context.cache.block_size,
            context.cache.block_counts[group],
            [n for rows in context.sequences for n in rows],
            [table.first for table in tables],
            torch.tensor([len(table.blocks) for table in tables]).cumsum(0).tolist(),
            [block for table in tables for block in table.blocks],
        )
    return context.native_tables[group]


def project_qkv(
    x: Tensor,
    norm: Tensor,
    wq: Weight,
    wk: Weight,
    wv: Weight,
    *,
    eps: float,
    rotation: Rotation,
    context: AttentionContext,
    layer: int,
) -> tuple[Tensor, KeyValues]:
    n, half = len(x), rotation.cos.shape[-1]
    if not isinstance(context, PagedContext) or not context.cache.native:
        q, k, v = (_linear(x, w, norm=norm, eps=eps).unflatten(-1, (-1, 2 * half)) for w in (wq, wk, wv))
        return reference.rotate(q, rotation), context.store(layer, reference.rotate(k, rotation), v)
    cache = _cache(context, layer, wk.shape[0] // (2 * half), 2 * half)
    q = torch.empty(n, wq.shape[0] // (2 * half), 2 * half)
    _kernels().project_qkv(
        _address(x, n, wq.shape[1]), n, _address(norm, wq.shape[1]), eps, _handle(wq), _handle(wk), _handle(wv),
        _address(rotation.cos, n, half), _address(rotation.sin, n, half), 2 * half,
        _tables(context, layer), *cache, q.data_ptr(),
    )  # fmt: skip
    return q, context.cache.layers[layer]


def attend(q: Tensor, kv: KeyValues, *, window: Window | None, context: PagedContext, layer: int) -> Tensor:
    n, heads, head_dim = q.shape
    if kv is not context.cache.layers[layer]:
        raise ValueError("keys and values must be those that the context keeps")
    n_kv_heads = kv.k.shape[1]
    out = torch.empty(n, heads * head_dim)
    _kernels().attend(
        _address(q, n, heads, head_dim), n, heads, n_kv_heads, head_dim, 0 if window is None else window.size,
        _tables(context, layer), *_cache(context, layer, n_kv_heads, head_dim), out.data_ptr(),
    )  # fmt: skip
    return out


def project_out(mixed: Tensor, wo: Weight, residual: Tensor) -> Tensor:
    return _linear(mixed, wo, residual=residual)


def gate_up(x: Tensor, norm: Tensor | None, w1: Weight, w3: Weight, *, eps: float) -> Tensor:
    n = len(x)
    out = torch.empty(n, w1.shape[0])
    _kernels().gate_up(
        _address(x, n, w1.shape[1]), n,
        0 if norm is None else _address(norm, w1.shape[1]), eps,
        _handle(w1), _handle(w3),
        out.data_ptr(),
    )  # fmt: skip
    return out


def down(hidden: Tensor, w2: Weight, residual: Tensor) -> Tensor:
    return _linear(hidden, w2, residual=residual)


def mixture(x: Tensor, norm: Tensor, gate: Tensor, experts: Sequence[Expert], *, chosen: int, eps: float) -> Tensor:
    n, dim = x.shape
    out = torch.empty(n, dim)
    _kernels().mixture(
        _address(x, n, dim), n, _address(norm, dim), eps, _address(gate, len(experts), dim),
        [tuple(map(_handle, expert)) for expert in experts], chosen, out.data_ptr(),
    )  # fmt: skip
    return out


def logits(x: Tensor, norm: Tensor, output: Weight, rows: Tensor | None, *, eps: float) -> Tensor:
    return _linear(x if rows is None else x[rows], output, norm=norm, eps=eps)


def sample(draws: Sequence[Draw]) -> list[int]:
    vocab = len(draws[0].scores)
    rows = [
        (
            _address(d.scores, vocab), 0 if d.allowed is None else _mask(d.allowed, vocab),
            d.temperature, d.top_p, d.min_p, d.top_k, d.draw,
        )
        for d in draws
    ]  # fmt: skip
    tokens: list[int] = _kernels().sample(rows, vocab)
    return tokens


def _mask(allowed: Tensor, vocab: int) -> int:
    """Where a bit mask of enough tokens lies."""
    if allowed.dtype is not torch.uint8 or not allowed.is_cpu or not allowed.is_contiguous():
        raise ValueError(f"expected contiguous uint8 on the CPU, not {allowed.dtype} on {allowed.device}")
    if allowed.ndim != 1 or len(allowed) * 8 < vocab:
        raise ValueError(f"a mask of {list(allowed.shape)} bytes does not cover {vocab} tokens")
    return allowed.data_ptr()
