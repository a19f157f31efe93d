"""One request while the engine works on it."""

import time
from collections import deque

import torch

from cierzo.engine.blocks import BlockList
from cierzo.engine.request import Delta, FinishReason, SamplingParams, TokenLogprob, Usage
from cierzo.engine.stream import TextStream


class Sequence:
    """Token ids, how far they are computed, the blocks that hold their keys, and the answer so far.

    `deltas` is what the owner of the request has not yet taken; the last one carries `finish_reason`. When `scoring`,
    no token is added: `prompt_logprobs` collects the log-probability of each prompt token but the first.
    """

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        max_answer: int,
        blocks: list[BlockList],
        text: TextStream,
        scoring: bool = False,
    ) -> None:
        self.ids = list(prompt)
        self.n_prompt = len(prompt)
        self.params = params
        self.max_answer = max_answer
        self.blocks = blocks
        self.text = text
        self.scoring = scoring
        self.prompt_logprobs: list[TokenLogprob] = []
        self.computed = 0  # positions whose keys and values are in the cache
        self.reserved: tuple[int, ...] = ()  # blocks set aside for it in each window group
        self.finish_reason: FinishReason | None = None
        self.deltas: deque[Delta] = deque()
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self._added = time.perf_counter()
        self._first_token = 0.0

    @property
    def uncomputed(self) -> int:
        return len(self.ids) - self.computed

    def accept(self, token: int, logprob: TokenLogprob | None, stops: bool) -> None:
        """Add the chosen token; `stops` when it ends the answer, and then it is not part of the text."""
        if len(self.ids) == self.n_prompt:
            self._first_token = time.perf_counter()
        self.ids.append(token)
        text = "" if stops else self.text.push(token)
        if stops or self.text.stopped:
            self.finish_reason = "stop"
        elif len(self.ids) - self.n_prompt >= self.max_answer:
            self.finish_reason = "length"
        self._emit(text, (token,), () if logprob is None else (logprob,))

    def end(self, reason: FinishReason) -> None:
        """End without a further token."""
        self.finish_reason = reason
        self._emit("", (), ())

    def _emit(self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> None:
        usage = None
        if self.finish_reason is not None:
            text += self.text.finish()
            now = time.perf_counter()
            answered = len(self.ids) - self.n_prompt
            first = self._first_token if answered else now
            usage = Usage(self.n_prompt, answered, first - self._added, now - self._added)
        self.deltas.append(Delta(text, token_ids, logprobs, self.finish_reason, usage))
