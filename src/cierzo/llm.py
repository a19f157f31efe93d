"""The public face: a model with its tokenizer, answering."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from cierzo.engine import Completion, Delta, Engine, Metrics, SamplingParams, TokenLogprob
from cierzo.engine import Sequence as EngineSequence
from cierzo.errors import CierzoError, EngineError
from cierzo.loading import Card, LoadOptions, load_engine
from cierzo.tokens import Message

Prompt = str | list[int]
Pooling = Literal["mean", "last"]


class LLM:
    """A language model that chats, completes, scores and embeds; for one thread.

    >>> llm = LLM()
    >>> llm.chat([{"role": "user", "content": "What is the capital of France?"}]).text
    'The capital of France is Paris.'

    Args:
        model, progress: see `load`.
        dtype, ..., sliding_window: see `LoadOptions`.

    Raises:
        CierzoError: from here and from all methods, for what the caller can mend.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: str = "auto",
        device: str = "auto",
        chat_template: str | None = None,
        max_seq_len: int | None = None,
        allow_beyond_limit: bool = False,
        block_size: int = 16,
        chunk_size: int = 512,
        cache_dtype: str = "auto",
        cache_tokens: int | None = None,
        max_running: int = 64,
        sliding_window: int | None = None,
        mmap: bool = True,
        progress: bool = False,
    ) -> None:
        options = LoadOptions(
            dtype=dtype,
            device=device,
            chat_template=chat_template,
            max_seq_len=max_seq_len,
            allow_beyond_limit=allow_beyond_limit,
            block_size=block_size,
            chunk_size=chunk_size,
            cache_dtype=cache_dtype,
            cache_tokens=cache_tokens,
            max_running=max_running,
            sliding_window=sliding_window,
            mmap=mmap,
        )
        self._loaded = load_engine(model, options, progress=progress)
        self.path, self.name, self._engine = self._loaded.path, self._loaded.name, self._loaded.engine
        self.tokenizer, self.config = self._engine.tokenizer, self._engine.model.config
        self.max_seq_len = self._engine.max_seq_len

    @property
    def card(self) -> Card:
        """What was chosen: format, memory, tokens that the cache holds, threads, instruction set."""
        return self._loaded.card

    @property
    def metrics(self) -> Metrics:
        """What was computed since the model was loaded."""
        return self._engine.metrics

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
    ) -> list[Completion]:
        """Continue each prompt (text, or token ids) `n` times; the samples of a prompt stand together.

        Args:
            params: of all prompts, or of each.
        """
        return self._answers([self._encoded(p) for p in _as_list(prompts)], params, n, continues=True)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> Completion:
        """Answer a conversation, given as in the OpenAI API, by the model's own template."""
        return self._answers([self.tokenizer.encode_chat(messages, tools)], params, 1, tools=bool(tools))[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> "Stream":
        """Continue a prompt, piece by piece. Closing it cancels the request."""
        return self._deltas(self._encoded(prompt), params, continues=True)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> "Stream":
        """Answer a conversation, piece by piece. Closing it cancels the request."""
        return self._deltas(self.tokenizer.encode_chat(messages, tools), params, tools=bool(tools))

    def score(
        self, prompts: Prompt | Sequence[Prompt], *, top: int = 0, first: int | Sequence[int] = 1
    ) -> list[tuple[TokenLogprob, ...]]:
        """Log-probabilities of prompts' tokens, each given those before it, and of the `top` best there.

        Args:
            first: number of the first token to score (one for all prompts, or one each): what stands before it need not
                be computed if an earlier text began the same.
        """
        ids = [self._encoded(p) for p in _as_list(prompts)]
        firsts = [first] * len(ids) if isinstance(first, int) else first
        params = SamplingParams(logprobs=top)
        prepared = [
            self._engine.prepare(prompt, params, task="score", first_scored=number)
            for prompt, number in zip(ids, firsts, strict=True)
        ]
        return [tuple(sequence.prompt_logprobs) for sequence in self._run(prepared)]

    def embed(self, prompts: Prompt | Sequence[Prompt], *, pooling: Pooling = "mean") -> list[Tensor]:
        """A vector [dim] of length 1, float32, for each text: the normed hidden states' mean, or the last token's."""
        if pooling not in get_args(Pooling):
            raise CierzoError(f"pooling must be mean or last, not {pooling!r}")
        last = pooling == "last"
        prepared = [
            self._engine.prepare(self._encoded(p), SamplingParams(), task="embed", last_hidden=last)
            for p in _as_list(prompts)
        ]
        return [sequence.embedding() for sequence in self._run(prepared)]

    def _encoded(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)

    def _run(self, sequences: list[EngineSequence]) -> list[EngineSequence]:
        """All at once, until the last has ended."""
        try:
            for sequence in sequences:
                self._engine.add(sequence)
            while any(s.finish_reason is None for s in sequences):
                self._engine.step()
        finally:
            for sequence in sequences:
                self._engine.cancel(sequence)
        failed = next((s.error for s in sequences if s.error is not None), None)
        if failed is not None:
            raise EngineError(failed)
        return sequences

    def _answers(
        self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams] | None, n: int, *,
        continues: bool = False, tools: bool = False,
    ) -> list[Completion]:  # fmt: skip
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise CierzoError(
                f"params must be one for all or one for each of {len(prompts)} prompts, not {len(params)}"
            )
        prepared = [
            self._engine.prepare(prompt, own.for_sample(sample), continues=continues, tools=tools)
            for prompt, own in zip(prompts, params, strict=True)
            for sample in range(n)
        ]
        return [Completion.of(s.deltas) for s in self._run(prepared)]

    def _deltas(
        self, prompt: list[int], params: SamplingParams | None, *, continues: bool = False, tools: bool = False
    ) -> "Stream":
        prepared = self._engine.prepare(prompt, params or SamplingParams(), continues=continues, tools=tools)
        return Stream(self._engine, self._engine.add(prepared))


class Stream(Iterator[Delta]):
    """The pieces of one answer. `close` cancels what is left, also before the first piece was asked for."""

    def __init__(self, engine: Engine, sequence: EngineSequence) -> None:
        self._engine, self._sequence = engine, sequence
        self._closed = False

    def __next__(self) -> Delta:
        """The next piece.

        Raises:
            EngineError: the answer ended by one.
        """
        if self._closed:
            raise StopIteration
        try:
            while not self._sequence.deltas:
                self._engine.step()
        except BaseException:
            self.close()
            raise
        delta = self._sequence.deltas.popleft()
        self._closed = delta.finish_reason is not None
        if delta.error is not None:
            raise EngineError(delta.error)
        return delta

    def close(self) -> None:
        self._closed = True
        self._engine.cancel(self._sequence)

    def __del__(self) -> None:
        self.close()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several."""
    if isinstance(prompts, str) or (prompts and all(isinstance(p, int) for p in prompts)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
