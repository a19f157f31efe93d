"""The sampler against exact probabilities, and reproducible answers."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cierzo.engine import Engine, SamplingParams, Sequence
from cierzo.engine.sampler import adjusted, draw_of, token_logprobs
from cierzo.errors import CierzoError
from cierzo.ops import Draw, reference, sample
from cierzo.ops.reference import distribution
from support.models import queue, recomputed_logits, tiny_config, tiny_engine

SCORES = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -4.0, 1.0])
DRAWS = 4000
CRITICAL = 35.0
"""Chi-square of 7 degrees of freedom passes this once in 100,000 times; the seeds are fixed."""


def expected(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution, written again as plainly as can be."""
    p = {i: float(x) for i, x in enumerate((scores.double() / params.temperature).softmax(-1))}

    def normed(kept: dict[int, float]) -> dict[int, float]:
        return {i: x / sum(kept.values()) for i, x in kept.items()}

    best_first = sorted(p, key=lambda i: -p[i])
    if params.top_k:
        p = normed({i: p[i] for i in best_first[: params.top_k]})
    if params.top_p < 1:
        kept: list[int] = []
        for i in (i for i in best_first if i in p):
            kept.append(i)
            if sum(p[j] for j in kept) >= params.top_p:
                break
        p = normed({i: p[i] for i in kept})
    if params.min_p:
        p = normed({i: x for i, x in p.items() if x >= params.min_p * max(p.values())})
    return torch.tensor([p.get(i, 0.0) for i in range(len(scores))], dtype=torch.float64)


def counted(params: SamplingParams, ids: list[int] | None = None, n_prompt: int = 0) -> Counter[int]:
    """How often tokens come."""
    generator = random.Random(1)
    return Counter(sample([draw_of(SCORES, params, ids or [], n_prompt, generator) for _ in range(DRAWS)]))


EACH: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"temperature": 1e-46},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.0, "top_k": 100},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.5, "top_k": 5, "top_p": 0.8, "min_p": 0.1},
]


@pytest.mark.parametrize("settings", EACH, ids=str)
def test_tokens_come_as_often_as_they_should(settings: dict[str, Any]) -> None:
    params = SamplingParams(**settings)
    exact = expected(SCORES, params)
    torch.testing.assert_close(distribution(draw_of(SCORES, params, [], 0, random.Random(1))), exact)
    counts = counted(params)
    assert set(counts) <= set(exact.nonzero().flatten().tolist())
    chi_square = sum((counts[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in enumerate(exact.tolist()) if p)
    assert chi_square < CRITICAL


PENALISED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"presence_penalty": 0.75},
    {"frequency_penalty": 0.5},
    {"logit_bias": {3: 2.0, 0: -1.0}},
    {
        "temperature": 0.8, "top_k": 6, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2,
        "presence_penalty": 0.3, "frequency_penalty": 0.2, "logit_bias": {5: 1.5},
    },
]  # fmt: skip


