"""Thousands of short requests whose owners often leave: nothing is held back and memory stays flat."""

import asyncio
import gc
import random
from pathlib import Path

import pytest

from cierzo import AsyncLLM, SamplingParams
from cierzo.errors import QueueFullError
from cierzo.loading import Loaded
from support.books import all_free, check_books
from support.models import tiny_config, tiny_engine


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def ask(llm: AsyncLLM, chance: random.Random, room: asyncio.Semaphore) -> int:
    """One request, again until it is taken; says how often it was refused."""
    prompt = [chance.randrange(8) for _ in range(chance.randrange(1, 60))]
    params = SamplingParams(max_tokens=chance.randrange(1, 12), seed=chance.randrange(100), logprobs=1)
    leaves_after = chance.choice([None, None, 0, 1, 3])
    refused = 0
    async with room:
        while True:
            try:
                answer = await llm.answer(prompt, params, priority=chance.randrange(2))
                break
            except QueueFullError:
                refused += 1
                await asyncio.sleep(0.02)
        pieces = 0
        async for _ in answer:
            pieces += 1
            if leaves_after is not None and pieces > leaves_after:
                break
        await answer.aclose()
    return refused


def soak(count: int, slack: int) -> None:
    engine = tiny_engine(tiny_config(sliding_window=(None, 16)), cache_tokens=4200, block_size=4, max_running=8)
    chance = random.Random(1)

    async def run() -> None:
        llm = AsyncLLM(Loaded("tiny", Path("tiny"), engine), max_waiting=8)
        room = asyncio.Semaphore(20)  # more than the engine takes, so that some are refused
        early = refused = 0
        for start in range(0, count, count // 10):
            refused += sum(await asyncio.gather(*(ask(llm, chance, room) for _ in range(count // 10))))
            if start == count // 10:
                early = resident()
        await llm.close()
        assert refused > 0
        assert resident() - early < slack

    asyncio.run(run())
    check_books(engine)
    assert all_free(engine)
    finished = engine.metrics.finished
    assert finished["cancelled"] > 0
    assert finished["length"] > count // 3
    assert engine.metrics.cached_tokens > 0


def test_some_hundred_requests() -> None:
    soak(400, 32 * 2**20)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_ten_thousand_requests() -> None:
    soak(10_000, 32 * 2**20)
