"""The engine: many sequences through one model and one paged cache, a step at a time."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

import torch
from torch import Tensor

from cierzo.engine.blocks import BlockList, BlockPool, blocks_bound
from cierzo.engine.constrain import Grammars
from cierzo.engine.metrics import Metrics
from cierzo.engine.request import SamplingParams
from cierzo.engine.sampler import draw_of, token_logprobs
from cierzo.engine.scheduler import Scheduler
from cierzo.engine.sequence import Sequence, Task
from cierzo.engine.stream import TextStream
from cierzo.engine.tools import ToolCallParser
from cierzo.errors import NOT_FINITE, CierzoError, EngineError
from cierzo.model import Transformer
from cierzo.ops import Draw, PagedCache, PagedContext, sample
from cierzo.tokens import Tokenizer

Plan = list[tuple[Sequence, int]]


class Engine:
    """Owned by one thread. `add` a sequence, `step` until its deltas are there, `cancel` it at any time.

    Args:
        max_seq_len: longest prompt and answer together, in tokens; None lets windowed models go on for ever.
        chunk_size: prompt tokens computed in one step at most.
        cache_dtype: how keys and values are kept (`cierzo.ops.kept`); None for the model's own way.
        cache_tokens: tokens that the cache holds; a windowed sequence never needs more than its window and a chunk.
        max_running: sequences that are computed together at most.

    Attributes:
        failure: None, or why the engine cannot go on; then every request fails.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        max_seq_len: int | None,
        cache_tokens: int,
        cache_dtype: torch.dtype | None = None,
        block_size: int = 16,
        chunk_size: int = 512,
        max_running: int = 64,
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
            dtype=cache_dtype or model.cache_dtype,
            device=model.norm.weight.device,
        )
        self.pools = [BlockPool(count) for count in counts]
        self.scheduler = Scheduler(
            self.pools, self.windows, block_size=block_size, chunk_size=chunk_size, max_running=max_running
        )
        self.grammars = Grammars(tokenizer, config.vocab_size)
        self._metrics = Metrics()
        self.failure: str | None = None

    def prepare(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        task: Task = "answer",
        continues: bool = False,
        tools: bool = False,
        priority: int = 0,
        cache_salt: str = "",
        first_scored: int = 1,
        last_hidden: bool = False,
    ) -> Sequence:
        """Check a request and make it a sequence for `add`. Any thread may do so.

        Args:
            prompt: token ids.
            task: "answer", "score" (log-probabilities of the prompt's tokens) or "embed": see `Sequence`.
            continues: the answer goes on in the prompt's text (a completion), rather than starting one (a chat).
            tools: read tool calls out of the answer.
            priority, cache_salt, first_scored, last_hidden: see `Sequence`.

        Raises:
            CierzoError: an empty or too long prompt, ids outside the vocabulary, or a form that cannot be had.
        """
        shortest = 1 if task == "answer" else 0
        self._check(prompt, params, shortest, priority)
        longest = self.scheduler.longest if self.max_seq_len is None else min(self.max_seq_len, self.scheduler.longest)
        room = max(1, longest - len(prompt))
        max_answer = (params.max_tokens or room) if shortest else 1
        self.scheduler.check(len(prompt), max_answer)
        if not 1 <= first_scored <= len(prompt):
            raise CierzoError(f"first_scored must be from 1 to {len(prompt)}, not {first_scored}")
        form = self.tokenizer.tool_format
        return Sequence(
            prompt,
            params,
            task=task,
            max_answer=max_answer,
            blocks=[
                BlockList(pool, w, self.block_size) for pool, w in zip(self.pools, self.windows, strict=True)
            ],
            text=TextStream(self.tokenizer, params.stop, continues=continues),
            tools=ToolCallParser(form) if tools and form else None,
            constraint=None if params.structure is None else self.grammars.constraint(params.structure),
            priority=priority,
            cache_salt=cache_salt,
            first_scored=first_scored,
            last_hidden=last_hidden,
        )  # fmt: skip

    def _check(self, prompt: list[int], params: SamplingParams, shortest: int, priority: int) -> None:
        if not prompt:
            raise CierzoError("the prompt is empty: give at least one token")
        vocab_size = self.model.config.vocab_size
        if not all(isinstance(token, int) for token in prompt):
            raise CierzoError("a prompt of token ids must hold whole numbers only")
        if not isinstance(priority, int):
            raise CierzoError(f"priority must be a whole number, not {priority!r}")
        named = (*prompt, *params.logit_bias, *params.stop_token_ids, *params.logprob_token_ids)
        outside = [t for t in named if not 0 <= t < vocab_size]
        if outside:
            raise CierzoError(f"token id {outside[0]} is outside the vocabulary of {vocab_size}")
        if self.max_seq_len is not None and len(prompt) + (params.max_tokens or 1) * shortest > self.max_seq_len:
            raise CierzoError(
                f"{len(prompt)} prompt tokens and an answer of {params.max_tokens or 'at least 1'} pass the limit of "
                f"{self.max_seq_len} tokens: shorten the prompt or lower max_tokens"
                + " (a model whose every layer has a window can go on with allow_beyond_limit)"
                * self.model.config.windowed
            )

    def add(self, sequence: Sequence) -> Sequence:
        """Queue a sequence; its deltas come with further steps.

        Raises:
            EngineError: the engine cannot go on.
        """
        if self.failure is not None:
            raise EngineError(self.failure)
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """End a request now and free its blocks; harmless when it has ended."""
        if sequence.finish_reason is None:
            sequence.end("cancelled")
            self._remove(sequence)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    @property
    def untouched(self) -> int:
        """Bytes of the cache that the system has not given yet, as nothing was ever written there."""
        return sum(
            side.numel() * side.element_size() // pool.size * (pool.size - pool.touched)
            for layers, pool in zip(self.cache.groups, self.pools, strict=True)
            for layer in layers
            for side in self.cache.layers[layer]
        )

    @property
    def metrics(self) -> Metrics:
        now = self._metrics
        now.running, now.waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        now.preemptions = self.scheduler.preemptions
        now.blocks = sum(pool.size for pool in self.pools)
        now.free_blocks = sum(pool.free for pool in self.pools)
        now.named_blocks = sum(pool.named for pool in self.pools)
        return now

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Compute the next tokens of everybody whose turn it is; returns those that have new deltas."""
        plan = self.scheduler.plan()
        if not plan:
            return []
        began = time.perf_counter()
        decoding = sum(sequence.uncomputed == 1 for sequence, _ in plan)
        tokens = sum(length for _, length in plan)
        try:
            computed = self._forward(plan)
        except Exception as error:
            return self._apart(plan, error)
        self._take(plan, *computed)
        seconds = time.perf_counter() - began
        self.scheduler.budget.observe(decoding, tokens - decoding, seconds)
        self._metrics.steps += 1
        self._metrics.step_time.add(seconds)
        self._metrics.step_tokens.add(tokens)
        return _changed(plan)

    def _forward(self, plan: Plan) -> tuple[Tensor, list[range], Tensor]:
        """The step's last hidden states [T, dim], wanted rows by sequence, and their scores [R, V]."""
        context = PagedContext(
            self.cache,
            [length for _, length in plan],
            [sequence.computed for sequence, _ in plan],
            [[sequence.blocks[g].table() for sequence, _ in plan] for g in range(len(self.pools))],
        )
        device = self.cache.device
        tokens = torch.tensor([t for s, n in plan for t in s.ids[s.computed : s.computed + n]], device=device)
        hidden = self.model.hidden(tokens, context)
        wanted = [
            self._wanted(sequence, length, rows.start)
            for (sequence, length), rows in zip(plan, context.sequences, strict=True)
        ]
        chosen = torch.tensor([row for rows in wanted for row in rows], dtype=torch.int64, device=device)
        return hidden, wanted, self.model.scores(hidden, chosen)

    def _wanted(self, sequence: Sequence, length: int, start: int) -> range:
        """Rows, of a sequence's `length` from `start` on, whose scores are asked for."""
        if sequence.task == "answer":
            return range(start + length - (length == sequence.uncomputed), start + length)
        if sequence.task == "embed":
            return range(0)
        first, end = sequence.reusable - sequence.computed, sequence.n_prompt - 1 - sequence.computed
        return range(start + max(0, first), start + min(length, end))

    def _take(self, plan: Plan, hidden: Tensor, wanted: list[range], scores: Tensor) -> None:
        """Give every sequence what the step computed for it."""
        answering: list[tuple[Sequence, Tensor, Draw]] = []
        row = start = 0
        for (sequence, length), rows in zip(plan, wanted, strict=True):
            sequence.advance(length)
            read, found = sequence.newly_read()
            self._metrics.prompt_tokens += read
            self._metrics.cached_tokens += found
            own = scores[row : row + len(rows)]
            with self._blaming(sequence):
                if sequence.task == "score":
                    self._score(sequence, own)
                elif sequence.task == "embed":
                    self._embed(sequence, hidden[start : start + length])
                elif rows:
                    answering.append((sequence, own, self._draw(sequence, own[0])))
            row += len(rows)
            start += length
        together = _sampled([draw for _, _, draw in answering])
        for number, (sequence, own, draw) in enumerate(answering):
            with self._blaming(sequence):
                self._extend(sequence, own, sample([draw])[0] if together is None else together[number])
        for sequence, _ in plan:
            if sequence.finish_reason is not None:
                self._remove(sequence)

    @contextmanager
    def _blaming(self, sequence: Sequence) -> Iterator[None]:
        """Whatever is raised, it is this sequence's fault alone."""
        try:
            yield
        except Exception as error:
            sequence.end("error", _reason(error))

    def _draw(self, sequence: Sequence, scores: Tensor) -> Draw:
        allowed = None if sequence.constraint is None else sequence.constraint.allowed()
        return draw_of(scores, sequence.params, sequence.ids, sequence.n_prompt, sequence.generator, allowed)

    def _extend(self, sequence: Sequence, scores: Tensor, token: int) -> None:
        """Add the token that was chosen by scores [1, V]."""
        if token < 0:
            raise EngineError(NOT_FINITE)
        params = sequence.params
        logprob = None
        if params.logprobs is not None:
            [logprob] = token_logprobs(scores, [token], params.logprobs, params.logprob_token_ids)
        stops = token in params.stop_token_ids or (token in self.tokenizer.stop_ids and not params.ignore_eos)
        before = sequence.last_token
        sequence.accept(token, logprob, stops)
        self._metrics.generated_tokens += 1
        if before:
            self._metrics.time_between_tokens.add(sequence.last_token - before)
        else:
            self._metrics.time_to_first_token.add(sequence.last_token - sequence.added)

    def _score(self, sequence: Sequence, scores: Tensor) -> None:
        """Log-probabilities of the next unscored prompt tokens, from scores [n, V] of the tokens before them."""
        first = sequence.first_scored + len(sequence.prompt_logprobs)
        following = sequence.ids[first : first + len(scores)]
        sequence.prompt_logprobs += token_logprobs(scores, following, sequence.params.logprobs or 0)
        if not sequence.uncomputed:
            sequence.end("length")

    def _embed(self, sequence: Sequence, hidden: Tensor) -> None:
        """Add what the last layer leaves for a chunk's tokens, hidden [n, dim], after the final norm."""
        if sequence.last_hidden:
            sequence.hidden_sum = self.model.normed(hidden[-1:]).double().sum(0)
        else:
            summed = self.model.normed(hidden).double().sum(0)
            sequence.hidden_sum = summed if sequence.hidden_sum is None else sequence.hidden_sum + summed
        if not torch.isfinite(sequence.hidden_sum).all():
            raise EngineError(NOT_FINITE)
        if not sequence.uncomputed:
            sequence.end("length")

    def _remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended."""
        self.scheduler.remove(sequence)
        self._metrics.finished[str(sequence.finish_reason)] += 1
        self._metrics.request_time.add(time.perf_counter() - sequence.added)

    def _apart(self, plan: Plan, error: Exception) -> list[Sequence]:
        """The step failed: run its sequences one by one, so that only those fail whose fault it is."""
        failed = 0
        for part in plan:
            try:
                if len(plan) == 1:
                    raise error
                self._take([part], *self._forward([part]))
            except Exception as own:
                failed += 1
                part[0].end("error", _reason(own))
                self._remove(part[0])
        if failed == len(plan) and not self._alive():
            return _changed(plan) + self.fail(_reason(error))
        return _changed(plan)

    def _alive(self) -> bool:
        """Whether the model still computes anything: its first token, with the first block of a pool."""
        probe = self.prepare([self.tokenizer.bos_id or 0], SamplingParams(), task="embed")
        try:
            for blocks in probe.blocks:
                blocks.cover(1)
            self._forward([(probe, 1)])
        except Exception:
            return False
        finally:
            probe.release()
        return True

    def fail(self, reason: str) -> list[Sequence]:
        """End everything, since the engine cannot go on; returns those that it ended."""
        self.failure = f"the engine has stopped: {reason}"
        left = [*self.scheduler.running, *self.scheduler.waiting]
        for sequence in left:
            sequence.end("error", self.failure)
            self._remove(sequence)
        return left


def _changed(plan: Plan) -> list[Sequence]:
    """Those that a step told something. Whoever reads on another thread may have taken it already."""
    return [sequence for sequence, _ in plan if sequence.deltas or sequence.finish_reason is not None]


def _sampled(draws: list[Draw]) -> list[int] | None:
    """Everybody's next token, or None if it must be drawn one by one to see whose fault it is that it cannot be."""
    try:
        return sample(draws)
    except Exception:
        return None


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CierzoError) else f"{type(error).__name__}: {error}"
