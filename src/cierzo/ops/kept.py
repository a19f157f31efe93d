"""How a cache keeps keys and values: in float32, in bfloat16, or in 8 bits, sixteen tokens together.

A head's keys of sixteen tokens lie side by side, number by number, [head_dim, 16], so that kernels take the scores of
sixteen keys at once; its values token by token, [16, head_dim]. Whatever a step reads of a head is one run of memory.

In 8 bits, numbers are scale x (-127 .. 127), the largest of the head's taking 127; the sixteen scales, float32, lie
behind them, so a head of 128 takes 132 bytes a token instead of 256. A head that holds NaN or infinite numbers gets
the scale NaN, which whoever reads it sees.
"""

import torch
from torch import Tensor

CACHE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
TOGETHER = 16
_SCALE_BYTES = 4
_SMALLEST = 1e-30  # below, all is 0: 127 / peak would not be finite


def head_width(head_dim: int, dtype: torch.dtype) -> int:
    """Elements of `dtype` that a head takes for a token."""
    return head_dim + _SCALE_BYTES * (dtype is torch.int8)


def side_shape(tokens: int, heads: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """The shape of the memory for the keys, or the values, of so many tokens."""
    return -(-tokens // TOGETHER), heads, TOGETHER * head_width(head_dim, dtype)


def put(side: Tensor, rows: Tensor, x: Tensor, *, keys: bool) -> None:
    """Keep x [T, heads, head_dim] as the tokens `rows` [T] of a side."""
    numbers, scales = _views(side, keys)
    at = rows // TOGETHER, slice(None), rows % TOGETHER
    if scales is None:
        numbers[at] = x.to(side.dtype)
    else:
        numbers[at], scales[at] = _in_eight_bits(x.float())


def read(side: Tensor, rows: Tensor, *, keys: bool) -> Tensor:
    """What a side keeps of the tokens `rows` [T], float32 where it is in 8 bits: [T, heads, head_dim]."""
    numbers, scales = _views(side, keys)
    at = rows // TOGETHER, slice(None), rows % TOGETHER
    return numbers[at] if scales is None else numbers[at].float() * scales[at].unsqueeze(-1)


def _views(side: Tensor, keys: bool) -> tuple[Tensor, Tensor | None]:
    """Numbers [sixteens, heads, 16, head_dim] of a side's memory, and scales [sixteens, heads, 16] of 8 bits."""
    eight = side.dtype is torch.int8
    head_dim = side.shape[-1] // TOGETHER - _SCALE_BYTES * eight
    numbers = side[..., : TOGETHER * head_dim].unflatten(-1, (head_dim, TOGETHER) if keys else (TOGETHER, head_dim))
    scales = side[..., TOGETHER * head_dim :].view(torch.float32) if eight else None
    return numbers.transpose(-1, -2) if keys else numbers, scales


def _in_eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [T, heads, head_dim] and scales [T, heads]."""
    finite = x.isfinite().all(-1, keepdim=True)
    peak = torch.where(finite, x.abs().amax(-1, keepdim=True), 0.0)
    peak = torch.where(peak > _SMALLEST, peak, 0.0)
    numbers = torch.where(peak > 0, x * (127 / peak), 0.0).round().to(torch.int8)
    return numbers, torch.where(finite, peak / 127, torch.nan).squeeze(-1)
