"""Q4T, 4 bits from a table of codes: a weight is scale x step x code.

A nibble names one of sixteen codes, closer together near zero, where weights are; a group of 32 inputs has one of
sixteen steps, and a span of 192 inputs one float16 scale. Step x code is a whole number within +-120, so products with
int8 activations are summed exactly over a span. 4.125 bits a weight and 16 a span. Layout: `CodedPanel` in
native/format.h.
"""

import torch
from torch import Tensor

PANEL, TILE, GROUP, SPAN = 16, 64, 32, 192
CODES = (-11, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 9, 12)
STEPS = (3, 4, 5, 6, 7, 8, 9, 10, -3, -4, -5, -6, -7, -8, -9, -10)


def header_bytes(tiles: int) -> int:
    """Of a panel's scales and steps, filled up to a multiple of 64."""
    return -(-(spans(tiles) * 2 * PANEL + tiles * PANEL) // 64) * 64


def spans(tiles: int) -> int:
    return -(-tiles * TILE // SPAN)


def panel_bytes(tiles: int) -> int:
    return header_bytes(tiles) + tiles * PANEL * TILE // 2


def scales(panels: Tensor, tiles: int) -> Tensor:
    """Float16 scales [n x 16, spans] of panels, uint8 [n, panel_bytes]."""
    at = spans(tiles) * 2 * PANEL
    found = panels[:, :at].contiguous().view(torch.float16)
    return found.view(len(panels), -1, PANEL).transpose(1, 2).reshape(-1, spans(tiles))


def panels_of(numbers: Tensor, scales: Tensor, steps: Tensor) -> Tensor:
    """The layout of nibbles [outputs, inputs], float16 scales [outputs, spans] and step numbers [outputs, groups]."""
    outputs, tiles = len(numbers), -(-numbers.shape[1] // TILE)

    def padded(x: Tensor, columns: int, value: int = 0) -> Tensor:
        return torch.nn.functional.pad(x, (0, columns - x.shape[1], 0, -outputs % PANEL), value=value)

    def by_panel(x: Tensor) -> Tensor:
        """[outputs, n] -> [panels, n, PANEL]"""
        return x.view(-1, PANEL, x.shape[1]).transpose(1, 2)

    two = padded(steps, 2 * tiles)
    parts = [by_panel(padded(scales.half(), spans(tiles))).contiguous().view(torch.uint8).flatten(1)]
    parts.append(by_panel(two[:, ::2] | two[:, 1::2] << 4).flatten(1))
    fill = header_bytes(tiles) - sum(part.shape[1] for part in parts)
    parts.append(torch.zeros(len(parts[0]), fill, dtype=torch.uint8))
    whole = padded(numbers, tiles * TILE, CODES.index(0)).view(-1, PANEL, tiles, TILE)
    lines = (whole[..., :GROUP] | whole[..., GROUP:] << 4).view(-1, PANEL, tiles, GROUP // 4, 4)
    parts.append(lines.permute(0, 2, 3, 1, 4).flatten(1))
    return torch.cat(parts, 1)


def rows(panels: Tensor, outputs: Tensor, tiles: int) -> Tensor:
    """Float32 [n, tiles x 64] of output `outputs[i]` (0..15) of `panels[i]`, uint8 [n, panel_bytes]."""
    n = len(panels)
    at = spans(tiles) * 2 * PANEL

    def of_output(x: Tensor) -> Tensor:
        """[n, x, PANEL, y] -> [n, x, y] of each row's own output."""
        index = outputs.view(n, 1, 1, 1).expand(-1, x.shape[1], 1, x.shape[3])
        return x.gather(2, index).squeeze(2)

    scales = of_output(panels[:, :at].contiguous().view(torch.float16).view(n, -1, PANEL, 1)).float()
    steps = of_output(panels[:, at : at + tiles * PANEL].reshape(n, tiles, PANEL, 1))
    lines = of_output(panels[:, header_bytes(tiles) :].reshape(n, tiles * 8, PANEL, 4)).view(n, tiles, GROUP)
    numbers = torch.stack((lines & 15, lines >> 4), 2).long()  # [n, tiles, 2, GROUP]
    of_group = torch.stack((steps & 15, steps >> 4), 2).long()  # [n, tiles, 2, 1]
    whole = (torch.tensor(CODES)[numbers] * torch.tensor(STEPS)[of_group]).view(n, -1).float()
    return whole * scales.repeat_interleave(SPAN, 1).view(n, -1)[:, : tiles * TILE]
