"""How much each matrix of a model suffers from 4 bits, measured, and which are given 8 within a size."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cierzo.errors import CierzoError
from cierzo.ops import Format, reference
from cierzo.weights.gptq import grid, nearest
from cierzo.weights.layer import Layer, load_layer
from cierzo.weights.load import checked_finite, is_matrix
from cierzo.weights.packed import EMBEDDINGS, inputs_of
from cierzo.weights.packing import packed_size
from cierzo.weights.source import WeightSource

_TOKENS = 1024  # of the texts: as many as a second look does not change


def sensitivities(source: WeightSource, texts: Sequence[Tensor], low: Format) -> dict[str, float]:
    """For every matrix, how much of what comes out changes when it alone is in `low`.

    A layer's outcome is what it leaves in the residual stream, the embedding's are its rows, the output's the scores:
    the squared change over the square, on the texts, with all other weights as they are.
    """
    config, to = source.config, grid(low)
    found: dict[str, float] = {}
    embedding = checked_finite(source, EMBEDDINGS[0]).float()
    states = [embedding[text] for text in _some(texts)]
    flat = torch.ones(config.dim)
    rounded = nearest(embedding, to, flat)
    found[EMBEDDINGS[0]] = _change([rounded[text] for text in _some(texts)], states)
    del embedding, rounded
    for number in range(config.n_layers):
        layer = Layer(config, number, load_layer(source, number))
        outcome = [layer.forward(x) for x in states]
        for name in layer.matrices:
            whole = layer.weights[name]
            layer.weights[name] = nearest(whole, to, torch.ones(whole.shape[1]))
            found[layer.full(name)] = _change([layer.forward(x) for x in states], outcome)
            layer.weights[name] = whole
        states = outcome
    norm = checked_finite(source, "norm.weight").float()
    last = torch.cat([reference.rms_norm(x, norm, config.norm_eps) for x in states])
    name = EMBEDDINGS[0 if config.tied_embeddings else 1]
    output = checked_finite(source, name).float()
    lost = _change([last @ nearest(output, to, last.square().mean(0)).T], [last @ output.T])
    found[name] = max(lost, found.get(name, 0.0))
    return found


def _some(texts: Sequence[Tensor]) -> list[Tensor]:
    each = max(16, _TOKENS // len(texts))
    return [text[:each] for text in texts[: _TOKENS // 16]]


def _change(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    lost = sum(float((a - b).square().sum()) for a, b in zip(got, expected, strict=True))
    return lost / sum(float(b.square().sum()) for b in expected)


def check_bits(source: WeightSource, shapes: Mapping[str, tuple[int, ...]], bits: float, low: Format) -> None:
    """Raises `CierzoError` when `low` alone takes more than `bits` a weight."""
    least = packed_size(source.config, shapes, {name: low for name, shape in shapes.items() if is_matrix(name, shape)})
    if not 8 * least <= bits * source.config.n_params:
        raise CierzoError(
            f"this model takes at least {8 * least / source.config.n_params:.2f} bits a weight in {low.name}, so "
            f"{bits:g} are too few"
        )


def mixed_formats(
    source: WeightSource, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, float], bits: float, low: Format
) -> dict[str, Format]:
    """The matrices' formats: `low`, and 8 bits for those that gain most for their size, with `bits` a weight in all.

    Embedding and output go first: what a layer loses, later ones are calibrated to make up for, and nothing comes after
    these. (SmolLM2 at 5.5 bits lost 11 % without that, and 5 % with nothing but them in 8 bits, at 5.1.)

    Matrices that take the same activations change together where the formats cut those into different spans (Q4T).
    """
    formats = dict.fromkeys(found, low)
    room = bits * source.config.n_params / 8
    together: dict[str, list[str]] = {}
    for name in found:
        together.setdefault(inputs_of(name) if low is Format.Q4T else name, []).append(name)

    def gain(names: list[str]) -> float:
        return sum(found[name] for name in names) / sum(math.prod(shapes[name]) for name in names)

    for names in sorted(together.values(), key=lambda names: (names[0] in EMBEDDINGS, gain(names)), reverse=True):
        more = formats | dict.fromkeys(names, Format.Q8)
        if packed_size(source.config, shapes, more) <= room:
            formats = more
    return formats
