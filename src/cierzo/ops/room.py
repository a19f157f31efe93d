"""Where packed matrices lie: at multiples of 64 bytes, and while a model is loaded in huge pages.

A core that streams through weights at 40 GB/s passes a page of 4 KiB every 0.1 us, and finding the next one costs a
tenth to a fifth of its speed (docs/log.md, 2026-11-29). Linux gives pages of 2 MiB to memory that asks for them.
"""

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import torch
from torch import Tensor

_LINE = 64
_HUGE = 2 << 20
_REGION = 64 << 20
"""Bytes at least that are asked for at once: what is not used of them takes no memory."""


class _Regions:
    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        if size > len(self._left):
            self._left = _region(max(size, _REGION))
        taken, self._left = self._left[:size], self._left[-(-size // _LINE) * _LINE :]
        return taken


_regions: ContextVar[_Regions | None] = ContextVar("regions", default=None)


@contextmanager
def huge_pages() -> Iterator[None]:
    """Bytes that are taken meanwhile lie side by side in huge pages, and are given back together."""
    token = _regions.set(_Regions())
    try:
        yield
    finally:
        _regions.reset(token)


def aligned_empty(shape: tuple[int, ...]) -> Tensor:
    """Bytes that begin at a multiple of 64."""
    size, regions = math.prod(shape), _regions.get()
    if regions is not None:
        return regions.take(size).view(shape)
    room = torch.empty(size + _LINE, dtype=torch.uint8)
    start = -room.data_ptr() % _LINE
    return room[start : start + size].view(shape)


def _region(size: int) -> Tensor:
    """Bytes that begin with a huge page, where the system has such."""
    memory = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE
    return whole[start : start + size]
