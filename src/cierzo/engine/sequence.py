"""One request while the engine works on it."""

import random
import time
from collections import deque
from hashlib import blake2b
from itertools import count
from typing import Literal

from torch import Tensor

from cierzo.engine.blocks import BlockList, block_name
from cierzo.engine.constrain import Constraint
from cierzo.engine.request import Delta, FinishReason, SamplingParams, TokenLogprob, ToolCallDelta, Usage
from cierzo.engine.stream import TextStream
from cierzo.engine.tools import ToolCallParser

Task = Literal["answer", "score", "embed"]

_numbers = count()


class Sequence:
    """Token ids, how far they are computed, the blocks that hold their keys, and the answer so far.

    `deltas` is what the owner of the request has not yet taken; the last one carries `finish_reason`. Two tasks add no
    token: "score" collects in `prompt_logprobs` the log-probability of each prompt token from number `first_scored` on,
    "embed" in `hidden_sum` [dim] what the last layer leaves for the prompt's tokens (only the last with `last_hidden`).

    Args:
        priority: lower is served first; of the same, who came first.
        cache_salt: only sequences with the same share blocks.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        task: Task,
        max_answer: int,
        blocks: list[BlockList],
        text: TextStream,
        tools: ToolCallParser | None = None,
        constraint: Constraint | None = None,
        priority: int = 0,
        cache_salt: str = "",
        first_scored: int = 1,
        last_hidden: bool = False,
    ) -> None:
        self.ids = list(prompt)
        self.n_prompt = len(prompt)
        self.params = params
        self.task = task
        self.max_answer = max_answer
        self.blocks = blocks
        self.text, self.tools, self.constraint = text, tools, constraint
        self.priority, self.number = priority, next(_numbers)
        self.first_scored, self.last_hidden = first_scored, last_hidden
        self.prompt_logprobs: list[TokenLogprob] = []
        self.hidden_sum: Tensor | None = None
        self.computed = 0  # positions whose keys and values are in the cache
        self._furthest = 0  # `computed` before any preemption: what is found again after one was not another's
        self.cached_tokens = 0
        self._told = (0, 0)
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.deltas: deque[Delta] = deque()
        self.generator = random.Random(params.seed)
        self._names = [blake2b(cache_salt.encode("utf-8", "surrogatepass"), digest_size=16).digest()]
        self.added = time.perf_counter()
        self.first_token = self.last_token = 0.0

    @property
    def uncomputed(self) -> int:
        return len(self.ids) - self.computed

    @property
    def answered(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.n_prompt

    @property
    def reusable(self) -> int:
        """Tokens at the beginning of which only the keys and values are needed, not what they lead to."""
        if self.task == "score":
            return self.first_scored - 1 + len(self.prompt_logprobs)
        return 0 if self.task == "embed" and not self.last_hidden else len(self.ids) - 1

    def block_names(self, number: int) -> list[bytes]:
        """Names of the first `number` blocks, which must be full."""
        size, names = self.blocks[0].block_size, self._names
        while len(names) <= number:
            names.append(block_name(names[-1], self.ids[(len(names) - 1) * size : len(names) * size]))
        return names[1 : number + 1]

    def advance(self, tokens: int) -> None:
        """Further tokens are computed: offer full blocks to others and give back what no later token sees."""
        self.computed += tokens
        self._furthest = max(self._furthest, self.computed)
        names = self.block_names(self.computed // self.blocks[0].block_size)
        for blocks in self.blocks:
            blocks.publish(names)
            blocks.forget(self.computed)

    def adopted(self, length: int) -> None:
        """The blocks now hold the keys of the first `length` tokens, computed for another sequence or before."""
        if not self.answered:
            self.cached_tokens += max(0, length - max(self.computed, self._furthest))
            self._furthest = max(self._furthest, length)
        self.computed = length

    def newly_read(self) -> tuple[int, int]:
        """Tokens of the prompt that are in the cache since this was last asked, and those of them that were found."""
        read, found = min(self._furthest, self.n_prompt), self.cached_tokens
        before, self._told = self._told, (read, found)
        return read - before[0], found - before[1]

    def embedding(self) -> Tensor:
        """The pooled hidden states [dim], float32, of length 1."""
        assert self.hidden_sum is not None, "not embedded"
        vector: Tensor = self.hidden_sum / self.hidden_sum.norm().clamp_min(1e-300)
        return vector.float()

    def release(self) -> None:
        """Give back all blocks."""
        for blocks in self.blocks:
            blocks.release()

    def preempt(self) -> None:
        """Give back all blocks and compute again later; what was answered stays."""
        self.release()
        self.computed, self.hidden_sum = 0, None

    def accept(self, token: int, logprob: TokenLogprob | None, stops: bool) -> None:
        """Add the chosen token; `stops` when it ends the answer, and then it is not part of the text."""
        self.last_token = time.perf_counter()
        if not self.answered:
            self.first_token = self.last_token
        self.ids.append(token)
        # What is held back for a stop text or half a character was written before a control token of tool calls.
        before = self.text.finish() if self.tools is not None and self.tools.marks(token) else ""
        text = "" if stops else self.text.push(token)
        if self.constraint is not None and not stops and self.text.stopped is None:
            stops = self.constraint.accept(token)
        if stops or self.text.stopped is not None:
            self.finish_reason = "stop"
        elif self.answered >= self.max_answer:
            self.finish_reason = "length"
        self._emit(text, (token,), () if logprob is None else (logprob,), before)

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """End without a further token."""
        self.error = error  # before the reason, which others look for on other threads
        self.finish_reason = reason
        self._emit("", (), ())

    def _emit(
        self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], before: str = ""
    ) -> None:
        usage, last = None, self.finish_reason is not None
        if last:
            text += self.text.finish()
            now = time.perf_counter()
            first = self.first_token if self.answered else now
            usage = Usage(self.n_prompt, self.answered, first - self.added, now - self.added, self.cached_tokens)
        calls: tuple[ToolCallDelta, ...] = ()
        if self.tools is not None:
            shown, earlier = self.tools.push(before, None, last=False)
            text, calls = self.tools.push(text, token_ids[0] if token_ids else None, last=last)
            text, calls = shown + text, earlier + calls
        self.deltas.append(
            Delta(text, token_ids, logprobs, self.finish_reason, usage, calls, self.text.stopped, self.error)
        )
