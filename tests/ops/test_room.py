"""Memory for packed matrices."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cierzo.ops import huge_pages
from cierzo.ops.room import aligned_empty

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@given(st.lists(st.integers(0, 5000), max_size=20), st.booleans())
def test_pieces_are_aligned_and_apart(sizes: list[int], huge: bool) -> None:
    if huge:
        with huge_pages():
            pieces = [aligned_empty((size,)) for size in sizes]
    else:
        pieces = [aligned_empty((size,)) for size in sizes]
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        assert piece.shape == (size,)
        assert not size or piece.data_ptr() % 64 == 0
        assert torch.all(piece == number)


def test_one_that_is_larger_than_a_region() -> None:
    with huge_pages():
        first, large, last = (aligned_empty(shape) for shape in ((10,), (70 << 10, 1 << 10), (10,)))
    large[0].fill_(1)
    large[-1].fill_(2)
    assert first.data_ptr() != last.data_ptr()
    assert (int(large[0, 0]), int(large[-1, -1])) == (1, 2)


@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(),
    reason="this system gives no huge pages to memory that asks",
)
def test_pages_are_huge() -> None:
    with huge_pages():
        room = aligned_empty((64 << 20,))
    room.fill_(1)
    assert room.data_ptr() % (2 << 20) == 0
    address, huge = room.data_ptr(), 0
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        start, end = (int(each, 16) for each in part.split()[0].split("-"))
        if start < address + (64 << 20) and address < end:
            huge += int(re.findall(r"AnonHugePages: +(\d+)", part)[0])
    assert huge > 0, "all in small pages"
