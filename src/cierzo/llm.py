"""The public face: a model with its tokenizer, answering."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from cierzo.engine import Completion, Delta, Engine, SamplingParams, TokenLogprob
from cierzo.engine import Sequence as EngineSequence
from cierzo.errors import CierzoError
from cierzo.model import Transformer
from cierzo.ops import machine
from cierzo.progress import progress_bar
from cierzo.tokens import Message, Tokenizer, load_tokenizer
from cierzo.weights import load_model
from cierzo.weights.pull import resolve_model

Prompt = str | list[int]

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    model: str | Path | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    chat_template: str | None = None,
    progress: bool = False,
) -> tuple[Transformer, Tokenizer]:
    """A model's weights and its tokenizer.

    Args:
        model: a folder (consolidated or Hugging Face), a GGUF file, or a name; None is the default model.
        dtype: "float32", "bfloat16", or "auto" for that of the file: on the CPU a quantised file stays in few bits,
            which native kernels compute with (without them, and elsewhere, it becomes float32).
        device: as PyTorch names them, or "auto": CUDA where there is one.
        chat_template: see `cierzo.tokens.load_tokenizer`.
        progress: show on a terminal how far fetching and loading are.

    Raises:
        CierzoError: no such model, or files that are broken or not supported.
    """
    if dtype not in _DTYPES:
        raise CierzoError(f"dtype {dtype!r} is not supported: use one of {', '.join(_DTYPES)}")
    path = resolve_model(model, progress=progress)
    tokenizer = load_tokenizer(path, chat_template)
    with progress_bar(f"loading {path.name}", wanted=progress) as report:
        where = _device(device)
        packed = dtype == "auto" and where.type == "cpu" and machine().kernels is not None
        transformer = load_model(path, dtype=_DTYPES[dtype], packed=packed, device=where, progress=report)
    if tokenizer.vocab_size > transformer.config.vocab_size:
        raise CierzoError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens and the weights {transformer.config.vocab_size}: "
            "they are not of one model"
        )
    return transformer, tokenizer


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CierzoError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


class LLM:
    """A language model that chats, completes and scores.

    >>> llm = LLM()
    >>> llm.chat([{"role": "user", "content": "What is the capital of France?"}]).text
    'The capital of France is Paris.'

    Args:
        model, dtype, device, chat_template, progress: see `load`.
        max_seq_len: prompt and answer together, in tokens; the model's own limit when None.
        allow_beyond_limit: let a model whose every layer has a window go on past its limit, for ever; what it says
            there is the user's to judge.
        block_size: tokens in a block of the cache.
        chunk_size: tokens computed in one step at most.
        cache_tokens: tokens that the cache holds; one sequence of `max_seq_len` when None.

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
        cache_tokens: int | None = None,
        progress: bool = False,
    ) -> None:
        numbers = {"max_seq_len": max_seq_len, "block_size": block_size, "chunk_size": chunk_size}
        for name, value in (numbers | {"cache_tokens": cache_tokens}).items():
            if value is not None and value < 1:
                raise CierzoError(f"{name} must be at least 1, not {value}")
        self.path = resolve_model(model, progress=progress)
        self.name = self.path.stem if self.path.is_file() else self.path.resolve().name
        transformer, self.tokenizer = load(
            self.path, dtype=dtype, device=device, chat_template=chat_template, progress=progress
        )
        self.config = transformer.config
        longest = max_seq_len or self.config.max_seq_len
        if allow_beyond_limit and not self.config.windowed:
            raise CierzoError("allow_beyond_limit needs a window in every layer, and this model has layers without one")
        if longest > self.config.max_seq_len and not allow_beyond_limit:
            raise CierzoError(
                f"max_seq_len {longest} is more than the {self.config.max_seq_len} tokens that this model was made for"
            )
        self.max_seq_len: int | None = None if allow_beyond_limit else longest
        try:
            self._engine = Engine(
                transformer,
                self.tokenizer,
                max_seq_len=self.max_seq_len,
                cache_tokens=cache_tokens or longest,
                block_size=block_size,
                chunk_size=chunk_size,
            )
        except (RuntimeError, MemoryError):  # PyTorch says RuntimeError when memory is short
            raise CierzoError(
                f"no memory for a cache of {cache_tokens or longest} tokens: lower cache_tokens or max_seq_len"
            ) from None

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None, *, n: int = 1
    ) -> list[Completion]:
        """Continue each prompt (text, or token ids) `n` times; the samples of a prompt stand together."""
        return self._answers([self._encoded(p) for p in _as_list(prompts)], params, n, continues=True)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> Completion:
        """Answer a conversation, given as in the OpenAI API, by the model's own template."""
        return self._answers([self.tokenizer.encode_chat(messages, tools)], params, 1, continues=False)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[Delta, None, None]:
        """Continue a prompt, piece by piece. Closing the iterator cancels the request."""
        return self._deltas(self._encoded(prompt), params, continues=True)

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> Generator[Delta, None, None]:
        """Answer a conversation, piece by piece. Closing the iterator cancels the request."""
        return self._deltas(self.tokenizer.encode_chat(messages, tools), params, continues=False)

    def score(self, prompts: Prompt | Sequence[Prompt], *, top: int = 0) -> list[tuple[TokenLogprob, ...]]:
        """Log-probability of every prompt token but the first, given those before it, and of the `top` best there."""
        ids = [self._encoded(p) for p in _as_list(prompts)]
        params = SamplingParams(logprobs=top)
        return [tuple(sequence.prompt_logprobs) for sequence in self._run(ids, params, 1, scoring=True)]

    def _encoded(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else list(prompt)

    def _run(
        self, prompts: list[list[int]], params: SamplingParams, n: int, *, continues: bool = True, scoring: bool = False
    ) -> list[EngineSequence]:
        """All prompts at once, until the last has ended."""
        sequences: list[EngineSequence] = []
        try:
            for prompt in prompts:
                for sample in range(n):
                    own = params.for_sample(sample)
                    sequences.append(self._engine.add(prompt, own, continues=continues, scoring=scoring))
            while any(s.finish_reason is None for s in sequences):
                self._engine.step()
        finally:
            for sequence in sequences:
                self._engine.cancel(sequence)
        return sequences

    def _answers(
        self, prompts: list[list[int]], params: SamplingParams | None, n: int, *, continues: bool
    ) -> list[Completion]:
        sequences = self._run(prompts, params or SamplingParams(), n, continues=continues)
        return [Completion.of(s.deltas) for s in sequences]

    def _deltas(
        self, prompt: list[int], params: SamplingParams | None, *, continues: bool
    ) -> Generator[Delta, None, None]:
        sequence = self._engine.add(prompt, params or SamplingParams(), continues=continues)

        def deltas() -> Generator[Delta, None, None]:
            try:
                while sequence.deltas or sequence.finish_reason is None:
                    if sequence.deltas:
                        yield sequence.deltas.popleft()
                    else:
                        self._engine.step()
            finally:
                self._engine.cancel(sequence)

        return deltas()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as several."""
    if isinstance(prompts, str) or (prompts and all(isinstance(p, int) for p in prompts)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
