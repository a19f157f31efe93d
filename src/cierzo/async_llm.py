"""The asynchronous face: the same model for many who ask at the same time."""

import asyncio
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cierzo.engine import Delta, EngineThread, Metrics, SamplingParams, TokenLogprob
from cierzo.engine import Sequence as EngineSequence
from cierzo.errors import CierzoError, EngineError
from cierzo.loading import Loaded
from cierzo.tokens import Message


class Answer:
    """The pieces of one answer; `aclose` cancels what is left of it (also before the first piece was asked for)."""

    def __init__(self, sequence: EngineSequence, woken: asyncio.Event, thread: EngineThread) -> None:
        self._sequence, self._woken, self._thread = sequence, woken, thread
        self._last = False

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Delta:
        if self._last:
            raise StopAsyncIteration
        while not self._sequence.deltas:
            self._woken.clear()
            if not self._sequence.deltas:
                await self._woken.wait()
        delta = self._sequence.deltas.popleft()
        self._last = delta.finish_reason is not None
        return delta

    async def aclose(self) -> None:
        self._last = True
        self._thread.cancel(self._sequence)


class AsyncLLM:
    """A loaded model on a thread of its own, for one event loop or several.

    What is slow about a request besides the model (templates, tokenizing, grammars) runs on threads as well, so the
    loop stays free.

    Args:
        loaded: as `cierzo.load_engine` gives it.
        max_waiting: requests that wait for their turn at most; further ones are refused with `QueueFullError`.
    """

    def __init__(self, loaded: Loaded, *, max_waiting: int = 256) -> None:
        self._loaded = loaded
        self.name, self.card = loaded.name, loaded.card
        self.tokenizer, self.config = loaded.engine.tokenizer, loaded.engine.model.config
        self.max_seq_len = loaded.engine.max_seq_len
        self._thread = EngineThread(loaded.engine, max_waiting=max_waiting)

    @property
    def metrics(self) -> Metrics:
        """What was computed since the model was loaded."""
        return self._loaded.engine.metrics

    @property
    def untouched(self) -> int:
        """Bytes of the cache that it has not taken from the system yet."""
        return self._loaded.engine.untouched

    @property
    def pending(self) -> int:
        """Requests that run or wait."""
        return self._thread.pending

    @property
    def failure(self) -> str | None:
        """Why the engine cannot go on, if so."""
        return self._loaded.engine.failure

    async def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of a conversation by the model's own template, ready for an answer."""
        return await asyncio.to_thread(self.tokenizer.encode_chat, messages, tools)

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text, after the begin-of-text token."""
        return await asyncio.to_thread(self.tokenizer.encode, text, bos=True)

    async def answer(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        continues: bool = False,
        tools: bool = False,
        priority: int = 0,
        cache_salt: str = "",
    ) -> "Answer":
        """Queue a prompt; returns its answer, which comes piece by piece.

        Args:
            continues, tools, priority, cache_salt: see `Engine.prepare`.

        Raises:
            QueueFullError: too many requests wait.
            CierzoError: what the caller can mend.
        """
        self._thread.check_room()
        sequence = await asyncio.to_thread(
            self._loaded.engine.prepare, prompt, params,
            continues=continues, tools=tools, priority=priority, cache_salt=cache_salt,
        )  # fmt: skip
        return Answer(sequence, self._submit(sequence), self._thread)

    async def score(
        self, prompt: list[int], *, top: int = 0, first: int = 1, priority: int = 0, cache_salt: str = ""
    ) -> tuple[TokenLogprob, ...]:
        """As `LLM.score`, of one prompt; `priority` and `cache_salt` as of `answer`."""
        sequence = await asyncio.to_thread(
            self._loaded.engine.prepare, prompt, SamplingParams(logprobs=top), task="score", first_scored=first,
            priority=priority, cache_salt=cache_salt,
        )  # fmt: skip
        await self._finish(sequence)
        return tuple(sequence.prompt_logprobs)

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int], *, cache_salt: str = "") -> list[float]:
        """Log-probabilities of these tokens after a prompt, of which only what is not in the cache is computed."""
        params = SamplingParams(
            temperature=0, max_tokens=1, ignore_eos=True, logprobs=0, logprob_token_ids=tuple(tokens)
        )  # fmt: skip
        answer = await self.answer(prompt, params, cache_salt=cache_salt)
        try:
            async for delta in answer:
                if delta.error is not None:
                    raise EngineError(delta.error)
                for one in delta.logprobs:
                    return [value for _, value in one.top]
        finally:
            await answer.aclose()
        raise EngineError("the engine has stopped")

    async def embed(self, prompt: list[int], *, pooling: str = "mean", cache_salt: str = "") -> Tensor:
        """As `LLM.embed`, of one prompt; `cache_salt` as of `answer`."""
        if pooling not in ("mean", "last"):
            raise CierzoError(f"pooling must be mean or last, not {pooling!r}")
        sequence = await asyncio.to_thread(
            self._loaded.engine.prepare, prompt, SamplingParams(), task="embed", last_hidden=pooling == "last",
            cache_salt=cache_salt,
        )  # fmt: skip
        await self._finish(sequence)
        return sequence.embedding()

    async def close(self, *, drain: bool = True) -> None:
        """Take no more requests, answer (or with `drain` false cancel) those that are pending, and stop."""
        await asyncio.to_thread(self._thread.close, drain=drain)

    def _submit(self, sequence: EngineSequence) -> asyncio.Event:
        """Queue a sequence; the event is set after each of its new deltas."""
        woken = asyncio.Event()
        self._thread.submit(sequence, asyncio.get_running_loop(), woken.set)
        return woken

    async def _finish(self, sequence: EngineSequence) -> None:
        woken = self._submit(sequence)
        try:
            while sequence.finish_reason is None:
                woken.clear()
                if sequence.finish_reason is None:
                    await woken.wait()
        finally:
            self._thread.cancel(sequence)
        if sequence.error is not None:
            raise EngineError(sequence.error)
