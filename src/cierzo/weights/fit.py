"""Does a model run here, and how fast: memory by arithmetic, speed by a step of the same shape on this machine."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from cierzo.model import PRESETS, ModelConfig, Transformer
from cierzo.ops import (
    GGML_GRIDS,
    BlockTable,
    Format,
    PackedMatrix,
    PagedCache,
    PagedContext,
    coded,
    free_memory,
    machine,
    packed_shape,
)
from cierzo.weights.load import is_matrix, model_shapes
from cierzo.weights.packed import packed_formats
from cierzo.weights.packing import packed_size
from cierzo.weights.source import WeightSource

_ENOUGH = 384 << 20  # bytes of layers that no processor's cache holds
_SECONDS = 1.5
_BLOCK = 16
_CHUNK = 512

Formats = Mapping[str, Format] | str
"""Of each matrix, or one for all."""


@dataclass(frozen=True)
class Fit:
    """What a model takes; bytes and tokens a second."""

    weights: int
    cache: int
    """Keys and values of one sequence of the whole context, in 16 bits or the type of weights that are not packed."""
    rate: float | None
    """Tokens a second of one stream at the end of the context; None where no kernel runs packed weights, where they do
    not fit, and of weights that are not packed."""


def preset(shape: str) -> ModelConfig:
    """The published dimensions of a model of the catalogue."""
    return PRESETS[shape]


def room() -> int:
    """Bytes of memory that a model can take here now: what is free, less a tenth for everything else."""
    return int(0.9 * free_memory(torch.device("cpu")))


def own_formats(source: WeightSource) -> dict[str, Format]:
    """The formats in which a model in few bits runs as it is: see `WeightSource.packed`."""
    from gguf import GGMLQuantizationType

    kinds = {format.name: format for format in Format}
    kinds |= {GGMLQuantizationType(number).name: format for number, format in GGML_GRIDS.items()}
    return {
        name: kinds.get(source.kind(name), Format.Q8)
        for name, shape in model_shapes(source.config).items()
        if is_matrix(name, shape)
    }


def fit(config: ModelConfig, formats: Formats, context: int, memory: int) -> Fit:
    """A model of this shape with its matrices in these formats, or packed into one, and texts of `context` tokens.

    The speed is measured, if everything fits into `memory` bytes: random weights of the shape, as many layers as leave
    the processor's caches (or all), one token at a time at the end of the context; a layer's time is then counted for
    all layers. Sampling and the rest of a program are not in it.
    """
    shapes = model_shapes(config)
    if isinstance(formats, str):
        formats = packed_formats(shapes, formats)
    weights, cache = packed_size(config, shapes, formats), cache_bytes(config, context)
    can = machine().kernels is not None and weights + cache <= memory
    return Fit(weights, cache, _rate(config, formats, context) if can else None)


def fit_unpacked(config: ModelConfig, dtype: torch.dtype, context: int) -> Fit:
    """A model of this shape with weights and cache in `dtype`. Its speed is not measured."""
    return Fit(config.n_params * dtype.itemsize, cache_bytes(config, context, dtype.itemsize), None)


def cache_bytes(config: ModelConfig, context: int, itemsize: int = 2) -> int:
    """Keys and values of a sequence, by the pool's bound: ceil(((W - 1) d + chunk) / block) + 1 blocks a group.

    `itemsize` is the bytes of a number.
    """
    total = 0
    for window, layers in config.window_groups:
        blocks = -(-context // _BLOCK)
        if window is not None:
            blocks = min(blocks, -(-(window.reach - 1 + _CHUNK) // _BLOCK) + 1)
        total += len(layers) * blocks * _BLOCK * config.n_kv_heads * config.head_dim * 2 * itemsize
    return total


def _rate(config: ModelConfig, formats: Mapping[str, Format], context: int) -> float:
    n_layers = _layers(config, formats)
    windows = config.windows[:n_layers]
    part = replace(
        config, n_layers=n_layers, sliding_window=tuple(w.size if w else None for w in windows),
        window_dilation=tuple(w.dilation if w else 1 for w in windows),
    )  # fmt: skip
    model = _random_model(part, formats)
    last = context - 1
    groups = [layers for _, layers in part.window_groups]
    tables = []
    for window, _ in part.window_groups:
        first = 0 if window is None else max(0, last - window.reach + 1) // _BLOCK
        tables.append(BlockTable(first, tuple(range(last // _BLOCK + 1 - first))))
    cache = PagedCache(
        groups, [len(table.blocks) for table in tables], block_size=_BLOCK, n_kv_heads=part.n_kv_heads,
        head_dim=part.head_dim, dtype=model.cache_dtype,
    )  # fmt: skip
    for kv in cache.layers.values():
        for side in kv:
            side.fill_(0.01)
    token, row = torch.tensor([1]), torch.tensor([0])
    head = (model.tok_embeddings if model.output is None else model.output).weight

    def layers() -> None:
        model.hidden(token, PagedContext(cache, [1], [last], [[table] for table in tables]))

    def both() -> None:
        model(token, PagedContext(cache, [1], [last], [[table] for table in tables]), row)

    assert isinstance(head, PackedMatrix)
    with torch.inference_mode():
        whole, without_head = _seconds(both), _seconds(layers)
    return 1 / (without_head * config.n_layers / n_layers + max(0.0, whole - without_head))


def _layers(config: ModelConfig, formats: Mapping[str, Format]) -> int:
    """As many as leave the caches, with each kind of window in its share."""
    active = config.moe.num_experts_per_tok / config.moe.num_experts if config.moe else 1.0  # a token reads no others
    a_layer = sum(_bytes(formats[name], shape) * (active if ".experts." in name else 1.0)
                  for name, shape in model_shapes(config).items()
                  if name.startswith("layers.0.") and name in formats)  # fmt: skip
    windows, n = config.windows, config.n_layers
    period = next(p for p in range(1, n + 1) if all(windows[i] == windows[i % p] for i in range(n)))
    enough = max(1, math.ceil(_ENOUGH / a_layer))
    return min(n, math.ceil(enough / period) * period)


def _bytes(format: Format, shape: tuple[int, ...]) -> int:
    return math.prod(packed_shape(format, *shape))


def _random_model(config: ModelConfig, formats: Mapping[str, Format]) -> Transformer:
    model = Transformer.without_weights(config)
    for name, shape in model_shapes(config, model).items():
        module, _, attribute = name.rpartition(".")
        owner = model.get_submodule(module)
        delattr(owner, attribute)
        if is_matrix(name, shape):
            format = formats[name]
            data = torch.randint(0, 256, packed_shape(format, *shape), dtype=torch.uint8)
            tiles = -(-shape[1] // coded.TILE)
            scales = coded.spans(tiles) * coded.PANEL if format is Format.Q4T else format.header // 2
            scale = torch.full((scales,), 0.05 / shape[1] ** 0.5, dtype=torch.float16)
            data[..., : 2 * scales] = scale.view(torch.uint8)
            setattr(owner, attribute, PackedMatrix(format, shape[0], shape[1], data))
        else:
            setattr(owner, attribute, nn.Parameter(torch.full(shape, 0.1), requires_grad=False))
    return model.eval()


def _seconds(work: Callable[[], None]) -> float:
    work()
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
