"""The asynchronous face: many at once on one engine thread."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cierzo import LLM, AsyncLLM, LoadOptions, Models, SamplingParams, load_engine
from cierzo.engine import Delta, EngineThread
from cierzo.engine.request import Completion
from cierzo.errors import CierzoError, EngineError, QueueFullError
from cierzo.loading import Loaded
from cierzo.models import UnknownModelError
from support.books import all_free
from support.models import tiny_config, tiny_engine

GREEDY = SamplingParams(temperature=0, max_tokens=12)
LONG = SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True)


def tiny(**options: int) -> AsyncLLM:
    waiting = options.pop("max_waiting", 256)
    return AsyncLLM(Loaded("tiny", Path("tiny"), tiny_engine(tiny_config(), **options)), max_waiting=waiting)


async def whole(llm: AsyncLLM, prompt: list[int], params: SamplingParams) -> Completion:
    return Completion.of([delta async for delta in await llm.answer(prompt, params)])


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    async def timed() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(timed())


def test_many_answer_as_the_synchronous_face_does(default_gguf: Path) -> None:
    prompts = ["One, two, three,", "The sky is", "In 1492,", "The capital of France is"]
    expected = [a.token_ids for a in LLM(default_gguf, cache_tokens=4096).generate(prompts, GREEDY)]

    async def test() -> None:
        llm = AsyncLLM(load_engine(default_gguf, LoadOptions(cache_tokens=4096)))
        ids = [await llm.encode(prompt) for prompt in prompts]
        answers = await asyncio.gather(*(whole(llm, prompt, GREEDY) for prompt in ids))
        assert [a.token_ids for a in answers] == expected
        [scored, vector] = await asyncio.gather(llm.score(ids[3], top=1), llm.embed(ids[0]))
        assert len(scored) == len(ids[3]) - 1
        assert vector.norm().item() == pytest.approx(1)
        await llm.close()

    run(test)


def test_who_leaves_is_forgotten_before_the_next_step() -> None:
    async def test() -> None:
        llm = tiny()
        engine = llm._loaded.engine
        answer = await llm.answer([1, 2, 3], LONG)
        assert (await anext(answer)).token_ids
        await answer.aclose()
        deadline = time.monotonic() + 5
        while not all_free(engine):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)
        assert engine.metrics.generated_tokens < 200
        assert engine.metrics.finished == {"cancelled": 1}
        assert llm.pending == 0
        await llm.close()

    run(test)


def test_too_many_are_refused_and_nothing_is_lost() -> None:
    async def test() -> None:
        llm = tiny(max_running=2, max_waiting=3)
        answers = [await llm.answer([n], LONG) for n in range(5)]
        with pytest.raises(QueueFullError, match="5 requests"):
            await llm.answer([9], LONG)
        await answers[4].aclose()  # before its first piece
        for answer in answers[:4]:
            assert len(Completion.of([d async for d in answer]).token_ids) == 2000
        assert llm.metrics.finished == {"length": 4, "cancelled": 1}
        await llm.close(drain=False)

    run(test)


def test_closing_answers_what_is_pending_and_refuses_the_rest() -> None:
    async def test() -> None:
        llm = tiny()
        answers = [await llm.answer([n], SamplingParams(max_tokens=50, ignore_eos=True)) for n in range(3)]
        closing = asyncio.create_task(llm.close())
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError, match="shutting down"):
            await llm.answer([9], GREEDY)
        for answer in answers:
            assert len(Completion.of([d async for d in answer]).token_ids) == 50
        await closing

    run(test)


def test_closing_at_once_cancels() -> None:
    async def test() -> None:
        llm = tiny()
        answer = await llm.answer([1], LONG)
        await anext(answer)
        await llm.close(drain=False)
        assert [d async for d in answer][-1].finish_reason == "cancelled"

    run(test)


def test_a_stopped_engine_answers_everybody_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        llm = tiny()
        monkeypatch.setattr(llm._loaded.engine.scheduler, "plan", lambda: 1 / 0)
        for _ in range(2):
            with pytest.raises(EngineError, match=r"has stopped.*ZeroDivisionError"):
                await whole(llm, [1], GREEDY)
        assert llm.failure is not None
        with pytest.raises(EngineError):
            await llm.embed([1])
        await llm.close()

    run(test)


def test_a_slow_reader_holds_nobody() -> None:
    async def test() -> None:
        llm = tiny()
        slow = await llm.answer([1], SamplingParams(temperature=0, max_tokens=300, ignore_eos=True))
        await anext(slow)
        assert len((await whole(llm, [2], SamplingParams(max_tokens=100, ignore_eos=True))).token_ids) == 100
        rest: list[Delta] = [d async for d in slow]
        assert sum(len(d.token_ids) for d in rest) == 299
        await llm.close()

    run(test)


def test_an_event_loop_that_died_costs_nobody_anything() -> None:
    engine = tiny_engine(tiny_config())
    thread = EngineThread(engine)
    sequence = engine.prepare([1], LONG)
    loop = asyncio.new_event_loop()
    loop.close()
    thread.submit(sequence, loop, lambda: None)
    thread.close()
    assert sequence.finish_reason == "cancelled"
    assert all_free(engine)


def test_models_come_and_go_by_name(default_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        models = Models({"one": default_gguf, "two": default_gguf}, LoadOptions(cache_tokens=512))

        def free(device: object) -> int:  # room for one of them, whose cache of 12 MB is not touched yet
            return 162_000_000 - 100_000_000 * sum(e.llm is not None for e in models.entries.values())

        monkeypatch.setattr("cierzo.models.free_memory", free)
        with pytest.raises(UnknownModelError, match="no model 'three' here: use one of one, two"):
            async with models.use("three"):
                pass
        async with models.use() as one:
            assert models.entries["one"].state == "loaded"
            assert models.memory() == "one 0.1 GiB loaded, 0.0 GiB free"
            with pytest.raises(CierzoError, match=r"two: .* 0.1 GiB, 0.0 GiB are free, .*in use \(one 0.1"):
                async with models.use("two"):
                    pass
            assert (await whole(one, await one.encode("The sky"), GREEDY)).finish_reason == "length"
            assert models.entries["two"].state == "unloaded"
        async with models.use("two") as two:  # in the place of the first one
            assert [e.state for e in models.entries.values()] == ["unloaded", "loaded"]
            assert (await whole(two, await two.encode("The sky"), GREEDY)).finish_reason == "length"
        await models.close()

    run(test)


def test_an_idle_model_is_unloaded_and_comes_back(default_gguf: Path) -> None:
    async def test() -> None:
        models = Models({"one": default_gguf}, LoadOptions(cache_tokens=512), keep=0.2)

        def state() -> str:
            return models.entries["one"].state

        async with models.use() as first:
            await asyncio.sleep(0.3)
            assert state() == "loaded"
        deadline = time.monotonic() + 5
        while state() == "loaded":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        async with models.use("one") as again:
            assert again is not first
            assert (await whole(again, await again.encode("The sky"), GREEDY)).token_ids
        await models.close()

    run(test)


def test_who_leaves_during_a_load_lets_no_second_one_begin(default_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = 0

    def slow(*arguments: Any, **options: Any) -> Loaded:
        nonlocal loads
        loads += 1
        time.sleep(0.5)
        return load_engine(*arguments, **options)

    monkeypatch.setattr("cierzo.models.load_engine", slow)

    async def test() -> None:
        models = Models({"one": default_gguf}, LoadOptions(cache_tokens=512), keep=0.1)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02), models.use():
                    pass
        async with models.use() as llm:
            assert loads == 1
            assert (await whole(llm, await llm.encode("The sky"), GREEDY)).token_ids
        while models.entries["one"].state != "unloading":
            await asyncio.sleep(0)
        async with models.use():  # waits for it to be gone, and loads again
            assert loads == 2
        await models.close()
        with pytest.raises(CierzoError, match="shutting down"):
            async with models.use():
                pass

    run(test)


def test_closing_during_a_load_leaves_nothing_loaded(default_gguf: Path) -> None:
    async def test() -> None:
        models = Models({"one": default_gguf}, LoadOptions(cache_tokens=512))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), models.use():
                pass
        assert models.entries["one"].state == "loading"
        await models.close()
        assert models.entries["one"].llm is None

    run(test)
