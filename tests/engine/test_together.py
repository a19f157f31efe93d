"""Nobody's words depend on who else is talking: the same bits together as alone, and blocks that add up."""

from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cierzo.engine import Engine, SamplingParams, Structure
from cierzo.engine import Sequence as EngineSequence
from cierzo.ops import Format
from support.books import all_free, check_books
from support.models import ByteTokenizer, packed_model, queue, tiny_config

CONFIGS = {
    "full": tiny_config(max_seq_len=200),
    "sliding": tiny_config(max_seq_len=200, sliding_window=20, n_kv_heads=1),
    "mixed": tiny_config(max_seq_len=200, n_layers=3, sliding_window=(9, None, 30)),
}
STRUCTURES = [None, None, Structure("regex", "[a-f]{1,30}"), Structure("json_schema", {"type": "integer"})]


@dataclass(frozen=True)
class Asked:
    """A request of a schedule: added before step `step`, cancelled after `cancel` tokens if ever."""

    prompt: tuple[int, ...]
    params: SamplingParams
    step: int
    priority: int
    cancel: int | None
    salt: str


Answer = tuple[tuple[int, ...], tuple[float, ...]]


def answer(sequence: EngineSequence) -> Answer:
    deltas = list(sequence.deltas)
    tokens = tuple(t for d in deltas for t in d.token_ids)
    return tokens, tuple(p.logprob for d in deltas for p in d.logprobs)


@cache
def model(name: str) -> object:
    return packed_model(CONFIGS[name], Format.Q8)


def engine(name: str, **options: int) -> Engine:
    return Engine(model(name), ByteTokenizer(), max_seq_len=200, **options)  # type: ignore[arg-type]


_alone: dict[str, Answer] = {}


