"""Real weights on the native path: mixed requests together, through a small pool, say what each says alone."""

from pathlib import Path

import pytest

from cierzo import SamplingParams, Structure
from cierzo.engine import Engine
from cierzo.engine import Sequence as EngineSequence
from cierzo.loading import LoadOptions, load_engine
from cierzo.ops import machine
from support.books import all_free, check_books

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
}
STORY = "The wind came down the valley in the evening and the people closed their windows one after the other. "


def requests(engine: Engine, longest: int) -> list[EngineSequence]:
    """32 of them, from 1 token to `longest`, a third with a common beginning."""
    encode = engine.tokenizer.encode
    story = encode(STORY * (longest // 20 + 2))
    made = []
    for n in range(32):
        length = max(1, int(longest * (n / 31) ** 8))
        prompt = story[:length] if n % 3 else encode(f"{n}. ") + story[n : n + length]
        structure = None
        if n % 8 == 5:
            prompt = [*prompt, *encode("\nInvent a person, as JSON: ")]
            structure = Structure("json_schema", PERSON)
        elif n % 8 == 7:
            structure = Structure("regex", "( [a-z]+){3,6}\\.")
        params = SamplingParams(
            temperature=[0.0, 0.8, 1.2, 0.0][n % 4],
            top_p=[1.0, 0.9][n % 2],
            top_k=[0, 40, 0][n % 3],
            frequency_penalty=[0.0, 0.0, 0.3][n % 3],
            seed=n,
            max_tokens=4 + n,
            logprobs=n % 3,
            structure=structure,
        )
        made.append(engine.prepare(prompt, params, priority=n % 2))
    return made


def answer(sequence: EngineSequence) -> list[object]:
    return [(d.text, d.token_ids, d.logprobs) for d in sequence.deltas]


def compare(gguf: Path, longest: int) -> None:
    if machine().kernels is None:
        pytest.skip("without native kernels only tolerances are promised")
    engine = load_engine(gguf, LoadOptions(cache_tokens=longest + 300, chunk_size=256)).engine
    alone = []
    for sequence in requests(engine, longest):
        engine.add(sequence)
        while engine.busy:
            engine.step()
        alone.append(answer(sequence))
    small = load_engine(gguf, LoadOptions(cache_tokens=longest + 100, chunk_size=96)).engine
    small.scheduler.budget.chunk_size = 96
    together = requests(small, longest)
    pending, steps, cancelled = list(together), 0, set()
    while pending or small.busy:
        for sequence in pending[:2]:
            small.add(sequence)
        del pending[:2]
        small.step()
        check_books(small)
        steps += 1
        for number in (9, 20, 31):
            if together[number].answered == 3 and together[number].finish_reason is None:
                small.cancel(together[number])
                cancelled.add(number)
    for number, sequence in enumerate(together):
        got = answer(sequence)
        if number in cancelled:
            assert got[:-1] == alone[number][: len(got) - 1], number
        else:
            assert got == alone[number], number
    assert len(cancelled) == 3
    assert small.metrics.preemptions > 0
    assert small.metrics.cached_tokens > 0
    assert all_free(small)


def test_mixed_requests_say_together_what_they_say_alone(default_gguf: Path) -> None:
    compare(default_gguf, 300)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_mixed_requests_of_up_to_six_thousand_tokens(default_gguf: Path) -> None:
    compare(default_gguf, 6000)
