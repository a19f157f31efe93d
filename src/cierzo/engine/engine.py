"""The engine: many sequences through one model and one paged cache, a step at a time."""

import sys
from math import ceil

import torch

from cierzo.engine.blocks import BlockList, BlockPool, blocks_bound
from cierzo.engine.request import SamplingParams
from cierzo.engine.sampler import choose, token_logprob
from cierzo.engine.scheduler import Scheduler
from cierzo.engine.sequence import Sequence
from cierzo.engine.stream import TextStream
from cierzo.errors import CierzoError
from cierzo.model import Transformer
from cierzo.ops import PagedCache, PagedContext
from cierzo.tokens import Tokenizer


class Engine:
    """Owned by one thread. `add` a request, `step` until its deltas are there, `cancel` it at any time.

    Args:
        max_seq_len: longest prompt and answer together, in tokens; None lets windowed models go on for ever.
        chunk_size: tokens computed in one step at most.
        cache_tokens: tokens that the cache holds; a windowed sequence never needs more than its window and a chunk.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        max_seq_len: int | None,
        cache_tokens: int,
        block_size: int = 16,
        chunk_size: int = 512,
    ) -> None:
        config = model.config
        self.model, self.tokenizer, self.max_seq_len = model, tokenizer, max_seq_len
        self.block_size = block_size
        self.windows = [group.window for group in config.window_groups]
        longest = max_seq_len or sys.maxsize
        counts = [
            max(ceil(cache_tokens / block_size), 0 if w is None else blocks_bound(w, longest, chunk_size, block_size))
            for w in self.windows
        ]
        self.cache = PagedCache(
            [group.layers for group in config.window_groups],
            counts,
            block_size=block_size,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            dtype=model.cache_dtype,
            device=model.norm.weight.device,
        )
        self.pools = [BlockPool(count) for count in counts]
        self.scheduler = Scheduler(self.pools, self.windows, block_size=block_size, chunk_size=chunk_size)

    def add(
        self, prompt: list[int], params: SamplingParams, *, continues: bool = False, scoring: bool = False
    ) -> Sequence:
        """Queue a request; its deltas come with further steps.

        Args:
            prompt: token ids.
            continues: the answer goes on in the prompt's text (a completion), rather than starting one (a chat).
            scoring: compute the prompt tokens' log-probabilities instead of an answer.

        Raises:
            CierzoError: an empty or too long prompt, or ids outside the vocabulary.
        """
        self._check(prompt, params, 0 if scoring else 1)
        room = sys.maxsize if self.max_seq_len is None else self.max_seq_len - len(prompt)
        sequence = Sequence(
            prompt,
            params,
            max_answer=1 if scoring else min(room, params.max_tokens or room),
            blocks=[
                BlockList(pool, w, self.block_size) for pool, w in zip(self.pools, self.windows, strict=True)
            ],
            text=TextStream(self.tokenizer, params.stop, continues=continues),
            scoring=scoring,
        )  # fmt: skip
        self.scheduler.add(sequence)
        return sequence

    def _check(self, prompt: list[int], params: SamplingParams, shortest: int) -> None:
        if not prompt:
            raise CierzoError("the prompt is empty: give at least one token")
        vocab_size = self.model.config.vocab_size
        outside = [t for t in (*prompt, *params.logit_bias, *params.stop_token_ids) if not 0 <= t < vocab_size]
        if outside:
            raise CierzoError(f"token id {outside[0]} is outside the vocabulary of {vocab_size}")
        if self.max_seq_len is not None and len(prompt) + (params.max_tokens or 1) * shortest > self.max_seq_len:
            raise CierzoError(
                f"{len(prompt)} prompt tokens and an answer of {params.max_tokens or 'at least 1'} pass the limit of "
                f"{self.max_seq_len} tokens: shorten the prompt or lower max_tokens"
                + " (a model whose every layer has a window can go on with allow_beyond_limit)"
                * self.model.config.windowed
            )

    def cancel(self, sequence: Sequence) -> None:
        """End a request now and free its blocks; harmless when it has ended."""
        self.scheduler.remove(sequence)
        if sequence.finish_reason is None:
            sequence.end("cancelled")

    @torch.inference_mode()
    def step(self) -> None:
        """Compute the next tokens of everybody whose turn it is."""
        plan = self.scheduler.plan()
        if not plan:
            return
        for sequence, length in plan:
            for blocks in sequence.blocks:
                blocks.cover(sequence.computed + length)
        context = PagedContext(
            self.cache,
            [length for _, length in plan],
            [sequence.computed for sequence, _ in plan],
            [[sequence.blocks[g].table() for sequence, _ in plan] for g in range(len(self.pools))],
        )
        device = self.cache.device
        tokens = torch.tensor([t for s, n in plan for t in s.ids[s.computed : s.computed + n]], device=device)
        wanted = [
            range(rows.start, rows.stop) if sequence.scoring else range(rows.stop - 1, rows.stop)
            for (sequence, length), rows in zip(plan, context.sequences, strict=True)
            if sequence.scoring or length == sequence.uncomputed
        ]
        chosen = torch.tensor([r for rows in wanted for r in rows], dtype=torch.int64, device=device)
        scores = self.model(tokens, context, chosen)
        for sequence, length in plan:
            last = length == sequence.uncomputed
            if sequence.scoring:
                self._score(sequence, scores[:length], last)
                scores = scores[length:]
            sequence.computed += length
            for blocks in sequence.blocks:
                blocks.forget(sequence.computed)
            if last and not sequence.scoring:
                self._extend(sequence, scores[0])
                scores = scores[1:]
            if sequence.finish_reason is not None:
                self.scheduler.remove(sequence)

    def _extend(self, sequence: Sequence, scores: torch.Tensor) -> None:
        """Choose the next token from scores [V]."""
        params = sequence.params
        token = choose(scores, params, sequence.ids, sequence.n_prompt, sequence.generator)
        logprob = None if params.logprobs is None else token_logprob(scores, token, params.logprobs)
        stops = token in params.stop_token_ids or (token in self.tokenizer.stop_ids and not params.ignore_eos)
        sequence.accept(token, logprob, stops)

    def _score(self, sequence: Sequence, scores: torch.Tensor, last: bool) -> None:
        """Read the log-probabilities of prompt tokens from scores [n, V] of the tokens before them."""
        following = sequence.ids[sequence.computed + 1 : sequence.computed + 1 + len(scores)]
        top = sequence.params.logprobs or 0
        sequence.prompt_logprobs += [token_logprob(row, t, top) for row, t in zip(scores, following, strict=False)]
        if last:
            sequence.end("length")