def alone(name: str, prompt: tuple[int, ...], params: SamplingParams) -> Answer:
    """What a request says in an engine of its own."""
    key = repr((name, prompt, params))
    if key not in _alone:
        own = engine(name, cache_tokens=400)
        sequence = queue(own, list(prompt), params)
        while sequence.finish_reason is None:
            own.step()
        _alone[key] = answer(sequence)
    return _alone[key]


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    prefix = draw(st.sampled_from([(), tuple(range(40)), tuple(range(64)), tuple(range(40)) + (7,) * 40]))
    own = tuple(draw(st.lists(st.integers(0, 255), min_size=1, max_size=20)))
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.0, 1.0])),
        seed=draw(st.integers(0, 3)),
        max_tokens=draw(st.integers(1, 40)),
        logprobs=draw(st.sampled_from([0, 2])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        structure=draw(st.sampled_from(STRUCTURES)),
    )
    return Asked(
        prefix + own,
        params,
        step=draw(st.integers(0, 30)),
        priority=draw(st.integers(0, 1)),
        cancel=draw(st.none() | st.integers(0, 10)),
        salt=draw(st.sampled_from(["", "", "other"])),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.lists(requests(), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(1, 48),
    st.integers(200, 320),
    st.integers(1, 12),
)
def test_any_schedule_gives_the_bits_of_each_alone(
    name: str, asked: list[Asked], block_size: int, chunk_size: int, cache_tokens: int, max_running: int
) -> None:
    together = engine(
        name, cache_tokens=cache_tokens, block_size=block_size, chunk_size=chunk_size, max_running=max_running
    )
    pending = sorted(asked, key=lambda one: one.step)
    added: list[tuple[Asked, EngineSequence]] = []
    step = 0
    while pending or together.busy:
        while pending and pending[0].step <= step:
            one = pending.pop(0)
            options = {"priority": one.priority, "cache_salt": one.salt}
            added.append((one, queue(together, list(one.prompt), one.params, **options)))
        before = sum(sequence.computed for _, sequence in added)
        together.step()
        check_books(together)
        assert before != sum(sequence.computed for _, sequence in added) or not together.busy, "nobody gets on"
        for one, sequence in added:
            if one.cancel is not None and sequence.answered >= one.cancel:
                together.cancel(sequence)
        check_books(together)
        step += 1
    assert all_free(together)
    for one, sequence in added:
        tokens, logprobs = answer(sequence)
        whole = alone(name, one.prompt, one.params)
        if sequence.finish_reason == "cancelled":
            assert (tokens, logprobs) == (whole[0][: len(tokens)], whole[1][: len(logprobs)])
        else:
            assert (tokens, logprobs) == whole


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_small_pool_forces_preemption_eviction_and_hits_and_nothing_changes(name: str) -> None:
    small = engine(name, cache_tokens=208, block_size=4, chunk_size=24, max_running=8)
    prefix = list(range(48))
    params = [SamplingParams(temperature=1, seed=n, max_tokens=60, logprobs=0, ignore_eos=True) for n in range(10)]
    prompts = [[*prefix, n] if n % 2 else [n] * 50 for n in range(10)]
    sequences = [queue(small, p, s, priority=n % 3) for n, (p, s) in enumerate(zip(prompts, params, strict=True))]
    named = steps = 0
    while small.busy:
        steps += 1
        if steps == 30:  # who matters more takes memory from those that run
            sequences.append(queue(small, [9] * 90, SamplingParams(temperature=0, logprobs=0), priority=-1))
            prompts.append([9] * 90)
            params.append(sequences[-1].params)
        small.step()
        check_books(small)
        named += sum(len(sequence.ids) // 4 for sequence in small.scheduler.running)
    assert small.metrics.preemptions > 0
    assert small.metrics.cached_tokens == sum(s.cached_tokens for s in sequences) >= 48
    assert small.metrics.prompt_tokens == sum(map(len, prompts)), "what is computed again was counted"
    assert named > small.pools[0].size, "no block was taken from its name"
    assert [answer(s) for s in sequences] == [alone(name, tuple(p), s) for p, s in zip(prompts, params, strict=True)]
    assert all_free(small)


def test_a_shared_beginning_is_computed_once_and_only_within_its_salt() -> None:
    own = engine("mixed", cache_tokens=400, block_size=4)
    prompt, params = list(range(50)), SamplingParams(temperature=0, max_tokens=3)

    def cached(**options: str) -> int:
        sequence = queue(own, prompt, params, **options)
        while sequence.finish_reason is None:
            own.step()
        return sequence.cached_tokens

    assert [cached(), cached(), cached(cache_salt="other"), cached(cache_salt="other")] == [0, 48, 0, 48]
    four = [queue(own, [*prompt, 99, n], params, cache_salt="at once") for n in range(4)]
    while own.busy:
        own.step()
    assert [s.cached_tokens for s in four] == [0, 48, 48, 48], "those that come together share too"


def test_tokens_of_a_prompt_are_counted_while_it_is_read() -> None:
    own = engine("full", cache_tokens=200, block_size=4, chunk_size=16)
    queue(own, list(range(40)), SamplingParams(max_tokens=1))
    counted = []
    while own.busy:
        own.step()
        counted.append(own.metrics.prompt_tokens)
    assert counted == [16, 32, 40]


def test_nobody_is_sent_away_for_a_newcomer_that_still_finds_no_room() -> None:
    own = engine("full", cache_tokens=160, block_size=4, chunk_size=64)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    equal, below = (queue(own, [n] * 60, params, priority=n) for n in (0, 1))
    own.step()
    assert len(own.scheduler.running) == 2
    newcomer = queue(own, [3] * 120, params, priority=0)
    own.step()
    assert own.metrics.preemptions == 0, "the place of the one below would not do"
    smaller = queue(own, [4] * 70, params, priority=-1)
    own.step()
    assert own.metrics.preemptions > 0
    while own.busy:
        own.step()
        check_books(own)
    assert {s.finish_reason for s in (equal, below, newcomer, smaller)} == {"length"}