@pytest.mark.parametrize("settings", PENALISED, ids=str)
def test_penalties_and_bias_change_how_often_tokens_come(settings: dict[str, Any]) -> None:
    """Alone, and all parameters together, against scores that are changed here token by token."""
    params = SamplingParams(**{"temperature": 1.0} | settings)
    ids, n_prompt = [0, 4, 1, 1, 2], 2
    plain = [score + params.logit_bias.get(i, 0.0) for i, score in enumerate(SCORES.tolist())]
    for i in set(ids):
        plain[i] = plain[i] / params.repetition_penalty if plain[i] > 0 else plain[i] * params.repetition_penalty
    for i in ids[n_prompt:]:
        plain[i] -= params.frequency_penalty
    for i in set(ids[n_prompt:]):
        plain[i] -= params.presence_penalty
    exact = expected(torch.tensor(plain), params)
    counts = counted(params, ids, n_prompt)
    assert set(counts) <= set(exact.nonzero().flatten().tolist())
    assert sum((counts[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in enumerate(exact.tolist()) if p) < CRITICAL


def test_the_statistical_test_would_notice_a_small_bias() -> None:
    counts = counted(SamplingParams(temperature=0.85))
    exact = expected(SCORES, SamplingParams(temperature=1.0))
    assert sum((counts[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in enumerate(exact.tolist())) > CRITICAL


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.floats(0.05, 5),
    st.integers(0, 12),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_any_settings_leave_a_distribution_with_a_best_token(
    scores: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    given_scores = torch.tensor(scores)
    probabilities = distribution(draw_of(given_scores, params, [], 0, random.Random(1)))
    assert abs(probabilities.sum().item() - 1) < 1e-9
    # Or one so close to the best that their probabilities are the same number.
    assert given_scores[probabilities > 0].max() > given_scores.max() - 1e-5
    assert (probabilities > 0).sum() <= (top_k or len(scores))


@settings(max_examples=300)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    st.integers(0, 40),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.binary(min_size=5, max_size=5),
)
def test_the_kernel_chooses_what_the_reference_does(
    scores: list[float], temperature: float, top_k: int, top_p: float, min_p: float, number: float, mask: bytes | None
) -> None:
    allowed = None if mask is None else torch.tensor(list(mask), dtype=torch.uint8)
    draw = Draw(torch.tensor(scores), temperature, top_k, top_p, min_p, number, allowed)
    [token] = sample([draw])
    # Its weights are float32: a number at the edge between two tokens, or a token at a limit, may fall to either side.
    near = [
        draw._replace(
            draw=min(max(number + shift, 0.0), 1.0),
            top_p=min(1.0, top_p * (1 + other)),
            min_p=min(1.0, min_p * (1 + other)),
        )
        for shift in (0.0, -1e-5, 1e-5)
        for other in (0.0, -1e-5, 1e-5)
    ]
    chosen = set(reference.sample(near if temperature else [draw]))
    assert token in chosen or scores[token] in [scores[t] for t in chosen if t >= 0]


def test_no_number_is_told() -> None:
    draw = Draw(torch.full((70,), torch.nan), 1.0, 0, 1.0, 0.0, 0.5)
    some = torch.where(torch.arange(70) % 3 == 0, torch.nan, torch.arange(70.0))
    partly = [Draw(some, temperature, 0, 1.0, 0.0, 0.5) for temperature in (0.0, 1.0)]
    nothing = Draw(SCORES, 0.0, 0, 1.0, 0.0, 0.5, torch.zeros(1, dtype=torch.uint8))
    for run in (sample, reference.sample):
        assert run([draw]) == [-1]
        assert run(partly) == [-1, -1]
        assert run([nothing]) == [-1]


def test_penalties_and_bias() -> None:
    scores = torch.tensor([2.0, -2.0, 1.0, 0.0, 3.0])
    ids, n_prompt = [0, 1, 2, 2], 2  # 0 and 1 are in the prompt, 2 twice in the answer

    def after(**settings: Any) -> list[float]:
        return [round(x, 4) for x in adjusted(scores, SamplingParams(**settings), ids, n_prompt).tolist()]

    assert after(repetition_penalty=2.0) == [1.0, -4.0, 0.5, 0.0, 3.0]
    assert after(presence_penalty=0.5) == [2.0, -2.0, 0.5, 0.0, 3.0]
    assert after(frequency_penalty=0.5) == [2.0, -2.0, 0.0, 0.0, 3.0]
    assert after(logit_bias={3: 1.5, 4: -100}) == [2.0, -2.0, 1.0, 1.5, -97.0]
    assert after(logit_bias={2: 1}, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.25) == [
        1.0, -4.0, 0.25, 0.0, 3.0,
    ]  # fmt: skip
    assert scores.tolist() == [2.0, -2.0, 1.0, 0.0, 3.0]


def test_logprobs_are_the_models_own() -> None:
    got = token_logprobs(SCORES[None], [3], 2)[0]
    exact = SCORES.log_softmax(-1)
    assert got.token_id == 3
    assert got.logprob == pytest.approx(exact[3].item())
    assert [t for t, _ in got.top] == [0, 1]
    assert [p for _, p in got.top] == pytest.approx([exact[0].item(), exact[1].item()])


def run(engine: Engine, *sequences: Sequence) -> list[list[int]]:
    while any(s.finish_reason is None for s in sequences):
        engine.step()
    return [s.ids[s.n_prompt :] for s in sequences]


@settings(deadline=None, max_examples=25, derandomize=True)  # never new ones: a draw may fall on the edge of rounding
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 2**63 - 1)), min_size=1, max_size=5))
def test_the_same_seed_gives_the_same_answer_in_any_company(requests: list[tuple[bytes, int]]) -> None:
    engine = tiny_engine(tiny_config(sliding_window=8, max_seq_len=100), chunk_size=16, cache_tokens=500)
    params = SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.1, max_tokens=10, ignore_eos=True)
    alone = [run(engine, queue(engine, list(prompt), replace(params, seed=seed)))[0] for prompt, seed in requests]
    together = run(engine, *[queue(engine, list(prompt), replace(params, seed=seed)) for prompt, seed in requests])
    assert together == alone


def test_without_a_seed_answers_differ() -> None:
    engine = tiny_engine(tiny_config(max_seq_len=100), cache_tokens=500)
    params = SamplingParams(temperature=2.0, max_tokens=20, ignore_eos=True)
    answers = run(engine, *[queue(engine, [1, 2, 3], params) for _ in range(4)])
    assert len({tuple(a) for a in answers}) > 1


