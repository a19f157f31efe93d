"""Requests that add no token: scores from a place on, and embeddings, with shared beginnings and preemption."""

import pytest
import torch
from torch import Tensor

from cierzo.engine import Engine, SamplingParams
from cierzo.errors import CierzoError
from cierzo.ops import PackedContext
from support.books import all_free, check_books
from support.models import queue, recomputed_logits, tiny_config, tiny_engine

TEXT = [(7 * n) % 250 for n in range(90)]


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()
        check_books(engine)
    assert all_free(engine)


def expected_scores(engine: Engine, ids: list[int], first: int) -> Tensor:
    logprobs = recomputed_logits(engine.model, ids).log_softmax(-1)
    return logprobs[torch.arange(first - 1, len(ids) - 1), torch.tensor(ids[first:])]


@pytest.mark.parametrize("window", [None, 12])
def test_scores_from_a_place_on_use_what_earlier_texts_computed(window: int | None) -> None:
    engine = tiny_engine(tiny_config(sliding_window=window), block_size=4, chunk_size=16)
    question, choices = TEXT[:50], [TEXT[50:53], [1, 2, 3, 4], [9]]
    sequences = []
    for choice in choices:
        sequences.append(queue(engine, question + choice, SamplingParams(), task="score", first_scored=50))
        finish(engine)
    for sequence, choice in zip(sequences, choices, strict=True):
        got = torch.tensor([p.logprob for p in sequence.prompt_logprobs])
        assert [p.token_id for p in sequence.prompt_logprobs] == choice
        torch.testing.assert_close(got, expected_scores(engine, question + choice, 50), atol=1e-4, rtol=0)
    assert [s.cached_tokens for s in sequences] == [0, 48, 48]


def test_scores_survive_preemption() -> None:
    engine = tiny_engine(tiny_config(), cache_tokens=100, block_size=4, chunk_size=8)
    scored = queue(engine, TEXT, SamplingParams(), task="score", priority=1)
    for _ in range(4):
        engine.step()
    already = len(scored.prompt_logprobs)
    assert 0 < already < 89
    queue(engine, TEXT[::-1], SamplingParams(max_tokens=2), priority=0)
    engine.step()
    assert scored.computed == 0, "preempted"
    finish(engine)
    got = torch.tensor([p.logprob for p in scored.prompt_logprobs])
    torch.testing.assert_close(got, expected_scores(engine, TEXT, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chunk_size", [7, 512])
def test_embeddings_are_pooled_hidden_states_of_length_one(last: bool, chunk_size: int) -> None:
    engine = tiny_engine(tiny_config(), block_size=4, chunk_size=chunk_size)
    again = [queue(engine, TEXT, SamplingParams(), task="embed", last_hidden=last) for _ in range(2)]
    finish(engine)
    with torch.inference_mode():
        hidden = engine.model.normed(engine.model.hidden(torch.tensor(TEXT), PackedContext([len(TEXT)])))
    pooled = hidden[-1] if last else hidden.mean(0)
    for sequence in again:
        torch.testing.assert_close(sequence.embedding(), pooled / pooled.norm(), atol=1e-5, rtol=0)
        assert sequence.finish_reason == "length"
    assert again[1].cached_tokens == (88 if last else 0)


def test_a_place_outside_the_text_is_refused() -> None:
    engine = tiny_engine(tiny_config())
    for first in (0, 4):
        with pytest.raises(CierzoError, match="from 1 to 3"):
            engine.prepare([1, 2, 3], SamplingParams(), task="score", first_scored=first)
