"""Activation-aware scaling: exact changes of a layer after which rounding loses less (AWQ, arXiv:2306.00978)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cierzo.ops import reference
from cierzo.weights.gptq import Grid, nearest
from cierzo.weights.layer import Layer

_POWERS = (0.0, 0.15, 0.3, 0.45, 0.6)
"""Of the inputs' size; 0 leaves them as they are."""
_ROWS = 1024  # of a matrix that are tried, as many others as there are


def scale_layer(layer: Layer, states: Sequence[Tensor], grids: Mapping[str, Grid]) -> None:
    """Change the layer's weights, but not what it computes."""
    config, w = layer.config, layer.weights
    qkv = [f"attention.w{n}.weight" for n in "qkv"]
    gates = [f"feed_forward.{expert}w{n}.weight" for expert in layer.experts for n in (1, 3)]
    power = _power(layer.normed(x, "attention_norm") for x in states)
    factor = _best(power, qkv, w, grids)
    w["attention_norm.weight"] = w["attention_norm.weight"] / factor
    for name in qkv:
        w[name] = w[name] * factor

    # Query heads that share a value head share its factors.
    mixed = [layer.mixed(x) for x in states]
    power = _power(mixed)
    after = [reference.project_out(m, w["attention.wo.weight"], x) for m, x in zip(mixed, states, strict=True)]
    del mixed
    shared = power.view(config.n_kv_heads, -1, config.head_dim).mean(1, keepdim=True)
    groups = config.n_heads // config.n_kv_heads
    factor = _best(shared.expand(-1, groups, -1).reshape(-1), ["attention.wo.weight"], w, grids)
    w["attention.wo.weight"] = w["attention.wo.weight"] * factor
    of_value = factor.view(config.n_kv_heads, groups, config.head_dim)[:, 0].reshape(-1, 1)
    w["attention.wv.weight"] = w["attention.wv.weight"] / of_value

    power = _power(layer.normed(x, "ffn_norm") for x in after)
    factor = _best(power, gates, w, grids)
    w["ffn_norm.weight"] = w["ffn_norm.weight"] / factor
    for name in [*gates, *(["feed_forward.gate.weight"] if config.moe else [])]:
        w[name] = w[name] * factor

    shares = [layer.shares(x) for x in after]
    for number, expert in enumerate(layer.experts):
        up, down = f"feed_forward.{expert}w3.weight", f"feed_forward.{expert}w2.weight"
        power = _power(layer.hidden(x, expert) * share[:, number, None] for x, share in zip(after, shares, strict=True))
        factor = _best(power, [down], w, grids)
        w[down] = w[down] * factor
        w[up] = w[up] / factor.unsqueeze(1)


def _power(inputs: Iterable[Tensor]) -> Tensor:
    """Mean square of every input."""
    total, count = torch.zeros(()), 0
    for x in inputs:
        total, count = total + x.square().sum(0), count + len(x)
    return total / count


def _best(power: Tensor, names: Sequence[str], weights: Mapping[str, Tensor], grids: Mapping[str, Grid]) -> Tensor:
    """The factor [inputs] of the columns with which rounding these matrices loses least."""
    size = power.sqrt().clamp(min=1e-8)
    best, least = torch.ones_like(size), torch.inf
    for exponent in _POWERS:
        factor = size**exponent
        factor = (factor / factor.log().mean().exp()).clamp(1 / 64, 64)
        lost = 0.0
        for name in names:
            some = weights[name][:: max(1, len(weights[name]) // _ROWS)]
            changed = nearest(some * factor, grids[name], power / factor.square()) / factor - some
            lost += float((changed.square() @ power).sum())
        if lost < least:
            best, least = factor, lost
    return best
