"""Which block of the cache belongs to whom.

A pool a window group hands out block numbers; a `BlockList` holds one sequence's blocks in one group. A windowed group
gives back the blocks that fell out of its window, which is what the published rolling buffer does
(arXiv:2310.06825, section 2): the memory of a sequence stays bounded however long its text.
"""

from cierzo.ops import BlockTable, Window, first_visible


def blocks_bound(window: Window | None, tokens: int, chunk: int, block_size: int) -> int:
    """The most blocks that a sequence of `tokens` tokens ever holds when at most `chunk` are computed at a time.

    With a window, the keys of one step span (reach - 1) + chunk positions, which touch one block more than they fill
    when they start inside a block. W = 4096, chunk 512, blocks of 16: ceil(4607 / 16) + 1 = 289.
    """
    whole = -(-tokens // block_size)
    return whole if window is None else min(whole, -(-(window.reach - 1 + chunk) // block_size) + 1)


class BlockPool:
    """`size` blocks, each free or held by one or more owners."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._references = [0] * size
        self._free = list(range(size - 1, -1, -1))  # taken from the end: low numbers first, and reused while warm

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free block, now held once. The scheduler has made sure that there is one."""
        block = self._free.pop()
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more owner."""
        assert self._references[block] > 0, f"block {block} is free"
        self._references[block] += 1

    def give_back(self, block: int) -> None:
        """One owner fewer; the last one frees it."""
        assert self._references[block] > 0, f"block {block} is already free"
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free.append(block)


class BlockList:
    """One sequence's blocks in one window group: those of positions from `first` x block_size on."""

    def __init__(self, pool: BlockPool, window: Window | None, block_size: int) -> None:
        self.pool, self.window, self.block_size = pool, window, block_size
        self.first = 0
        self.blocks: list[int] = []

    def cover(self, length: int) -> None:
        """Take blocks until positions below `length` have one."""
        while (self.first + len(self.blocks)) * self.block_size < length:
            self.blocks.append(self.pool.take())

    def forget(self, position: int) -> None:
        """Give back the blocks that a query at `position`, and so every later one, cannot see."""
        while self.blocks and (self.first + 1) * self.block_size <= first_visible(self.window, position):
            self.pool.give_back(self.blocks.pop(0))
            self.first += 1

    def release(self) -> None:
        """Give back everything."""
        for block in self.blocks:
            self.pool.give_back(block)
        self.blocks.clear()

    def table(self) -> BlockTable:
        return BlockTable(self.first, tuple(self.blocks))
