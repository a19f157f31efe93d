"""The question stands after the conversation's own tokens, is short, and its answer is read from probabilities."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cierzo import AsyncLLM, LoadOptions, SamplingParams, Tokenizer, load_engine
from cierzo.errors import CierzoError
from cierzo.guard import Policy
from cierzo.guard.calibrate import fitted
from cierzo.guard.judge import Judge
from cierzo.guard.metrics import auc, figures
from cierzo.guard.policy import Platt, Reflection
from cierzo.tokens.mistral import MistralTokenizer
from support.models import ByteTokenizer

STANDARD = Policy.load("standard").reflection
assert STANDARD is not None
TALK = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine."}]


class Scripted:
    """A model that gives these log-probabilities and keeps what it was asked."""

    name = "scripted"

    def __init__(self, tokenizer: Tokenizer, *logprobs: float) -> None:
        self.tokenizer, self.logprobs = tokenizer, list(logprobs)
        self.asked: list[tuple[list[int], list[int]]] = []

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int], *, cache_salt: str = "") -> list[float]:
        self.asked.append((prompt, list(tokens)))
        return self.logprobs


def _reflection(**changes: object) -> Reflection:
    return Reflection.model_validate({"question": "Fine? A or B", "answers": ["bad", "worse"], **changes})


def test_the_share_of_the_first_letter_is_the_verdict() -> None:
    model = Scripted(ByteTokenizer(), math.log(0.2), math.log(0.1), math.log(0.3))
    opinion = asyncio.run(Judge(model, _reflection()).opinion([256, 65], chat=False))
    assert opinion.unacceptable == pytest.approx(0.4 / 0.6)
    assert opinion.reason == "worse"
    prompt, letters = model.asked[0]
    assert prompt == [256, 65, *b"\n\nFine? A or B\n"]
    assert letters == list(b"ABC")


def test_it_is_calibrated_by_the_models_name() -> None:
    model = Scripted(ByteTokenizer(), math.log(0.5), math.log(0.25), math.log(0.25))
    for name, expected in (("scripted", 1 / (1 + math.exp(-3))), ("another", 0.5)):
        reflection = _reflection(calibration={name: Platt(slope=2.0, intercept=3.0)})
        opinion = asyncio.run(Judge(model, reflection).opinion([65], chat=False))
        assert opinion.unacceptable == pytest.approx(expected)


def test_scores_that_are_no_numbers_are_an_error() -> None:
    model = Scripted(ByteTokenizer(), math.nan, math.nan, math.nan)
    with pytest.raises(CierzoError, match="no numbers"):
        asyncio.run(Judge(model, _reflection()).opinion([65], chat=False))


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.model.v1",
        "mistral_instruct_tokenizer_240216.model.v2",
        "mistral_instruct_tokenizer_240323.model.v3",
        "mistral_instruct_tokenizer_241114.model.v7",
    ],
)
def test_the_question_follows_the_cached_tokens_in_mistrals_templates(name: str) -> None:
    """Prompt, answer and question are what the template writes for the three as turns, and the question is short."""
    tokenizer = MistralTokenizer(Path(mistral_common.__file__).parent / "data" / name, instruct=True)
    model = Scripted(tokenizer, 0.0, -1.0, -1.0, -1.0)
    assert STANDARD is not None
    before = tokenizer.encode_chat(TALK[:1])
    whole = tokenizer.encode_chat([*TALK, {"role": "user", "content": STANDARD.question}])
    assert whole[: len(before)] == before
    answer = tokenizer.encode("Fine.")
    asyncio.run(Judge(model, STANDARD).opinion([*before, *answer], chat=True))
    [(asked, letters)] = model.asked
    assert asked == whole
    assert len(asked) - len(before) - len(answer) <= 80
    assert len(set(letters)) == 4
    assert [tokenizer.token_bytes(letter).strip() for letter in letters] == [b"A", b"B", b"C", b"D"]


def test_it_costs_few_tokens_on_the_default_model(default_gguf: Path) -> None:
    """Its probabilities are those of scoring the whole text, and the conversation comes from the cache."""
    assert STANDARD is not None
    reflection = STANDARD.model_copy(update={"calibration": {}})
    talk = [{"role": "user", "content": "Tell me about the river Ebro and its delta. " * 12}]

    async def run() -> tuple[int, float, float]:
        llm = AsyncLLM(await asyncio.to_thread(load_engine, default_gguf, LoadOptions(cache_tokens=4096)))
        try:
            ids = await llm.encode_chat(talk)
            async for _ in await llm.answer(ids, SamplingParams(max_tokens=1, temperature=0)):
                pass
            before = llm.metrics.prompt_tokens - llm.metrics.cached_tokens
            judge = Judge(llm, reflection)
            opinion = await judge.opinion(ids, chat=True)
            new = llm.metrics.prompt_tokens - llm.metrics.cached_tokens - before
            question = {"role": "user", "content": reflection.question}
            whole = await llm.encode_chat([*talk, {"role": "assistant", "content": ""}, question])
            letters = [llm.tokenizer.encode(letter)[-1] for letter in "ABCD"]
            scores = [
                (await llm.score([*whole, letter], first=len(whole)))[0].logprob for letter in letters
            ]  # another path: as tokens of the prompt
            shares = np.exp(scores)
            return new, opinion.unacceptable, float(1 - shares[0] / shares.sum())
        finally:
            await llm.close(drain=False)

    new, opinion, expected = asyncio.run(run())
    assert new <= 80 + 16  # the question, and the part of the last block that was not full
    assert opinion == pytest.approx(expected, abs=1e-4)


def test_calibration_is_logistic_regression() -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=400)
    y = random.random(400) < 1 / (1 + np.exp(-(1.5 * x - 0.7)))
    ours = fitted(x.tolist(), y.tolist())
    theirs = LogisticRegression(C=1e9).fit(x[:, None], y)
    assert ours.slope == pytest.approx(theirs.coef_[0, 0], rel=0.05)
    assert ours.intercept == pytest.approx(theirs.intercept_[0], rel=0.05)
    apart = fitted([-1.0, -2.0, 1.0, 2.0], [False, False, True, True])  # separable: stays finite
    assert 0 < apart.slope < 100


def test_figures_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    random = np.random.default_rng(0)
    labels = random.random(300) < 0.3
    scores = np.round(random.random(300) + 0.4 * labels, 1)  # with ties
    flags = scores >= 0.7
    found = figures(labels.tolist(), scores.tolist(), flags.tolist())
    expected = {
        "precision": metrics.precision_score(labels, flags),
        "recall": metrics.recall_score(labels, flags),
        "f1": metrics.f1_score(labels, flags),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, flags),
        "auc": metrics.roc_auc_score(labels, scores),
        "false_positive_rate": flags[~labels].mean(),
    }
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(expected[name]), name
        assert low < value < high
    assert math.isnan(auc([True, True], [0.1, 0.2]))
