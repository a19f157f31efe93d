"""What attention knows about a step besides the activations: who the tokens belong to, and where their keys are.

A step is a flat ragged batch of T tokens. Sequence s owns the rows `starts[s]:starts[s + 1]`, which stand at
consecutive positions. Training gives `PackedContext` (documents side by side, no cache), serving gives `PagedContext`
(keys and values live in blocks of a `PagedCache`); the model does not know which one it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cierzo.ops.kept import CACHE_TYPES, put, read, side_shape
from cierzo.ops.machine import machine


class KeyValues(NamedTuple):
    """Rotated keys and values of one layer, each [rows, n_kv_heads, head_dim], or as a cache keeps them (`kept`)."""

    k: Tensor
    v: Tensor


class Rows(NamedTuple):
    """One sequence's part of a step: flat rows [start, stop), which stand at positions from `position` on."""

    start: int
    stop: int
    position: int


class AttentionContext(Protocol):
    @property
    def positions(self) -> Tensor:
        """Absolute positions [T], int64."""
        ...

    @property
    def sequences(self) -> Sequence[Rows]: ...

    def store(self, layer: int, k: Tensor, v: Tensor) -> KeyValues:
        """Keep the step's k and v [T, n_kv_heads, head_dim] and return where the layer's attention reads."""
        ...

    def read(self, kv: KeyValues, layer: int, sequence: int, first: int) -> KeyValues:
        """Of `store`'s result, positions `first` .. last of the sequence: [positions, n_kv_heads, head_dim]."""
        ...


def _positions(sequences: Sequence[Rows], device: torch.device) -> Tensor:
    spans = [torch.arange(s.position, s.position + s.stop - s.start) for s in sequences]
    return torch.cat(spans).to(device) if spans else torch.zeros(0, dtype=torch.int64, device=device)


class PackedContext:
    """Whole documents packed into one step, each seeing only itself; nothing is kept, so gradients flow."""

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        self.sequences = [Rows(a, b, 0) for a, b in pairwise(ends)]
        self.positions = _positions(self.sequences, torch.device(device))

    def store(self, layer: int, k: Tensor, v: Tensor) -> KeyValues:
        return KeyValues(k, v)

    def read(self, kv: KeyValues, layer: int, sequence: int, first: int) -> KeyValues:
        rows = self.sequences[sequence]
        return KeyValues(*(side[rows.start + first : rows.stop] for side in kv))


class PagedCache:
    """Key and value memory of every layer, cut into blocks of `block_size` tokens.

    Layers of one window group share block numbers; `cierzo.ops.kept` says how `dtype` keeps them. Memory: for each
    group, layers x blocks x block_size x n_kv_heads x head_width x 2 elements. Worked for Mistral 7B v0.1 in bf16:
    32 layers x 8 heads x 128 x 2 x 2 B = 128 KiB a token; W = 4096 and chunks of 512 in blocks of 16 need 289 blocks a
    sequence, 578 MiB, however long the text.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        block_counts: Sequence[int],
        *,
        block_size: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dtype = dtype
        self.native_layers: Any = None  # what the native kernels made of the layers that fill this cache
        self.block_size, self.block_counts = block_size, tuple(block_counts)
        self.groups = [tuple(layers) for layers in groups]
        self.group_of_layer = {layer: g for g, layers in enumerate(self.groups) for layer in layers}
        # torch.empty: the operating system gives the pages when a block is first written.
        self.layers = {}
        for g, layers in enumerate(self.groups):
            shape = side_shape(block_counts[g], block_size, n_kv_heads, head_dim, dtype)
            for layer in layers:
                self.layers[layer] = KeyValues(*(torch.empty(shape, dtype=dtype, device=device) for _ in "kv"))

    @property
    def device(self) -> torch.device:
        return next(iter(self.layers.values())).k.device

    @cached_property
    def native(self) -> bool:
        """Whether native kernels can write and read it."""
        return self.device.type == "cpu" and self.dtype in CACHE_TYPES.values() and machine().kernels is not None


@dataclass(frozen=True)
class BlockTable:
    """Blocks of one sequence in one window group: `blocks[n]` holds positions from (first + n) x block_size on."""

    first: int
    blocks: tuple[int, ...]


class PagedContext:
    """A step of sequences whose keys and values live in a `PagedCache`.

    `lengths[s]` new tokens of sequence s stand at positions from `positions[s]` on; `tables[g][s]` is its block table
    in window group g and must already cover them.
    """

    def __init__(
        self,
        cache: PagedCache,
        lengths: Sequence[int],
        positions: Sequence[int],
        tables: Sequence[Sequence[BlockTable]],
    ) -> None:
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        self.cache, self.tables = cache, tables
        self.sequences = [Rows(a, b, p) for (a, b), p in zip(pairwise(ends), positions, strict=True)]
        self.positions = _positions(self.sequences, cache.device)
        self.native_tables: dict[int, Any] = {}  # [group]: what the native kernels made of `tables`

    @cached_property
    def _cache_rows(self) -> list[list[Tensor]]:
        """[group][sequence]: cache row of each position that the table holds."""
        size, offsets = self.cache.block_size, torch.arange(self.cache.block_size)
        return [
            [
                (torch.tensor(t.blocks).unsqueeze(1) * size + offsets)
                .flatten()[: s.position + s.stop - s.start - t.first * size]
                .to(self.cache.device)
                for t, s in zip(group, self.sequences, strict=True)
            ]
            for group in self.tables
        ]

    @cached_property
    def _new_rows(self) -> list[Tensor]:
        """[group]: cache rows [T] of the step's tokens."""
        return [
            torch.cat([rows[len(rows) - (s.stop - s.start) :] for rows, s in zip(group, self.sequences, strict=True)])
            for group in self._cache_rows
        ]

    def store(self, layer: int, k: Tensor, v: Tensor) -> KeyValues:
        own = self.cache.layers[layer]
        rows = self._new_rows[self.cache.group_of_layer[layer]]
        put(own.k, rows, k.detach(), keys=True)
        put(own.v, rows, v.detach(), keys=False)
        return own

    def read(self, kv: KeyValues, layer: int, sequence: int, first: int) -> KeyValues:
        group = self.cache.group_of_layer[layer]
        rows = self._cache_rows[group][sequence][first - self.tables[group][sequence].first * self.cache.block_size :]
        return KeyValues(read(kv.k, rows, keys=True), read(kv.v, rows, keys=False))
