"""Matrices in few bits: how values become nibbles or bytes with scales, and back.

Q4, Q4M and Q8 have one float16 scale (and, with a minimum, one float16 minimum) for 32 inputs of an output: GGUF's
Q4_0, Q4_1 and Q8_0 are these grids, so they are taken over without loss. Q4T is our own (`coded`). All are kept in the
layout that all kernels read (native/format.h): panels of 16 outputs, tiles of 64 inputs, lines of 64 bytes.
"""

from enum import IntEnum
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cierzo.errors import CierzoError
from cierzo.ops import coded
from cierzo.ops.coded import GROUP, PANEL, TILE
from cierzo.ops.machine import machine
from cierzo.ops.room import aligned_empty

_ROWS_AT_ONCE = 4096  # of a matrix while it is packed, so that what is in between stays small; whole panels


class Format(IntEnum):
    """The formats' numbers in native/format.h, and what a value is."""

    Q4 = 0
    """scale x (nibble - 8): 4.5 bits a weight."""
    Q4M = 1
    """scale x nibble + minimum: 5 bits."""
    Q8 = 2
    """scale x int8: 8.5 bits."""
    Q4T = 3
    """scale x step x code: 4.21 bits."""

    @property
    def bits(self) -> int:
        return 8 if self is Format.Q8 else 4

    @property
    def header(self) -> int:
        """Bytes of a tile's scales."""
        return 128 if self is Format.Q4M else 64

    @property
    def tile_bytes(self) -> int:
        return self.header + PANEL * TILE * self.bits // 8


_PIECE = 256  # outputs unpacked at a time: `rows` takes a whole panel of memory for each


