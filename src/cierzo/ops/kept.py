"""How a cache keeps a head's keys or values of one token: in float32, in bfloat16, or in 8 bits.

In 8 bits, numbers are scale x (-127 .. 127), the largest of the head's taking 127; the scale, float32, lies behind
them, so a head of 128 takes 132 bytes instead of 256. A head that holds NaN or infinite numbers gets the scale NaN,
which whoever reads it sees.
"""

import torch
from torch import Tensor

CACHE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_SCALE_BYTES = 4
_SMALLEST = 1e-30  # below, all is 0: 127 / peak would not be finite


def head_width(head_dim: int, dtype: torch.dtype) -> int:
    """Elements of `dtype` that a head takes."""
    return head_dim + _SCALE_BYTES * (dtype is torch.int8)


def kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [T, heads, head_dim] as a cache of this type keeps it, [T, heads, head_width]."""
    if dtype is not torch.int8:
        return x.to(dtype)
    x = x.float()
    finite = x.isfinite().all(-1, keepdim=True)
    peak = torch.where(finite, x.abs().amax(-1, keepdim=True), 0.0)
    peak = torch.where(peak > _SMALLEST, peak, 0.0)
    numbers = torch.where(peak > 0, x * (127 / peak), 0.0).round().to(torch.int8)
    scale = torch.where(finite, peak / 127, torch.nan)
    return torch.cat((numbers, scale.view(torch.int8)), -1)


def read(rows: Tensor) -> Tensor:
    """The numbers of a cache's rows [T, heads, head_width], float32 where they are in 8 bits: [T, heads, head_dim]."""
    if rows.dtype is not torch.int8:
        return rows
    scale = rows[..., -_SCALE_BYTES:].contiguous().view(torch.float32)
    return rows[..., :-_SCALE_BYTES].float() * scale
