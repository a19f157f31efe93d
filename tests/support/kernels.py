"""What tests of the native kernels share."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from cierzo.ops import Format, PackedMatrix, Window, machine, pack, quantize
from cierzo.ops.context import BlockTable, PagedCache, PagedContext
from cierzo.ops.kept import put

kernels = machine().kernels
needs_kernels = pytest.mark.skipif(kernels is None, reason="no native kernels in this installation")
ISAS: list[str] = [] if kernels is None else [name for name, against in kernels.candidates() if not against]
FORMATS = st.sampled_from(list(Format))


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


def paged(windows: list[Window | None], lengths: list[int], positions: list[int], heads: int, dim: int, block: int,
          dtype: torch.dtype) -> PagedContext:  # fmt: skip
    """A step over a cache of random keys, blocks in a random order."""
    needed = [-(-(p + n) // block) for p, n in zip(positions, lengths, strict=True)]
    order = torch.randperm(sum(needed)).tolist()
    cache = PagedCache(
        [[layer] for layer in range(len(windows))], [sum(needed)] * len(windows),
        block_size=block, n_kv_heads=heads, head_dim=dim, dtype=dtype,
    )  # fmt: skip
    rows = torch.arange(sum(needed) * block)
    for layer in cache.layers.values():
        for side, keys in zip(layer, (True, False), strict=True):
            put(side, rows, torch.randn(len(rows), heads, dim), keys=keys)
    tables = []
    for window in windows:
        at, group = 0, []
        for need, position in zip(needed, positions, strict=True):
            first = 0 if window is None else max(0, position - window.size + 1) // block
            group.append(BlockTable(first, tuple(order[at + first : at + need])))
            at += need
        tables.append(group)
    return PagedContext(cache, lengths, positions, tables)
