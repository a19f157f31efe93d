"""A model whose answers the test chooses."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from cierzo import Delta, Message, SamplingParams, Tokenizer
from cierzo.errors import CierzoError


class FakeTokenizer:
    """One token a character, two more a message."""

    chat_refusal: str | None = None
    vocab_size = 0x110000
    bos_id = None
    stop_ids: frozenset[int] = frozenset()
    adds_leading_space = False
    tool_format = None

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return list(map(ord, text))

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        return [t for message in messages for t in (0, *self.encode(message["content"]), 1)]


class FakeLLM:
    """Answers in the given pieces, `delay` seconds before each, then stops; or `fails` before the first."""

    def __init__(
        self, pieces: Sequence[str] = ("Hello", " there"), *, fails: str | None = None, delay: float = 0
    ) -> None:
        self.name = self.card = "fake"
        self.max_seq_len: int | None = 1000
        self.tokenizer: Tokenizer = FakeTokenizer()
        self.pieces, self.fails, self.delay = pieces, fails, delay
        self.asked: list[list[Message]] = []
        self.params: list[SamplingParams] = []
        self.cancelled = 0

    def stream_chat(self, messages: list[Message], params: SamplingParams) -> Iterator[Delta]:
        self.asked.append(messages)
        return self._deltas(params)

    def stream(self, prompt: str, params: SamplingParams) -> Iterator[Delta]:
        self.asked.append([{"role": "prompt", "content": prompt}])
        return self._deltas(params)

    def _deltas(self, params: SamplingParams) -> Iterator[Delta]:
        self.params.append(params)
        if self.fails is not None:
            raise CierzoError(self.fails)
        finished = False
        limit = len(self.pieces) if params.max_tokens is None else params.max_tokens
        try:
            for piece in self.pieces[:limit]:
                time.sleep(self.delay)
                yield Delta(piece, (7,))
            yield Delta("", (2,), finish_reason="length" if limit < len(self.pieces) else "stop")
            finished = True
        finally:
            self.cancelled += not finished