class PackedMatrix:
    """A matrix [outputs, inputs] in a `Format`, on the CPU.

    `data`, uint8 of `packed_shape`, may be mapped memory; it is copied if it is not 64-byte aligned. Raises ValueError
    for another shape.
    """

    def __init__(self, format: Format, outputs: int, inputs: int, data: Tensor) -> None:
        if data.dtype != torch.uint8 or not data.is_cpu or tuple(data.shape) != packed_shape(format, outputs, inputs):
            raise ValueError(
                f"{format.name} of {outputs} x {inputs} is not {data.dtype} {list(data.shape)} on {data.device}"
            )
        self.format, self.outputs, self.inputs = format, outputs, inputs
        self.shape = torch.Size((outputs, inputs))
        self.data = (
            data if data.is_contiguous() and data.data_ptr() % 64 == 0 else aligned_empty(tuple(data.shape)).copy_(data)
        )

    def numel(self) -> int:
        return self.outputs * self.inputs

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "native"}

    @cached_property
    def native(self) -> Any:
        """The handle that kernels take."""
        data = self.data
        return _kernels().Matrix(data.data_ptr(), data.numel(), int(self.format), self.outputs, self.inputs)

    def rows(self, chosen: Tensor) -> Tensor:
        """Float32 values [n, inputs] of the chosen outputs [n]."""
        panels = self.data[chosen // PANEL]  # [n, tiles, tile_bytes], of Q4T [n, panel_bytes]
        if self.format is Format.Q4T:
            return coded.rows(panels, chosen % PANEL, -(-self.inputs // TILE))[:, : self.inputs]
        n, tiles, _ = panels.shape
        output = (chosen % PANEL).view(n, 1, 1, 1)

        def of_output(per_output: Tensor) -> Tensor:
            """[n, tiles, x, PANEL, y] -> [n, tiles, x, y] of each row's own output."""
            index = output.unsqueeze(-1).expand(-1, tiles, per_output.shape[2], 1, per_output.shape[4])
            return per_output.gather(3, index).squeeze(3)

        header = panels[..., : self.format.header].contiguous().view(torch.float16).view(n, tiles, -1, PANEL, 1)
        header = of_output(header).float()  # [n, tiles, 2 or 4, 1]
        lines = of_output(panels[..., self.format.header :].reshape(n, tiles, -1, PANEL, 4)).flatten(2)
        if self.format is Format.Q8:
            values = lines.view(torch.int8).float()
        else:
            values = torch.cat((lines & 15, lines >> 4), -1).float() - (8 if self.format is Format.Q4 else 0)
        values = values.view(n, tiles, 2, GROUP) * header[:, :, :2]
        if self.format is Format.Q4M:
            values = values + header[:, :, 2:]
        return values.flatten(1)[:, : self.inputs]

    def unpacked(self) -> Tensor:
        """All of it, float32."""
        whole = torch.empty(self.shape)
        for some in torch.arange(self.outputs).split(_PIECE):
            whole[some] = self.rows(some)
        return whole


def _kernels() -> ModuleType:
    kernels = machine().kernels
    if kernels is None:
        raise CierzoError('packed matrices need the native kernels: load the model with dtype="float32"')
    return kernels


def packed_shape(format: Format, outputs: int, inputs: int) -> tuple[int, ...]:
    """[panels, tiles, tile_bytes]; of Q4T [panels, panel_bytes]."""
    panels, tiles = -(-outputs // PANEL), -(-inputs // TILE)
    return (panels, coded.panel_bytes(tiles)) if format is Format.Q4T else (panels, tiles, format.tile_bytes)


GGML_GRIDS = {2: Format.Q4, 3: Format.Q4M, 8: Format.Q8, 12: Format.Q4M}
"""Formats that hold GGUF's block types (by ggml's numbers): Q4_0, Q4_1 and Q8_0 to the bit; Q4_K with scales and minima
rounded to float16."""


def from_blocks(kind: int, raw: Tensor, outputs: int, inputs: int) -> PackedMatrix:
    """GGUF's blocks of one of `GGML_GRIDS`, the bytes of a matrix as they lie in a file; needs the native kernels.

    Raises ValueError when they do not fit the shape, or scales are not finite.
    """
    format = GGML_GRIDS[kind]
    packed = PackedMatrix(format, outputs, inputs, aligned_empty(packed_shape(format, outputs, inputs)))
    raw = raw.contiguous()
    if not _kernels().repack(kind, raw.data_ptr(), raw.numel(), packed.native):
        raise ValueError(_NOT_FINITE)
    return packed


_NOT_FINITE = "a scale or a minimum is not finite: it does not fit float16, or the weights are broken"


def pack(format: Format, values: Tensor, scales: Tensor, minima: Tensor | None = None) -> PackedMatrix:
    """Integers [outputs, inputs] (nibbles 0..15 as uint8, or int8) with float16 scales [outputs, groups].

    Not for `Q4T`. Raises ValueError when shapes do not fit, or scales or minima are not finite.
    """
    outputs, inputs = values.shape
    sides = [side.half() for side in ([scales] if minima is None else [scales, minima])]
    if (minima is None) == (format is Format.Q4M) or any(s.shape != (outputs, -(-inputs // GROUP)) for s in sides):
        raise ValueError(
            f"{format.name} of {outputs} x {inputs} needs a scale, and with a minimum one, a group of {GROUP}"
        )
    if not all(side.isfinite().all() for side in sides):
        raise ValueError(_NOT_FINITE)
    if format is not Format.Q8 and values.numel() and values.max() > 15:
        raise ValueError("a nibble is from 0 to 15")
    data = aligned_empty(packed_shape(format, outputs, inputs))
    step = _ROWS_AT_ONCE
    for start in range(0, outputs, step):
        part = [side[start : start + step] for side in sides]
        data[start // PANEL : (start + step) // PANEL] = _panels(format, values[start : start + step], part)
    return PackedMatrix(format, outputs, inputs, data)


def pack_coded(numbers: Tensor, scales: Tensor, steps: Tensor) -> PackedMatrix:
    """`Q4T` of numbers of codes [outputs, inputs] and of steps [outputs, groups], uint8, and float16 scales
    [outputs, spans] (`cierzo.ops.coded`). Raises ValueError when a scale is not finite.
    """
    if not scales.half().isfinite().all():
        raise ValueError(_NOT_FINITE)
    outputs, inputs = numbers.shape
    data = aligned_empty(packed_shape(Format.Q4T, outputs, inputs))
    for start in range(0, outputs, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        panels = coded.panels_of(numbers[rows], scales[rows], steps[rows])
        data[start // PANEL : start // PANEL + len(panels)] = panels
    return PackedMatrix(Format.Q4T, outputs, inputs, data)


def best_steps(weights: Tensor, importance: Tensor, scales: Tensor) -> Tensor:
    """Numbers [...] of `Q4T`'s best steps for groups of weights [..., 32 or fewer] with scales [...]; errors count by
    importance, which is broadcast to the weights. Needs the native kernels.
    """
    fill = (0, GROUP - weights.shape[-1])
    whole, by = (
        torch.nn.functional.pad(x.float(), fill).contiguous() for x in (weights, importance.expand_as(weights))
    )
    scales = scales.expand(weights.shape[:-1]).float().contiguous()
    steps = torch.empty(scales.shape, dtype=torch.uint8)
    _kernels().best_steps(whole.data_ptr(), by.data_ptr(), scales.data_ptr(), steps.numel(), steps.data_ptr())
    return steps


def _panels(format: Format, values: Tensor, sides: list[Tensor]) -> Tensor:
    """Some outputs' part of the layout, [panels, tiles, tile_bytes]."""

    def padded(x: Tensor, columns: int) -> Tensor:
        return torch.nn.functional.pad(x, (0, columns - x.shape[1], 0, -x.shape[0] % PANEL))

    panels, tiles = -(-values.shape[0] // PANEL), -(-values.shape[1] // TILE)
    header = [
        padded(side, 2 * tiles).view(panels, PANEL, tiles, 2).permute(0, 2, 3, 1).reshape(panels, tiles, -1)
        for side in sides
    ]
    whole = padded(values, tiles * TILE).view(torch.uint8).view(panels, PANEL, tiles, TILE)
    if format is not Format.Q8:
        whole = whole[..., :GROUP] | whole[..., GROUP:] << 4
    lines = whole.view(panels, PANEL, tiles, -1, 4).permute(0, 2, 3, 1, 4).reshape(panels, tiles, -1)
    return torch.cat([*(side.contiguous().view(torch.uint8) for side in header), lines], -1)


def quantize(weights: Tensor, format: Format) -> PackedMatrix:
    """Weights [outputs, inputs], rounded to the nearest value of the format's grids.

    For `Q4` each group's scale is the best of some around (largest value) / 8 by squared error; `Q8` takes the largest
    value / 127; `Q4T` tries scales for a span, and for each the steps of its groups, and needs the native kernels.
    Raises ValueError for `Q4M`, which only holds grids that came with a file, and for weights that float16 scales
    cannot hold.
    """
    if format is Format.Q4M:
        raise ValueError("Q4M holds the grids of files; quantise to Q4, Q4T or Q8")
    if format is Format.Q4T:
        return _coded(weights)
    outputs, inputs = weights.shape
    values = torch.empty(outputs, inputs, dtype=torch.uint8 if format is Format.Q4 else torch.int8)
    scales = torch.empty(outputs, -(-inputs // GROUP), dtype=torch.float16)
    for start in range(0, outputs, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        groups = torch.nn.functional.pad(weights[rows].float(), (0, -inputs % GROUP)).unflatten(1, (-1, GROUP))
        rounded, scale = _nibbles(groups) if format is Format.Q4 else _bytes(groups)
        values[rows], scales[rows] = rounded.flatten(1)[:, :inputs], scale
    return pack(format, values, scales)


def _coded(weights: Tensor) -> PackedMatrix:
    outputs, inputs = weights.shape
    packed = PackedMatrix(Format.Q4T, outputs, inputs, aligned_empty(packed_shape(Format.Q4T, outputs, inputs)))
    for start in range(0, outputs, _ROWS_AT_ONCE):
        part = weights[start : start + _ROWS_AT_ONCE].float().contiguous()
        if not _kernels().pack(part.data_ptr(), len(part), start, packed.native):
            raise ValueError(_NOT_FINITE)
    return packed


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, 1 / scale).unsqueeze(-1)


def _bytes(groups: Tensor) -> tuple[Tensor, Tensor]:
    scale = (groups.abs().amax(-1) / 127).half()
    return (groups * _inverse(scale.float())).round().clamp(-127, 127).to(torch.int8), scale


def _nibbles(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The scale keeps the sign of the largest value, which -8 then holds: the grid has one more step on that side."""
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    best_scale, best_error = (peak / -8).half().float(), torch.full_like(peak, torch.inf)
    for steps in (-8.0, -9.0, -8.5, -7.5, -7.0, -6.5):
        scale = (peak / steps).half().float()
        restored = (groups * _inverse(scale)).round().clamp(-8, 7) * scale.unsqueeze(-1)
        error = (restored - groups).square().sum(-1)
        better = error < best_error
        best_scale, best_error = torch.where(better, scale, best_scale), torch.where(better, error, best_error)
    values = (groups * _inverse(best_scale)).round().clamp(-8, 7) + 8
    return values.to(torch.uint8), best_scale.half()
