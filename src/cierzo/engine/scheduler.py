"""Who is computed next.

Each step takes one token of every sequence that is decoding, then prompts in order of arrival, in chunks, until
`chunk_size` tokens are together. A sequence is admitted when the most blocks that it can ever hold are not promised to
others, so no step can run out of blocks.
"""

from collections import deque

from cierzo.engine.blocks import BlockPool, blocks_bound
from cierzo.engine.sequence import Sequence
from cierzo.errors import CierzoError
from cierzo.ops import Window


class Scheduler:
    def __init__(
        self, pools: list[BlockPool], windows: list[Window | None], *, block_size: int, chunk_size: int
    ) -> None:
        self.pools, self.windows = pools, windows
        self.block_size, self.chunk_size = block_size, chunk_size
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            CierzoError: it could not run even alone.
        """
        # The last token of an answer is never computed.
        longest = sequence.n_prompt + sequence.max_answer - 1
        need = tuple(blocks_bound(window, longest, self.chunk_size, self.block_size) for window in self.windows)
        for blocks, pool in zip(need, self.pools, strict=True):
            if blocks > pool.size:
                raise CierzoError(
                    f"{sequence.n_prompt} prompt tokens with an answer of up to {sequence.max_answer} need a cache of "
                    f"{blocks * self.block_size} tokens, and it holds {pool.size * self.block_size}: "
                    "raise cache_tokens or lower max_tokens"
                )
        sequence.reserved = need
        self.waiting.append(sequence)

    def plan(self) -> list[tuple[Sequence, int]]:
        """The sequences of the next step, each with the number of its tokens to compute."""
        while self.waiting and self._fits(self.waiting[0]):
            self.running.append(self.waiting.popleft())
        budget = self.chunk_size
        step = []
        for sequence in sorted(self.running, key=lambda s: s.uncomputed > 1):  # stable: decodes first, then by arrival
            tokens = min(sequence.uncomputed, budget)
            if tokens:
                step.append((sequence, tokens))
                budget -= tokens
        return step

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its blocks; harmless when it is not here."""
        for blocks in sequence.blocks:
            blocks.release()
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        return all(
            sum(other.reserved[g] for other in self.running) + sequence.reserved[g] <= pool.size
            for g, pool in enumerate(self.pools)
        )
