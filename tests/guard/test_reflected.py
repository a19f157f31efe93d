"""A model's self-reflection is calibrated on one half of the texts and measured on the other."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from cierzo.guard import Policy, reflected
from cierzo.guard.data import Labelled
from cierzo.guard.policy import Platt
from support.models import ByteTokenizer

STANDARD = Policy.load("standard").reflection
assert STANDARD is not None
REFLECTION = STANDARD


class Scripted:
    """Answers by a word of the text, so sure that it must be calibrated; as a clever or a contrary model."""

    name = "scripted"
    tokenizer = ByteTokenizer()
    contrary = False
    asked: list[bytes]

    def __init__(self, engine: Any) -> None:
        type(self).asked = []

    async def encode_chat(self, messages: Any) -> list[int]:
        return self.tokenizer.encode_chat(messages)

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int], *, cache_salt: str = "") -> list[float]:
        text = bytes(token for token in prompt if token < 256)
        self.asked.append(text)
        bad = 0.99 if (b"poison" in text) != self.contrary else 0.6
        return [math.log(1 - bad), *[math.log(bad / 3)] * 3]

    async def close(self, *, drain: bool) -> None:
        return None


def measured(monkeypatch: pytest.MonkeyPatch, limit: int = 40) -> tuple[str, Platt, list[Any]]:
    monkeypatch.setattr(reflected, "AsyncLLM", Scripted)
    monkeypatch.setattr(reflected, "load_engine", lambda *given, **options: None)
    items = [Labelled(f"{'poison' if n % 2 else 'tea'} {n}", n % 2 == 1) for n in range(80)]
    items.append(Labelled("poison " * 100, True))
    return reflected.reflected("a model", REFLECTION, {"own": items}, limit, lambda done, total: None)


def test_a_model_that_flags_everything_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    name, platt, (row,) = measured(monkeypatch)
    assert name == "scripted"
    assert platt.slope > 0 > platt.intercept
    assert row.method == "scripted reflects"
    assert row.figures["auc"][0] == row.figures["balanced_accuracy"][0] == 1


def test_a_contrary_model_gets_a_falling_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "contrary", True)
    _, platt, (row,) = measured(monkeypatch)
    assert platt.slope < 0
    assert row.figures["balanced_accuracy"][0] == 1


def test_as_many_of_both_kinds_and_no_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, limit=20)
    assert len(Scripted.asked) == 20
    assert sum(b"poison" in text for text in Scripted.asked) == 10
    assert not any(b"poison poison" in text for text in Scripted.asked)