def test_stop_tokens_end_the_answer_and_have_no_text() -> None:
    engine = tiny_engine(tiny_config(max_seq_len=100))
    for stop, params in (
        (257, SamplingParams(logit_bias={257: 1000.0}, temperature=0)),
        (65, SamplingParams(logit_bias={65: 1000.0}, temperature=0, stop_token_ids=(65,))),
    ):
        sequence = queue(engine, [1, 2], params)
        assert run(engine, sequence) == [[stop]]
        assert sequence.finish_reason == "stop"
        assert "".join(d.text for d in sequence.deltas) == ""
    forced = SamplingParams(logit_bias={257: 1000.0}, temperature=0, ignore_eos=True, max_tokens=3)
    sequence = queue(engine, [1, 2], forced)
    assert run(engine, sequence) == [[257] * 3]
    assert sequence.finish_reason == "length"


def test_stop_texts_end_the_answer_before_them() -> None:
    engine = tiny_engine(tiny_config(max_seq_len=100))
    sequence = queue(engine, [1], SamplingParams(logit_bias={ord("a"): 1000.0}, temperature=0, stop=("aaaa", "zz")))
    run(engine, sequence)
    assert sequence.finish_reason == "stop"
    assert "".join(d.text for d in sequence.deltas) == ""
    assert sequence.ids[1:] == [ord("a")] * 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1"),
        ({"seed": -1}, "seed"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop": 5}, "stop must be a text or a list of texts"),
        ({"logit_bias": {1: float("inf")}}, "from -1e6 to 1e6"),
        ({"logit_bias": {1: 1e39}}, "from -1e6 to 1e6"),
        ({"logprobs": 101}, "logprobs"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CierzoError, match=says):
        SamplingParams(**settings)


def test_impossible_requests_are_refused_with_the_numbers() -> None:
    engine = tiny_engine(tiny_config(max_seq_len=50), cache_tokens=32, block_size=16)
    with pytest.raises(CierzoError, match="prompt is empty"):
        queue(engine, [], SamplingParams())
    with pytest.raises(CierzoError, match="token id 260 is outside the vocabulary of 260"):
        queue(engine, [260], SamplingParams())
    with pytest.raises(CierzoError, match="whole numbers only"):
        queue(engine, [1.0], SamplingParams())  # type: ignore[list-item]
    with pytest.raises(CierzoError, match="priority must be a whole number"):
        queue(engine, [1], SamplingParams(), priority="high")
    with pytest.raises(CierzoError, match="token id 999"):
        queue(engine, [1], SamplingParams(logit_bias={999: 1.0}))
    with pytest.raises(CierzoError, match="51 prompt tokens and an answer of at least 1 pass the limit of 50"):
        queue(engine, [1] * 51, SamplingParams())
    with pytest.raises(CierzoError, match="40 prompt tokens and an answer of 11 pass the limit of 50"):
        queue(engine, [1] * 40, SamplingParams(max_tokens=11))
    with pytest.raises(CierzoError, match="need a cache of 48 tokens, and it holds 32"):
        queue(engine, [1] * 30, SamplingParams(max_tokens=10))


def test_the_whole_limit_can_be_used() -> None:
    engine = tiny_engine(tiny_config(max_seq_len=50))
    sequence = queue(engine, [1] * 49, SamplingParams(ignore_eos=True))
    assert len(run(engine, sequence)[0]) == 1
    assert sequence.finish_reason == "length"
    scored = queue(engine, [1] * 50, SamplingParams(), task="score")
    run(engine, scored)
    assert len(scored.prompt_logprobs) == 49


def test_cancelling_frees_the_blocks() -> None:
    engine = tiny_engine(tiny_config(max_seq_len=200), block_size=4, chunk_size=8)
    sequences = [queue(engine, [1] * 60, SamplingParams(max_tokens=5)) for _ in range(5)]
    for _ in range(3):
        engine.step()
    for sequence in sequences:
        engine.cancel(sequence)
        engine.cancel(sequence)
        assert [d.finish_reason for d in sequence.deltas] == ["cancelled"]
    assert engine.pools[0].free == engine.pools[0].size
    engine.step()  # nothing to do, and no harm


def test_scores_are_the_models_log_probabilities() -> None:
    engine = tiny_engine(tiny_config(max_seq_len=100), chunk_size=7)
    prompt = list(b"the quick brown fox")
    sequence = queue(engine, prompt, SamplingParams(logprobs=3), task="score")
    run(engine, sequence)
    exact = recomputed_logits(engine.model, prompt).log_softmax(-1)
    for place, (token, got) in enumerate(zip(prompt[1:], sequence.prompt_logprobs, strict=True)):
        assert got.token_id == token
        assert got.logprob == pytest.approx(exact[place, token].item(), abs=1e-4)
        assert [p for _, p in got.top] == pytest.approx(exact[place].topk(3).values.tolist(), abs=1e-4)
