"""Which implementation runs an operation: native kernels or the PyTorch reference.

Native are the operations of packed weights, RoPE's angles on the CPU, and attention over a paged cache there. The rest
is the reference's, as is everything through which gradients flow.

Without the extension, or with `CIERZO_ISA=reference`, the reference computes packed weights too, unpacking them each
time. T tokens, D model width, H query heads, G key/value heads, C head_dim, F hidden width, V vocabulary; a weight is a
tensor or a packed matrix, [outputs, inputs].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cierzo.ops import native, reference
from cierzo.ops.context import AttentionContext, KeyValues, PagedContext
from cierzo.ops.machine import machine
from cierzo.ops.native import LayerWeights, run_layers
from cierzo.ops.packed import PackedMatrix
from cierzo.ops.reference import Draw, Expert, Rotation, Weight
from cierzo.ops.window import Window

__all__ = [
    "LayerWeights",
    "attend",
    "down",
    "embed",
    "gate_up",
    "logits",
    "mixture",
    "project_out",
    "project_qkv",
    "rotation",
    "run_layers",
    "runs_layers",
    "sample",
]


def _native(weight: Weight) -> bool:
    return isinstance(weight, PackedMatrix) and machine().kernels is not None


def rotation(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    """RoPE's angles of tokens at positions [T]."""
    fast = positions.is_cpu and machine().kernels is not None
    return (native.rotation if fast else reference.rotation)(positions, head_dim, theta)


def runs_layers(layers: Sequence[LayerWeights], context: AttentionContext) -> bool:
    """Whether `run_layers` can take all of a model's layers at once."""
    return _native(layers[0].wq) and all(native.attends(context, layer.window) for layer in layers)


def embed(tokens: Tensor, weight: Weight) -> Tensor:
    """Rows of weight [V, D] for tokens [T]."""
    run = native.embed if _native(weight) else reference.embed
    return run(tokens, weight)


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
    """Norm, q/k/v, RoPE, and the keys and values put where the context keeps them. x [T, D] -> q [T, H, C]."""
    run = native.project_qkv if _native(wq) else reference.project_qkv
    return run(x, norm, wq, wk, wv, eps=eps, rotation=rotation, context=context, layer=layer)


def attend(q: Tensor, kv: KeyValues, *, window: Window | None, context: AttentionContext, layer: int) -> Tensor:
    """Causal grouped-query attention of every sequence over its own keys. q [T, H, C] -> [T, H x C]."""
    fits = q.dtype is torch.float32 and not (torch.is_grad_enabled() and q.requires_grad)
    if fits and isinstance(context, PagedContext) and native.attends(context, window):
        return native.attend(q, kv, window=window, context=context, layer=layer)
    return reference.attend(q, kv, window=window, context=context, layer=layer)


def project_out(mixed: Tensor, wo: Weight, residual: Tensor) -> Tensor:
    """Output projection [T, H x C] -> [T, D], plus the residual [T, D]."""
    run = native.project_out if _native(wo) else reference.project_out
    return run(mixed, wo, residual)


def gate_up(x: Tensor, norm: Tensor, w1: Weight, w3: Weight, *, eps: float) -> Tensor:
    """Norm and the gated half of SwiGLU: [T, D] -> [T, F]."""
    run = native.gate_up if _native(w1) else reference.gate_up
    return run(x, norm, w1, w3, eps=eps)


def down(hidden: Tensor, w2: Weight, residual: Tensor) -> Tensor:
    """Down projection [T, F] -> [T, D], plus the residual [T, D]."""
    run = native.down if _native(w2) else reference.down
    return run(hidden, w2, residual)


def mixture(x: Tensor, norm: Tensor, gate: Tensor, experts: Sequence[Expert], *, chosen: int, eps: float) -> Tensor:
    """Norm, the sparse mixture of experts, and the residual. x [T, D] -> [T, D]."""
    run = native.mixture if _native(experts[0].w1) else reference.mixture
    return run(x, norm, gate, experts, chosen=chosen, eps=eps)


def logits(x: Tensor, norm: Tensor, output: Weight, rows: Tensor | None, *, eps: float) -> Tensor:
    """Final norm and vocabulary scores, float32, of the chosen rows of x [T, D] (all when None)."""
    run = native.logits if _native(output) else reference.logits
    return run(x, norm, output, rows, eps=eps)


def sample(draws: Sequence[Draw]) -> list[int]:
    """The chosen token of each draw (all of one vocabulary); -1 where no score is a number that can be chosen."""
    fast = machine().kernels is not None and all(d.scores.is_cpu and d.scores.is_contiguous() for d in draws)
    return native.sample(draws) if fast and draws else reference.sample(draws)
