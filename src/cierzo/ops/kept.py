"""How a cache keeps keys and values: in float32, in bfloat16, or in 8 bits, some tokens together.

A head's keys of sixteen tokens (or of a block, where blocks are smaller) lie side by side, number by number,
[head_dim, 16], so that kernels take the scores of sixteen keys at once; its values token by token, [16, head_dim].
Whatever a step reads of a head is one run of memory.

In 8 bits, numbers are scale x (-127 .. 127), the largest of the head's taking 127; the tokens' scales, float32, lie
behind the numbers, so a head of 128 takes 132 bytes a token instead of 256. A head that holds NaN or infinite numbers
gets the scale NaN, which whoever reads it sees.
"""

import math

import torch
from torch import Tensor

from cierzo.errors import CierzoError

CACHE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_MOST_TOGETHER = 16
_SCALE_BYTES = 4
_SMALLEST = 1e-30  # below, all is 0: 127 / peak would not be finite


def head_width(head_dim: int, dtype: torch.dtype) -> int:
    """Elements of `dtype` that a head takes for a token."""
    return head_dim + _SCALE_BYTES * (dtype is torch.int8)


def side_shape(
    blocks: int, block_size: int, heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[int, int, int, int]:
    """The memory for keys, or values: [groups of tokens, heads, head_width, tokens that lie together].

    A group's numbers are in the order of these dimensions for keys alone; see `_views`.

    Raises:
        CierzoError: heads that cannot be kept in 8 bits, since their scales would lie between the words of memory.
    """
    if dtype is torch.int8 and head_dim % _SCALE_BYTES:
        raise CierzoError(f"heads of {head_dim} numbers cannot be kept in int8, only multiples of 4: take bfloat16")
    together = math.gcd(block_size, _MOST_TOGETHER)
    return blocks * block_size // together, heads, head_width(head_dim, dtype), together


def put(side: Tensor, rows: Tensor, x: Tensor, *, keys: bool) -> None:
    """Keep x [T, heads, head_dim] as the tokens `rows` [T] of a side."""
    numbers, scales = _views(side, keys)
    at = _places(side, rows)
    if scales is None:
        numbers[at] = x.to(side.dtype)
    else:
        numbers[at], scales[at] = _in_eight_bits(x.float())


def read(side: Tensor, rows: Tensor, *, keys: bool) -> Tensor:
    """What a side keeps of the tokens `rows` [T], float32 where it is in 8 bits: [T, heads, head_dim]."""
    numbers, scales = _views(side, keys)
    at = _places(side, rows)
    return numbers[at] if scales is None else numbers[at].float() * scales[at].unsqueeze(-1)


def _places(side: Tensor, rows: Tensor) -> tuple[Tensor, slice, Tensor]:
    together = side.shape[-1]
    return rows // together, slice(None), rows % together


def _views(side: Tensor, keys: bool) -> tuple[Tensor, Tensor | None]:
    """A side's numbers [groups, heads, together, head_dim] and, of 8 bits, scales [groups, heads, together]."""
    eight = side.dtype is torch.int8
    width, together = side.shape[2:]
    flat, end = side.flatten(2), together * (width - _SCALE_BYTES * eight)
    scales = flat[..., end:].view(torch.float32) if eight else None
    if keys:
        return flat[..., :end].unflatten(-1, (-1, together)).transpose(-1, -2), scales
    return flat[..., :end].unflatten(-1, (together, -1)), scales


def _in_eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [T, heads, head_dim] and scales [T, heads]."""
    finite = x.isfinite().all(-1, keepdim=True)
    peak = torch.where(finite, x.abs().amax(-1, keepdim=True), 0.0)
    peak = torch.where(peak > _SMALLEST, peak, 0.0)
    numbers = torch.where(peak > 0, x * (127 / peak), 0.0).round().to(torch.int8)
    return numbers, torch.where(finite, peak / 127, torch.nan).squeeze(-1)
