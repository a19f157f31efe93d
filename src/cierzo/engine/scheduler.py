"""Who is computed next.

Each step takes one token of every sequence that is decoding, then prompts in chunks, as many tokens as the budget
allows. Sequences stand in a row by priority and then by arrival: who stands further in front is admitted first, and
when the cache is full, who stands last gives its blocks to those before it and is computed again later (preemption by
recomputation: what it has said stays, and blocks that nobody took meanwhile are found again). The first of the row
can always take what it needs. `max_running` places are given by rank, and nobody is sent away from one for a newcomer.
"""

import sys
from bisect import insort

from cierzo.engine.blocks import BlockPool, blocks_bound, cached_prefix
from cierzo.engine.budget import StepBudget
from cierzo.engine.sequence import Sequence
from cierzo.errors import CierzoError
from cierzo.ops import Window


class Scheduler:
    """`waiting` and `running` stand in the order of their rank.

    Args:
        pools, windows: of each window group.
        chunk_size: prompt tokens computed in one step at most, beside a token of everybody who is decoding.
        max_running: sequences that decode together at most.
    """

    def __init__(
        self,
        pools: list[BlockPool],
        windows: list[Window | None],
        *,
        block_size: int,
        chunk_size: int,
        max_running: int,
    ) -> None:
        self.pools, self.windows = pools, windows
        self.block_size, self.max_running = block_size, max_running
        self.chunk_size = chunk_size
        self.budget = StepBudget(chunk_size)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer that the cache holds; windows bound what they take."""
        whole = [pool.size for pool, window in zip(self.pools, self.windows, strict=True) if window is None]
        return min(whole, default=sys.maxsize // self.block_size) * self.block_size

    def check(self, n_prompt: int, max_answer: int) -> None:
        """Whether a sequence could run, at least alone.

        Raises:
            CierzoError: the cache is too small for it.
        """
        longest = n_prompt + max_answer - 1  # the last token of an answer is never computed
        for window, pool in zip(self.windows, self.pools, strict=True):
            blocks = blocks_bound(window, longest, self.chunk_size, self.block_size)
            if blocks > pool.size:
                raise CierzoError(
                    f"{n_prompt} prompt tokens with an answer of up to {max_answer} need a cache of "
                    f"{blocks * self.block_size} tokens, and it holds {pool.size * self.block_size}: "
                    "raise cache_tokens or lower max_tokens"
                )

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_rank)

    def plan(self) -> list[tuple[Sequence, int]]:
        """The sequences of the next step, each with the number of its tokens to compute and with blocks for them."""
        self._admit()
        budget = self.budget.prompt_tokens(sum(s.uncomputed == 1 for s in self.running))
        step = []
        begun: set[bytes] = set()  # blocks that this step computes, at least in part
        place = 0
        while place < len(self.running):  # preempting takes from its end
            sequence = self.running[place]
            place += 1
            if sequence.uncomputed > 1 and budget:
                self._reuse(sequence)
            prompt = sequence.uncomputed > 1
            tokens = min(sequence.uncomputed, budget) if prompt else 1
            following = self._following(sequence, tokens) if prompt else []
            if begun.intersection(following[:1]):
                continue  # the next step finds them computed
            if tokens and self._make_room(sequence, tokens):
                step.append((sequence, tokens))
                budget -= tokens * prompt
                begun.update(following)
        return step

    def _following(self, sequence: Sequence, tokens: int) -> list[bytes]:
        """Names of the blocks of a prompt's next tokens that others could take over."""
        first, end = sequence.computed // self.block_size, -(-(sequence.computed + tokens) // self.block_size)
        return sequence.block_names(min(end, sequence.reusable // self.block_size))[first:]

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks; harmless when it is not here."""
        sequence.release()
        for row in (self.running, self.waiting):
            if sequence in row:
                row.remove(sequence)

    def _admit(self) -> None:
        """Let in who stands in front while there is memory, at the expense of those with a lower priority."""
        while self.waiting and len(self.running) < self.max_running:
            first = self.waiting[0]
            below = [sequence for sequence in self.running if sequence.priority > first.priority]
            if not self._fits(first, without=below):
                return  # nobody is sent away for nothing
            while below and not self._fits(first):
                self._preempt()
            insort(self.running, self.waiting.pop(0), key=_rank)

    def _fits(self, sequence: Sequence, without: list[Sequence] | None = None) -> bool:
        """Whether a waiting sequence's known tokens find room beside what those that run still need.

        That is the rest of their known tokens, and a block for each one's answer. `without`, the last of those that
        run, are taken to be gone.
        """
        names = self._known_names(sequence)
        gone = without or []
        staying = self.running[: len(self.running) - len(gone)]
        for group, (blocks, pool) in enumerate(zip(sequence.blocks, self.pools, strict=True)):
            found = (pool.find(name) for name in names[blocks.oldest(len(names) * self.block_size) :])
            freed = pool.freed_by([block for other in gone for block in other.blocks[group].blocks])
            shared = sum(block is not None and pool.held(block) and block not in freed for block in found)
            promised = sum(self._to_come(other, group) + 1 for other in staying)
            if self._to_come(sequence, group) - shared + promised > pool.free + len(freed):
                return False
        return True

    def _to_come(self, sequence: Sequence, group: int) -> int:
        """Blocks that a sequence's known tokens need at most and that it does not hold."""
        need = blocks_bound(self.windows[group], len(sequence.ids), self.chunk_size, self.block_size)
        return max(0, need - len(sequence.blocks[group].blocks))

    def _known_names(self, sequence: Sequence) -> list[bytes]:
        """Names of the blocks at the sequence's beginning that need not be computed."""
        names = sequence.block_names(sequence.reusable // self.block_size)
        return names[: cached_prefix(sequence.blocks, names)]

    def _reuse(self, sequence: Sequence) -> None:
        """Take over blocks that others have computed, if they reach further than the sequence's own."""
        if sequence.computed % self.block_size:
            return
        number = sequence.computed // self.block_size
        names = sequence.block_names(sequence.reusable // self.block_size)[number:]
        if not names or (number and any(blocks.pool.find(names[0]) is None for blocks in sequence.blocks)):
            return  # quickly said for most
        known = self._known_names(sequence)
        if len(known) > number:
            for blocks in sequence.blocks:
                blocks.adopt(known)
            sequence.adopted(len(known) * self.block_size)

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Take blocks for the sequence's next tokens; False if those before it hold them."""
        length = sequence.computed + tokens
        while any(blocks.missing(length) > blocks.pool.free for blocks in sequence.blocks):
            if self.running[-1] is sequence:
                return False
            self._preempt()
        for blocks in sequence.blocks:
            blocks.cover(length)
        return True

    def _preempt(self) -> None:
        """Send the last of those that run back to the waiting ones."""
        sequence = self.running.pop()
        sequence.preempt()
        self.preemptions += 1
        insort(self.waiting, sequence, key=_rank)


def _rank(sequence: Sequence) -> tuple[int, int]:
    """Lower stands in front."""
    return sequence.priority, sequence.number
