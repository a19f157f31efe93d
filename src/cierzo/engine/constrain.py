"""Answers of a required form: which tokens may come next, by the `llguidance` library.

The mask of a sequence's next token is made on a thread of its own while the model computes that token's scores.
"""

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cierzo.engine.request import Structure
from cierzo.errors import CierzoError
from cierzo.tokens import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LONGEST = 2**18
"""Characters of a schema or grammar."""


class Grammars:
    """Makes constraints for one tokenizer; may be used from several threads.

    Args:
        vocab_size: scores that the model gives, at least as many as the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cierzo-masks")

    @cached_property
    def _library(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self._tokenizer.stop_ids:
            raise CierzoError("this vocabulary has no token that ends an answer, which structured output needs")
        wrapped = TokenizerWrapper(_Vocabulary(self._tokenizer))
        return LLTokenizer(wrapped, n_vocab=self._vocab_size, eos_token=sorted(self._tokenizer.stop_ids))

    def constraint(self, structure: Structure) -> "Constraint":
        """The constraint of one answer.

        Raises:
            CierzoError: a form that cannot be had, and why.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._library, _grammar(structure), log_level=0)
        if matcher.is_error():
            raise CierzoError(f"the answer's {structure.kind} cannot be used: {matcher.get_error()}")
        return Constraint(matcher, self._vocab_size, self._thread)


def _grammar(structure: Structure) -> str:
    """What the library takes."""
    from llguidance import LLMatcher

    kind, value = structure.kind, structure.value
    if kind == "json":
        kind, value = "json_schema", {"type": "object"}
    if kind == "json_schema":
        value = _schema(value)
    if kind == "choice":
        if not isinstance(value, list | tuple) or not value or not all(isinstance(t, str) and t for t in value):
            raise CierzoError(f"choice needs a list of texts, none of them empty, not {value!r}")
        value = "start: " + " | ".join(json.dumps(text) for text in value)
    if not isinstance(value, str) or not value:
        raise CierzoError(f"the answer's {kind} must be a text, not {type(value).__name__}")
    if len(value) > _LONGEST:
        raise CierzoError(f"the answer's {kind} has {len(value)} characters; {_LONGEST} are the most")
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(value)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(value)
    if kind in ("choice", "grammar"):
        return LLMatcher.grammar_from_lark(value)
    raise CierzoError(f"structure {kind!r} is not supported: use json, json_schema, regex, choice or grammar")


def _schema(value: Any) -> str:
    """The JSON text of a schema."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise CierzoError(f"the answer's json_schema is no JSON: {error}") from None
    if not isinstance(schema, Mapping | bool):
        raise CierzoError(f"the answer's json_schema must be a mapping, not {type(schema).__name__}")
    return text


class Constraint:
    """Where one answer is in its grammar."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int, thread: ThreadPoolExecutor) -> None:
        self._matcher, self._vocab_size, self._thread = matcher, vocab_size, thread
        self._mask: Future[Any] = thread.submit(matcher.compute_bitmask)

    def allowed(self) -> torch.Tensor:
        """Which tokens may come next: a bit a token, uint8, lowest bit first."""
        bits = np.zeros(-(-self._vocab_size // 8), dtype=np.uint8)
        mask = np.frombuffer(self._mask.result(), dtype=np.uint8)
        self._check()
        length = min(len(bits), len(mask))
        bits[:length] = mask[:length]
        return torch.from_numpy(bits)

    def accept(self, token: int) -> bool:
        """A token was chosen; True if the answer is whole and nothing can follow."""
        self._matcher.consume_token(token)
        self._check()
        if self._matcher.is_stopped():
            return True
        self._mask = self._thread.submit(self._matcher.compute_bitmask)
        return False

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]  # the rest is the library's whole state
            raise CierzoError(f"the answer's form became too complex: {reason}")


class _Vocabulary:
    """What the library wants to know of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = min(tokenizer.stop_ids), tokenizer.bos_id
        pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        self.tokens = [piece or f"<control {token}>".encode() for token, piece in enumerate(pieces)]

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        # SentencePiece puts a space in front of a text's beginning, and this is not the beginning of the answer's.
        before = "\n" if self._tokenizer.adds_leading_space else ""
        return self._tokenizer.encode(before + text)[len(self._tokenizer.encode(before)) :]
