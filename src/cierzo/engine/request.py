"""What is asked of the engine and what it answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from cierzo.errors import CierzoError, EngineError

FinishReason = Literal["stop", "length", "cancelled", "error", "content_filter"]
"""The engine's own; `content_filter` is a guard's, which ends an answer between engine and reader."""

_MOST_BIAS = 1e6
"""Far beyond any score, and far from where float32 ends."""


@dataclass(frozen=True)
class Structure:
    """What an answer's text must be. Masks make every other token impossible (`cierzo.engine.constrain`).

    Attributes:
        kind: "json" (any JSON object), "json_schema" (of `value`, a mapping or its JSON text), "regex" (that the whole
            answer matches), "choice" (one of the texts of `value`), "grammar" (Lark, as llguidance reads it).
        value: what `kind` says; nothing for "json".
    """

    kind: Literal["json", "json_schema", "regex", "choice", "grammar"]
    value: Any = None


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    Applied in this order to the scores of the next token: `logit_bias` (added), repetition, presence and frequency
    penalties, temperature, `top_k`, `top_p`, `min_p`; each of the last three renormalises what it leaves.

    Attributes:
        temperature: divides the scores; 0 takes the best token always.
        top_k: keep the k best tokens; 0 keeps all.
        top_p: keep the fewest best tokens whose probability reaches top_p (arXiv:1904.09751).
        min_p: keep tokens of at least min_p times the best token's probability (arXiv:2407.01082).
        repetition_penalty: divides positive, multiplies negative scores of tokens in the prompt or the answer
            (arXiv:1909.05858, section 4.1).
        presence_penalty: subtracted once from the score of each token in the answer.
        frequency_penalty: subtracted as often as the token is in the answer.
        logit_bias: added to the scores of these token ids.
        seed: the same seed gives the same answer, whatever else runs; None draws a new one.
        max_tokens: length of the answer at most; None means up to the model's limit.
        stop: the answer ends before the first of these texts.
        stop_token_ids: the answer ends at one of these tokens, besides the model's own.
        ignore_eos: go on past the model's own end tokens (for measurements).
        logprobs: None, or the number of best tokens to report with each token's log-probability; of the model's own
            distribution, before any of the above.
        logprob_token_ids: with `logprobs`, report these tokens instead of the best ones, in this order.
        structure: what the answer's text must be.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    structure: Structure | None = None

    def __post_init__(self) -> None:
        _number(self, "temperature", 0, 100)
        _number(self, "top_p", 0, 1, above=True)
        _number(self, "min_p", 0, 1)
        _number(self, "repetition_penalty", 0, 100, above=True)
        _number(self, "presence_penalty", -100, 100)
        _number(self, "frequency_penalty", -100, 100)
        _integer(self, "top_k", 0, 2**31)
        _integer(self, "seed", 0, 2**63 - 1, optional=True)
        _integer(self, "max_tokens", 1, 2**31, optional=True)
        _integer(self, "logprobs", 0, 100, optional=True)
        object.__setattr__(self, "stop", _texts(self.stop))
        if not all(isinstance(text, str) and text for text in self.stop):
            raise CierzoError(f"stop must be one or more texts, none of them empty, not {self.stop!r}")
        for value in self.logit_bias.values():
            if not isinstance(value, int | float) or not abs(value) <= _MOST_BIAS:
                raise CierzoError(f"logit_bias must map token ids to numbers from -1e6 to 1e6, not to {value!r}")

    def for_sample(self, number: int) -> "SamplingParams":
        """The same for one of several samples of a prompt: each draws from a seed of its own."""
        return self if self.seed is None or number == 0 else replace(self, seed=(self.seed + number) % 2**63)


def _texts(value: str | Iterable[str]) -> tuple[str, ...]:
    if not isinstance(value, Iterable):
        raise CierzoError(f"stop must be a text or a list of texts, not {value!r}")
    return (value,) if isinstance(value, str) else tuple(value)


def _number(params: SamplingParams, name: str, low: float, high: float, *, above: bool = False) -> None:
    value = getattr(params, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and low <= value <= high and not (above and value == low):
        return
    raise CierzoError(f"{name} must be {'above' if above else 'at least'} {low} and at most {high}, not {value!r}")


def _integer(params: SamplingParams, name: str, low: int, high: int, *, optional: bool = False) -> None:
    value = getattr(params, name)
    if optional and value is None:
        return
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return
    raise CierzoError(f"{name} must be a whole number from {low} to {high}{' or None' * optional}, not {value!r}")


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability (natural) under the model, and those of the best tokens at its place, best first.

    With `SamplingParams.logprob_token_ids`, those of these tokens, in their order.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens, and seconds since the request was added: to the first token, and to the last.

    `cached_tokens` of the prompt were not computed, since blocks of an earlier text held them.
    """

    prompt_tokens: int
    completion_tokens: int
    time_to_first_token: float
    seconds: float
    cached_tokens: int = 0


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of the answer's tool call number `index`: the first has `id` and `name`, all a part of the JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class ToolCall:
    """A function that the model asks for; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. `text` may lag behind `token_ids` while half a character or a stop text is held back.

    The last one has a `finish_reason` (an end token or a `stop_text`, the length, a cancel, or an `error`) and `usage`.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    stop_text: str | None = None
    error: str | None = None

    @classmethod
    def joined(cls, pieces: Sequence["Delta"]) -> "Delta":
        """Pieces that follow each other, at least one, as one; only the last may be the end."""
        if len(pieces) == 1:
            return pieces[0]
        return replace(
            pieces[-1],
            text="".join(p.text for p in pieces),
            token_ids=tuple(t for p in pieces for t in p.token_ids),
            logprobs=tuple(t for p in pieces for t in p.logprobs),
            tool_calls=tuple(d for p in pieces for d in p.tool_calls),
        )


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> "Completion":
        """The pieces put together; the last one must be among them.

        Raises:
            EngineError: the answer ended by one.
        """
        whole = Delta.joined(list(deltas))
        assert whole.finish_reason is not None, "the last piece is missing"
        assert whole.usage is not None
        if whole.error is not None:
            raise EngineError(whole.error)
        calls = _whole_calls(whole.tool_calls)
        return cls(whole.text, whole.token_ids, whole.finish_reason, whole.usage, whole.logprobs, calls)


def _whole_calls(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(ToolCall(delta.id or "", delta.name or "", ""))
        calls[delta.index] = replace(calls[delta.index], arguments=calls[delta.index].arguments + delta.arguments)
    return tuple(calls)
