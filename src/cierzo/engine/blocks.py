"""Which block of the cache belongs to whom, and what freed blocks still hold.

A pool a window group hands out block numbers; a `BlockList` holds one sequence's blocks in one group. A windowed group
gives back the blocks that fell out of its window, which is what the published rolling buffer does
(arXiv:2310.06825, section 2): the memory of a sequence stays bounded however long its text.

A full block has a name: a hash of its tokens and of the name before it, so it stands for the whole text up to its end.
A block that nobody holds any more keeps its name until its memory is needed, and a later sequence whose text begins
the same takes it over instead of computing it (prefix caching).
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from cierzo.ops import BlockTable, Window, first_visible


def blocks_bound(window: Window | None, tokens: int, chunk: int, block_size: int) -> int:
    """The most blocks that a sequence of `tokens` tokens ever holds when at most `chunk` are computed at a time.

    With a window, the keys of one step span (reach - 1) + chunk positions, which touch one block more than they fill
    when they start inside a block. W = 4096, chunk 512, blocks of 16: ceil(4607 / 16) + 1 = 289.
    """
    whole = -(-tokens // block_size)
    return whole if window is None else min(whole, -(-(window.reach - 1 + chunk) // block_size) + 1)


def block_name(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a block of `tokens` that follows the block `parent`."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """`size` blocks, each free or held by one or more owners. Free blocks with a name are reused last, oldest first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._references = [0] * size
        self._blank = list(range(size - 1, -1, -1))  # taken from the end: low numbers first, and reused while warm
        self._kept: OrderedDict[int, None] = OrderedDict()  # free but named, least recently used first
        self.touched = 0  # blocks from 0 on that ever held anything
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        return len(self._blank) + len(self._kept)

    @property
    def named(self) -> int:
        """Blocks that can be found by their text, held or free."""
        return len(self._named)

    def held(self, block: int) -> bool:
        return self._references[block] > 0

    def freed_by(self, holds: Sequence[int]) -> set[int]:
        """The blocks that were free without these holds."""
        return {block for block, count in Counter(holds).items() if count == self._references[block]}

    def find(self, name: bytes) -> int | None:
        return self._named.get(name)

    def take(self) -> int:
        """A free block, now held once, which holds nothing. The scheduler has made sure that there is one."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._named[self._names.pop(block)]
        self._references[block] = 1
        self.touched = max(self.touched, block + 1)
        return block

    def share(self, block: int) -> None:
        """One more owner of a block that is held or has a name."""
        assert self.held(block) or block in self._kept, f"block {block} holds nothing"
        self._kept.pop(block, None)
        self._references[block] += 1

    def publish(self, block: int, name: bytes) -> None:
        """The block is full: let others find it. Of two blocks with the same text the first one stays known."""
        assert self.held(block), f"block {block} is free"
        if name not in self._named and block not in self._names:
            self._names[block] = name
            self._named[name] = block

    def give_back(self, block: int) -> None:
        """One owner fewer; the last one frees it."""
        assert self.held(block), f"block {block} is already free"
        self._references[block] -= 1
        if self._references[block] == 0:
            if block in self._names:
                self._kept[block] = None
            else:
                self._blank.append(block)


class BlockList:
    """One sequence's blocks in one window group: those of positions from `first` x block_size on."""

    def __init__(self, pool: BlockPool, window: Window | None, block_size: int) -> None:
        self.pool, self.window, self.block_size = pool, window, block_size
        self.first = 0
        self.blocks: list[int] = []
        self._published = 0  # blocks from the text's beginning that were offered to others

    @property
    def end(self) -> int:
        """Number, counted from the text's beginning, of the first block that is not held yet."""
        return self.first + len(self.blocks)

    def missing(self, length: int) -> int:
        """Blocks to take until positions below `length` have one."""
        return max(0, -(-length // self.block_size) - self.end)

    def cover(self, length: int) -> None:
        """Take blocks until positions below `length` have one."""
        self.blocks += [self.pool.take() for _ in range(self.missing(length))]

    def publish(self, names: Sequence[bytes]) -> None:
        """Let others find the text's first len(names) blocks, which are computed."""
        for number in range(max(self._published, self.first), len(names)):
            self.pool.publish(self.blocks[number - self.first], names[number])
        self._published = len(names)

    def oldest(self, position: int) -> int:
        """Number of the first block that a query at `position` can see into."""
        return first_visible(self.window, position) // self.block_size

    def forget(self, position: int) -> None:
        """Give back the blocks that a query at `position`, and so every later one, cannot see."""
        passed = min(self.oldest(position) - self.first, len(self.blocks))
        if passed > 0:
            for block in self.blocks[:passed]:
                self.pool.give_back(block)
            del self.blocks[:passed]
            self.first += passed

    def adopt(self, names: Sequence[bytes]) -> None:
        """Hold, instead of its own, the known blocks that a text going on after len(names) blocks can see."""
        first = self.oldest(len(names) * self.block_size)
        shared = [self.pool.find(name) for name in names[first:]]
        for block in shared:
            assert block is not None
            self.pool.share(block)
        self.release()
        self.first, self.blocks, self._published = first, [b for b in shared if b is not None], len(names)

    def release(self) -> None:
        """Give back everything, the text's end first, so that its beginning is known longest."""
        for block in reversed(self.blocks):
            self.pool.give_back(block)
        self.blocks.clear()
        self.first = self._published = 0

    def table(self) -> BlockTable:
        return BlockTable(self.first, tuple(self.blocks))


def cached_prefix(lists: Sequence[BlockList], names: Sequence[bytes]) -> int:
    """The most blocks after which a text with these block names can go on without computing them.

    Every group must know what the next token sees: all blocks without a window, the last reach - 1 positions with one.
    """
    longest = len(names)
    runs: list[list[int]] = []  # of each windowed group: how many blocks in a row are known up to each block
    for blocks in lists:
        find = blocks.pool.find
        if blocks.window is None:
            longest = next((n for n in range(longest) if find(names[n]) is None), longest)
    for blocks in (b for b in lists if b.window is not None):
        run = [0]
        for name in names[:longest]:
            run.append(0 if blocks.pool.find(name) is None else run[-1] + 1)
        runs.append(run)
    windowed = [b for b in lists if b.window is not None]
    for n in range(longest, 0, -1):
        if all(run[n] >= n - b.oldest(n * b.block_size) for run, b in zip(runs, windowed, strict=True)):
            return n
    return 0
