"""The slow, obvious PyTorch of every hot operation: what the fast kernels are tested against, and what trains.

T tokens, D model width, H query heads, G key/value heads, C head_dim, F hidden width, V vocabulary. Linear weights are
[outputs, inputs], as checkpoints store them. All functions are differentiable and run wherever their tensors are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cierzo.ops.context import AttentionContext, KeyValues
from cierzo.ops.packed import PackedMatrix
from cierzo.ops.window import Window, first_visible

Weight = Tensor | PackedMatrix
"""A matrix [outputs, inputs]."""


class Draw(NamedTuple):
    """A token to be chosen.

    Attributes:
        scores: [V], float32.
        temperature: divides the scores; 0 takes the best token.
        top_k, top_p, min_p: keep the k best (0 for all), then the fewest best that reach top_p, then those of at least
            min_p times the best one's probability.
        draw: uniform in [0, 1).
        allowed: a bit a token, uint8, lowest bit first; None allows all.
    """

    scores: Tensor
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    draw: float
    allowed: Tensor | None = None


class Rotation(NamedTuple):
    """Cosine and sine [T, C / 2], float32, of every token's RoPE angles."""

    cos: Tensor
    sin: Tensor


class Expert(NamedTuple):
    """One SwiGLU feed-forward: w1 (gate) and w3 (up) [F, D], w2 (down) [D, F]."""

    w1: Weight
    w2: Weight
    w3: Weight


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, inputs] -> [T, outputs]; a packed matrix is unpacked for it."""
    return F.linear(x, weight.unpacked().type_as(x) if isinstance(weight, PackedMatrix) else weight)


def frequencies(head_dim: int, theta: float) -> Tensor:
    """theta^(-2i / head_dim) [head_dim / 2], in float32 as published models."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rotation(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    """RoPE angles position x theta^(-2i / head_dim) (arXiv:2104.09864, section 3.2), in float32 as published models."""
    angles = torch.outer(positions.float(), frequencies(head_dim, theta).to(positions.device))
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate the (even, odd) pairs of x [T, heads, C]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = by.cos.unsqueeze(1), by.sin.unsqueeze(1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (arXiv:1910.07467, equation 4), the mean in float32. x [T, D]."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * weight


def embed(tokens: Tensor, weight: Weight) -> Tensor:
    """Rows of weight [V, D] for tokens [T]."""
    if isinstance(weight, PackedMatrix):
        return weight.rows(tokens)
    return F.embedding(tokens, weight)


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
    head_dim = rotation.cos.shape[-1] * 2
    h = rms_norm(x, norm, eps)
    q, k, v = (linear(h, w).unflatten(-1, (-1, head_dim)) for w in (wq, wk, wv))
    return rotate(q, rotation), context.store(layer, rotate(k, rotation), v)


def attend(q: Tensor, kv: KeyValues, *, window: Window | None, context: AttentionContext, layer: int) -> Tensor:
    """Causal grouped-query attention of every sequence over its own keys. q [T, H, C] -> [T, H x C].

    Query head h reads key/value head h // (H / G): arXiv:2305.13245, section 2.2.
    """
    out = []
    for index, (start, stop, position) in enumerate(context.sequences):
        first = first_visible(window, position)
        seen = context.read(kv, layer, index, first)
        k, v = (side.type_as(q).transpose(0, 1).unsqueeze(0) for side in seen)  # [1, G, keys, C]
        mask = _visible(position, stop - start, first, k.shape[2], window, q.device)
        mixed = F.scaled_dot_product_attention(
            q[start:stop].transpose(0, 1).unsqueeze(0), k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1]
        )
        out.append(mixed[0].transpose(0, 1).flatten(1))
    return torch.cat(out) if out else q.flatten(1)


def _visible(
    position: int, queries: int, first: int, keys: int, window: Window | None, device: torch.device
) -> Tensor | None:
    """Which keys (positions from `first` on) each query (positions from `position` on) sees, [queries, keys]."""
    if queries == 1 and (window is None or window.dilation == 1):
        return None  # `first` has cut away what it cannot see
    i = torch.arange(position, position + queries, device=device).unsqueeze(1)
    distance = i - torch.arange(first, first + keys, device=device)
    visible = distance >= 0
    if window is not None:
        visible &= (distance < window.reach) & (distance % window.dilation == 0)
    return visible


def project_out(mixed: Tensor, wo: Weight, residual: Tensor) -> Tensor:
    """Output projection [T, H x C] -> [T, D], plus the residual [T, D]."""
    return residual + linear(mixed, wo)


def gate_up(x: Tensor, norm: Tensor, w1: Weight, w3: Weight, *, eps: float) -> Tensor:
    """Norm and the gated half of SwiGLU (arXiv:2002.05202, equation 6): [T, D] -> [T, F]."""
    h = rms_norm(x, norm, eps)
    return F.silu(linear(h, w1)) * linear(h, w3)


def down(hidden: Tensor, w2: Weight, residual: Tensor) -> Tensor:
    """Down projection [T, F] -> [T, D], plus the residual [T, D]."""
    return residual + linear(hidden, w2)


def mixture(x: Tensor, norm: Tensor, gate: Tensor, experts: Sequence[Expert], *, chosen: int, eps: float) -> Tensor:
    """Norm, Mixtral's sparse mixture of experts, and the residual (arXiv:2401.04088, section 2.1). x [T, D] -> [T, D].

    Each token goes to its `chosen` best experts by gate [experts, D], weighted by a softmax over those alone.
    """
    h = rms_norm(x, norm, eps)
    weights, picks = routed(h, gate, chosen)
    out = torch.zeros_like(h)
    for number, (w1, w2, w3) in enumerate(experts):
        tokens, nth = torch.where(picks == number)
        if tokens.numel():
            mine = h[tokens]
            answer = linear(F.silu(linear(mine, w1)) * linear(mine, w3), w2)
            out = out.index_add(0, tokens, answer * weights[tokens, nth].unsqueeze(-1))
    return x + out


def routed(h: Tensor, gate: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """Which experts each token goes to, and what each of them counts, both [T, chosen], for normed tokens h [T, D]."""
    scores, picks = linear(h, gate).float().topk(chosen, -1)
    return scores.softmax(-1).type_as(h), picks


def logits(x: Tensor, norm: Tensor, output: Weight, rows: Tensor | None, *, eps: float) -> Tensor:
    """Final norm and vocabulary scores, float32, of the chosen rows of x [T, D] (all when None)."""
    return linear(rms_norm(x if rows is None else x[rows], norm, eps), output).float()


def distribution(draw: Draw) -> Tensor:
    """Probabilities [V], float64, of the tokens that may be chosen, for a temperature above 0."""
    scores = _allowed_scores(draw).double() / draw.temperature
    if 0 < draw.top_k < scores.numel():
        kept = torch.full_like(scores, -torch.inf)
        values, ids = scores.topk(draw.top_k)
        scores = kept.index_copy(0, ids, values)
    probabilities = scores.softmax(-1)
    if draw.top_p < 1:
        ordered, ids = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered  # a token stays while the better ones have not reached top_p
        ordered[before >= draw.top_p] = 0
        probabilities = torch.zeros_like(probabilities).index_copy(0, ids, ordered)
    if draw.min_p:
        probabilities = probabilities * (probabilities >= draw.min_p * probabilities.max())
    return probabilities / probabilities.sum()


def _allowed_scores(draw: Draw) -> Tensor:
    if draw.allowed is None:
        return draw.scores
    bits = (draw.allowed.unsqueeze(-1) >> torch.arange(8) & 1).bool().flatten()[: draw.scores.numel()]
    return draw.scores.masked_fill(~bits.to(draw.scores.device), -torch.inf)


def sample(draws: Sequence[Draw]) -> list[int]:
    """The chosen token of each draw; -1 where no score is a number that can be chosen."""
    return [_chosen(draw) for draw in draws]


def _chosen(draw: Draw) -> int:
    if draw.scores.isnan().any() or not torch.isfinite(_allowed_scores(draw).max()):
        return -1
    if draw.temperature == 0:
        return int(_allowed_scores(draw).argmax())
    cumulative = distribution(draw).cumsum(0)
    # right=True passes over tokens of probability 0, whose cumulative sum repeats the one before.
    return int(torch.searchsorted(cumulative, draw.draw * cumulative[-1], right=True))
