"""Logits of a whole text, computed in the ways that the model can be run."""

from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor

from cierzo.model import Transformer
from cierzo.ops import BlockTable, PackedContext, PagedCache, PagedContext, first_visible


def packed_logits(model: Transformer, texts: Sequence[Tensor]) -> list[Tensor]:
    """Texts [T_i] side by side in one step -> logits [T_i, V] of each."""
    lengths = [len(text) for text in texts]
    with torch.inference_mode():
        return list(model(torch.cat(list(texts)), PackedContext(lengths)).split(lengths))


def paged_logits(
    model: Transformer,
    text: Tensor,
    chunks: Sequence[int],
    block_size: int = 4,
    cache_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One text [T] in chunks, which repeat, over a paged cache -> logits [T, V].

    Blocks lie in reverse order, and a table starts at the oldest block that its window can see.
    """
    config, total = model.config, len(text)
    n_blocks = -(-total // block_size)
    cache = PagedCache(
        [group.layers for group in config.window_groups],
        [n_blocks] * len(config.window_groups),
        block_size=block_size,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        dtype=cache_dtype,
    )
    done, logits = 0, []
    for chunk in cycle(chunks):
        count = min(chunk, total - done)
        tables = []
        for group in config.window_groups:
            first = first_visible(group.window, done) // block_size
            last = -(-(done + count) // block_size)
            tables.append([BlockTable(first, tuple(n_blocks - 1 - n for n in range(first, last)))])
        with torch.inference_mode():
            logits.append(model(text[done : done + count], PagedContext(cache, [count], [done], tables)))
        done += count
        if done == total:
            return torch.cat(logits)
    raise AssertionError("no chunks")
