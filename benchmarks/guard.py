"""What the guard costs: tokens a second of many streams, and the time to the first token.

    python benchmarks/guard.py [--model FILE] [--streams 16] [--questions 16] [--rounds 3] [--data ../shared/data]

Streams: `cierzo serve` without a guard and with `--guard standard`, in turns; every stream asks questions of XSTest.
First token: a chat of about 500 tokens that is in the cache, on one engine, with no judgement, with the classifier, and
with self-reflection after it. Prints a table and one JSON line; medians of interleaved rounds.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from cierzo import AsyncLLM, LoadOptions, SamplingParams, load_engine
from cierzo.guard import Guard, data
from cierzo.guard.judge import Judge
from cierzo.weights.pull import resolve_model
from first_answer import cpu_name
from serve import server


async def streamed(url: str, questions: list[str], streams: int, each: int, tokens: int, seed: int) -> dict[str, float]:
    """Tokens a second, and the median time to the first token, of `streams` clients with `each` questions on average.

    Who is done takes the next question, or clients whose questions are refused would stand idle at the end.
    """
    order = iter(random.Random(seed).sample(questions, each * streams))
    firsts: list[float] = []
    counts: list[int] = []

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask(question: str) -> None:
            body = {
                "messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0,
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
            }  # fmt: skip
            began = time.perf_counter()
            seen = False
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if not seen and event["choices"] and event["choices"][0]["delta"].get("content"):
                        firsts.append(time.perf_counter() - began)
                        seen = True
                    if event.get("usage"):
                        counts.append(event["usage"]["completion_tokens"])

        async def one() -> None:
            for question in order:
                await ask(question)

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(streams)))
        seconds = time.perf_counter() - began
    return {"tokens_per_second": sum(counts) / seconds, "first": statistics.median(firsts)}


async def first_tokens(model: Path, rounds: int) -> dict[str, float]:
    """Milliseconds to the first token after a cached chat of about 500 tokens: plain, classified, reflected."""
    llm = AsyncLLM(await asyncio.to_thread(load_engine, model, LoadOptions(cache_tokens=8192)))
    guard = Guard("standard", mode="enforce")
    assert guard.policy.reflection is not None
    judge = Judge(llm, guard.policy.reflection)
    text = "The river rises in the mountains and runs through the plain to its delta by the sea. " * 26
    ids = await llm.encode_chat([{"role": "user", "content": text}])
    params = SamplingParams(max_tokens=1, temperature=0)

    async def timed(classify: bool, reflect: bool) -> float:
        began = time.perf_counter()
        if classify:
            await guard.judge([text], "input")
        if reflect:
            await judge.opinion(ids, chat=True)
        async for _ in await llm.answer(ids, params):
            pass
        return 1000 * (time.perf_counter() - began)

    kinds = {"plain": (False, False), "classifier": (True, False), "reflection": (True, True)}
    await timed(True, True)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, options in kinds.items():
            found[name].append(await timed(*options))
    await llm.close()
    return {name: statistics.median(values) for name, values in found.items()} | {"prompt_tokens": len(ids)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file; the default model when left out")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--questions", type=int, default=16, help="of each stream, one after the other")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only-first", action="store_true", help="leave the streams out")
    parser.add_argument("--verbose", action="store_true", help="show what the servers say")
    options = parser.parse_args()
    model = options.model or resolve_model(None, progress=True)
    found: dict[str, Any] = {"date": date.today().isoformat(), "cpu": cpu_name(), "model": model.name}
    found["first_token_ms"] = asyncio.run(first_tokens(model, 5 * options.rounds))
    print({name: round(value, 1) for name, value in found["first_token_ms"].items()})
    if not options.only_first:
        questions = [item.text for item in data.xstest(data.folder_of(options.data))]
        runs: dict[str, list[dict[str, float]]] = {"off": [], "standard": []}
        for number in range(options.rounds):
            for name, rows in list(runs.items())[:: 1 - 2 * (number % 2)]:
                extra = () if name == "off" else ("--guard", name)
                with server("cierzo", model, options, *extra) as url:
                    load = (options.streams, options.questions, options.tokens)
                    rows.append(asyncio.run(streamed(url, questions, *load, number)))
                print(f"round {number + 1}, {name}: {rows[-1]}", file=sys.stderr)
        found["streams"] = {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in runs.items()
        }
        for name, row in found["streams"].items():
            print(f"{name:10} {row['tokens_per_second']:8.1f} tokens/s, first token {1000 * row['first']:6.0f} ms")
    print(json.dumps(found | {"rounds": options.rounds, "streams_count": options.streams, "load": os.getloadavg()}))


if __name__ == "__main__":
    main()
