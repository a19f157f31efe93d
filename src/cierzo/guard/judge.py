"""The second stage: the model judges a conversation that it already has in its cache.

The question follows the conversation's own tokens, so only the question's are computed. The verdict is the share of the
letter A (acceptable) among the probabilities of the letters that may come next: one pass, no prose to interpret.
(Self-reflection of arXiv:2310.06825, section 5.2, whose answer was read as text.)
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cierzo.errors import CierzoError
from cierzo.guard.calibrate import logistic
from cierzo.guard.policy import Platt, Reflection

if TYPE_CHECKING:
    from cierzo.tokens import Message, Tokenizer  # with which PyTorch would come

Ask = Callable[[Sequence[int]], Awaitable["Opinion"]]
"""Asks the model about a conversation with these token ids of an answer; none yet is about the question."""


class Model(Protocol):
    """What is needed of an `AsyncLLM`."""

    name: str
    tokenizer: Tokenizer

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int], *, cache_salt: str = "") -> list[float]: ...


@dataclass(frozen=True)
class Opinion:
    """What the model thinks of a text: how likely it is not acceptable, calibrated, and the likeliest reason."""

    unacceptable: float
    reason: str


class Judge:
    """Asks one model by one policy.

    Raises:
        CierzoError: the model's letters are no single tokens, or its template has no place for the question.
    """

    def __init__(self, model: Model, reflection: Reflection) -> None:
        self._model, self._reflection = model, reflection
        letters = [chr(ord("A") + number) for number in range(len(reflection.answers) + 1)]
        ids = [model.tokenizer.encode(letter) for letter in letters]
        self._letters = [each[-1] for each in ids if each]
        if len(set(self._letters)) < len(letters):
            raise CierzoError(f"{model.name} cannot judge: its letters are not tokens of their own")
        self._after_chat: list[int] | None = None

    async def opinion(self, ids: Sequence[int], *, chat: bool, cache_salt: str = "") -> Opinion:
        """About a conversation of these token ids, ready for an answer or with (a part of) one.

        Args:
            chat: by the model's template; a plain text else.

        Raises:
            CierzoError: it cannot be asked, for example because the context is full.
        """
        tail = self._chat_tail() if chat else self._model.tokenizer.encode(f"\n\n{self._reflection.question}\n")
        logprobs = await self._model.next_logprobs([*ids, *tail], self._letters, cache_salt=cache_salt)
        return self._read(logprobs)

    def _read(self, logprobs: Sequence[float]) -> Opinion:
        most = max(logprobs)
        if not math.isfinite(most):
            raise CierzoError("the model's scores of the verdict are no numbers")
        shares = [math.exp(value - most) for value in logprobs]
        bad = sum(shares[1:])
        logit = math.log(max(bad, 1e-30)) - math.log(max(shares[0], 1e-30))
        worst = max(range(1, len(shares)), key=shares.__getitem__)
        fitted = self._reflection.calibration.get(self._model.name, Platt(slope=1.0, intercept=0.0))
        return Opinion(logistic(fitted.slope * logit + fitted.intercept), self._reflection.answers[worst - 1])

    def _chat_tail(self) -> list[int]:
        """What the template writes after an answer when the question comes next: equal after any two answers."""
        if self._after_chat is None:
            one, two = (self._chat(answer) for answer in ("Yes", "No"))
            length = next(n for n in range(min(len(one), len(two)) + 1) if one[-n - 1 :] != two[-n - 1 :])
            if length < len(self._model.tokenizer.encode(self._reflection.question)):
                raise CierzoError(f"{self._model.name} cannot judge: its template has no place for a further question")
            self._after_chat = one[-length:]
        return self._after_chat

    def _chat(self, answer: str) -> list[int]:
        turns: list[Message] = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": self._reflection.question},
        ]
        return self._model.tokenizer.encode_chat(turns)
