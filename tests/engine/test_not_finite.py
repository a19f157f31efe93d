"""Numbers that are none end the sequence that they belong to, whatever is asked, and no other one."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cierzo import ops
from cierzo.engine import Engine, SamplingParams
from cierzo.engine import Sequence as EngineSequence
from cierzo.engine.sampler import token_logprobs
from cierzo.errors import NOT_FINITE, EngineError
from cierzo.model import MoeConfig, Transformer
from cierzo.ops import Draw, Format, machine, reference
from support.books import all_free, check_books
from support.models import ByteTokenizer, packed_model, queue, tiny_config, tiny_model

POISON = 200
GOOD, BAD = [(7 * n) % 190 for n in range(40)], [(5 * n) % 190 for n in range(20)] + [POISON] + [1, 2, 3]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
ASKED: dict[str, tuple[SamplingParams, dict[str, Any]]] = {
    "answer": (GREEDY, {}),
    "drawn": (SamplingParams(temperature=1.0, seed=1, max_tokens=6, ignore_eos=True, top_p=0.9), {}),
    "logprobs": (SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=3), {}),
    "score": (SamplingParams(logprobs=2), {"task": "score"}),
    "last scores": (SamplingParams(logprobs=0), {"task": "score", "first_scored": 22}),
    "mean": (SamplingParams(), {"task": "embed"}),
    "last": (SamplingParams(), {"task": "embed", "last_hidden": True}),
}
MODELS: dict[str, Callable[[], Transformer]] = {
    "dense": lambda: tiny_model(tiny_config()),
    "window": lambda: tiny_model(tiny_config(sliding_window=9)),
    "mixture": lambda: tiny_model(tiny_config(moe=MoeConfig(4, 2))),
    "packed": lambda: packed_model(tiny_config(dim=64, hidden_dim=64), Format.Q4T),
    "packed mixture": lambda: packed_model(tiny_config(dim=64, hidden_dim=64, moe=MoeConfig(4, 2)), Format.Q8),
}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the token POISON become NaN, in the residual stream, in keys and in values."""
    embed = ops.embed

    def run(tokens: Tensor, weight: Any) -> Tensor:
        rows = embed(tokens, weight).clone()
        rows[tokens == POISON] = torch.nan
        return rows

    monkeypatch.setattr(ops, "embed", run)


def made(name: str, **options: Any) -> Engine:
    if name.startswith("packed") and machine().kernels is None:
        pytest.skip("no kernels")
    settings: dict[str, Any] = {"max_seq_len": 64, "cache_tokens": 128, "block_size": 16}
    return Engine(MODELS[name](), ByteTokenizer(), **(settings | options))


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()
        check_books(engine)
    assert all_free(engine)


def result(sequence: EngineSequence) -> list[float]:
    assert sequence.finish_reason == "length", sequence.error
    if sequence.task == "embed":
        return sequence.embedding().tolist()
    said = [one for delta in sequence.deltas for one in delta.logprobs]
    return [*sequence.ids, *(one.logprob for one in (*said, *sequence.prompt_logprobs))]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("model", MODELS)
def test_one_rule_for_everything_that_is_asked(model: str, asked: str) -> None:
    """Alone, beside others in the same steps, and for those who get the blocks that held NaN."""
    params, options = ASKED[asked]
    clean = made(model)
    alone = queue(clean, GOOD, params, **options)
    finish(clean)
    engine = made(model)
    for _ in range(2):
        good, bad = queue(engine, GOOD, params, **options), queue(engine, BAD, params, **options)
        finish(engine)
        assert (bad.finish_reason, bad.error) == ("error", NOT_FINITE)
        assert result(good) == pytest.approx(result(alone), abs=1e-5)
    assert engine.failure is None
    later = queue(engine, [3, *GOOD], params, **options)  # no prefix of what is in the cache
    finish(engine)
    assert all(math.isfinite(value) for value in result(later))


@pytest.mark.usefixtures("poison")
def test_an_embedding_of_several_chunks_and_a_score_before_the_fault() -> None:
    """The fault is told in whichever chunk it is; a text whose scored part lies before it has none."""
    engine = made("dense", chunk_size=8)
    for last in (False, True):
        bad = queue(engine, BAD, SamplingParams(), task="embed", last_hidden=last)
        finish(engine)
        assert bad.error == NOT_FINITE
    fine = queue(engine, BAD[:21], SamplingParams(), task="score")  # the poison's own score comes from the text before
    finish(engine)
    assert result(fine)
    assert len(fine.prompt_logprobs) == 20


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_log_probability_leaves_that_is_not_finite(bad: float) -> None:
    scores = torch.zeros(2, 9)
    assert len(token_logprobs(scores, [1, 2], 9)) == 2
    scores[1, 4] = bad
    with pytest.raises(EngineError, match="no numbers"):
        token_logprobs(scores, [4, 4], 0)
    with pytest.raises(EngineError, match="no numbers"):
        token_logprobs(scores, [1, 2], 9)
    with pytest.raises(EngineError, match="no numbers"):
        token_logprobs(scores, [1, 2], 2, [4, 5])


def test_nan_where_a_grammar_allows_nothing_is_seen_too() -> None:
    scores = torch.arange(16.0)
    scores[3] = torch.nan
    allowed = torch.tensor([0b11110000, 0xFF], dtype=torch.uint8)
    for run in (ops.sample, reference.sample):
        assert run([Draw(scores, 0.0, 0, 1.0, 0.0, 0.5, allowed)]) == [-1]
